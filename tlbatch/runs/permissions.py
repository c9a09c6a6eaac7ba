"""Run folders belong to one user: submitit runs what lies in them."""

import os
import shlex
import stat
from collections.abc import Iterable
from pathlib import Path

from tlbatch.core.errors import UserError
from tlbatch.runs.paths import RunPaths

OWN = 0o700


def folder_mode(*, private: bool) -> int:
    """Who may do what in a run folder; nobody but the owner ever writes."""
    if private:
        return OWN
    mask = os.umask(0)
    os.umask(mask)
    return OWN | (0o055 & ~mask)


def common_mode(folders: Iterable[Path]) -> int:
    """Who may see a folder that is made of these: who may see them all."""
    mode = 0o755
    for folder in folders:
        mode &= folder.stat().st_mode
    return OWN | mode


def claim_logs(paths: RunPaths) -> None:
    """Refuse to let submitit put its pickles where others could change them; make the folder if it is not there.

    Raises
    ------
    UserError
        When the run folder or its logs are of another user, open to others' writing, or a link.
    """
    paths.logs.mkdir(mode=OWN, exist_ok=True)
    for folder in (paths.folder, paths.logs):
        found = folder.lstat()
        mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
        if not mine or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            why = "others can write to it" if mine else "it is of another user, or a link"
            raise UserError(
                f"{folder}: {why}, so it could make the job run foreign code; chmod go-w {shlex.quote(str(folder))}, "
                "submit the job as a new run, or set workspace=PATH, on a file system that keeps modes"
            )
