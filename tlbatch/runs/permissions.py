"""Permissions of run folders, which only their owner can write to, since submitit runs the pickles in them."""

import os
import shlex
import stat
from collections.abc import Iterable
from pathlib import Path

from tlbatch.core.errors import UserError
from tlbatch.core.files import umask
from tlbatch.runs.paths import RunPaths

OWN = 0o700


def folder_mode(*, private: bool) -> int:
    """Return the mode of a run folder; only the owner can ever write to it."""
    if private:
        return OWN
    return OWN | (0o055 & ~umask())


def common_mode(folders: Iterable[Path]) -> int:
    """Return the mode of a folder derived from others: those who can read all of them can read it."""
    mode = 0o755
    for folder in folders:
        mode &= folder.stat().st_mode
    return OWN | mode


def claim_logs(paths: RunPaths) -> None:
    """Create the folder of logs, and refuse it if others could change the pickles that submitit writes there."""
    paths.logs.mkdir(mode=OWN, exist_ok=True)
    for folder in (paths.folder, paths.logs):
        found = folder.lstat()
        mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
        if not mine or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            why = "others can write to it" if mine else "it belongs to another user, or is a link"
            raise UserError(
                f"{folder}: {why}, so the job could run other users' code; chmod go-w {shlex.quote(str(folder))}, "
                "submit the job as a new run, or set workspace=PATH, on a file system that keeps modes"
            )
