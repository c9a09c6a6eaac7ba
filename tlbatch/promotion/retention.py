"""Retention of runs and models in a registry, and verification of their files."""

import logging
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from tlbatch.config.nightly import Nightly
from tlbatch.core.files import digest_file
from tlbatch.core.text import counted
from tlbatch.promotion.records import Champion
from tlbatch.promotion.registry import Registry

log = logging.getLogger(__name__)
_REMOVED = ".removed-"


def digests_of(files: Iterable[Path], workspace: Path) -> dict[str, str]:
    """Return the SHA-256 of files by their paths relative to the workspace."""
    return {os.path.relpath(file, workspace): digest_file(file) for file in files}


def wrong_files(registry: Registry, champion: Champion) -> list[str]:
    """Return the missing and changed files of a champion, each with what is wrong."""
    workspace, found = registry.folder.parent.parent, []
    for name, digest in champion.files.items():
        file = Path(os.path.normpath(workspace / name))
        if not file.is_file():
            found.append(f"{file}: missing")
        elif digest_file(file) != digest:
            found.append(f"{file}: changed since its promotion")
    return found


def retire(registry: Registry, terms: Nightly, *, now: str) -> list[str]:
    """Remove old runs of nights and the exported models of old champions.

    Only runs created by nights are considered. Recent runs, the champion, and as many of its predecessors as the job
    keeps are not removed.

    Parameters
    ----------
    now
        Name of the run being decided on, which is kept.

    Returns
    -------
    Names of the removed runs.
    """
    champion = registry.champion()
    if champion is None:
        return []
    kept = [champion, *registry.ancestors(champion, terms.keep_champions)]
    # A run that was only promoted by hand belongs to its user.
    of_nights = (one for one in registry.history() if one.seen is not None or one.event in ("failed", "given up"))
    made = list(dict.fromkeys(night.run for night in of_nights if night.run))
    stay = {now} | {one.run for one in kept} | set(made[max(0, len(made) - terms.keep_nights) :])
    runs, gone = registry.folder.parent.parent / "runs", []
    for old in runs.glob(f"{_REMOVED}*"):
        shutil.rmtree(old, ignore_errors=True)
    for run in made:
        for folder in (runs / run, runs / f"{run}.champion"):
            if run not in stay and folder.is_dir():
                _remove(folder)
                gone.append(folder.name)
    for one in registry.champions():
        model = registry.model_folder(one)
        if one.number not in {other.number for other in kept} and model.is_dir():
            _remove(model)
    if gone:
        last = counted(terms.keep_nights, "night")
        log.info("removed %s: not from the last %s or a kept champion", ", ".join(gone), last)
    return gone


def _remove(folder: Path) -> None:
    """Rename a folder away at once, then remove it."""
    away = folder.with_name(f"{_REMOVED}{folder.name}")
    shutil.rmtree(away, ignore_errors=True)
    folder.rename(away)
    shutil.rmtree(away, ignore_errors=True)
