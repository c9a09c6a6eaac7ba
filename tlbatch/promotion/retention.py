"""What of a registry is kept, and whether it is whole."""

import logging
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from tlbatch.config.nightly import Nightly
from tlbatch.core.files import digest_file
from tlbatch.promotion.registry import Champion, Night, Registry

log = logging.getLogger(__name__)
_REMOVED = ".removed-"


def digests_of(files: Iterable[Path], workspace: Path) -> dict[str, str]:
    """SHA-256 by path from the workspace."""
    return {os.path.relpath(file, workspace): digest_file(file) for file in files}


def wrong_files(registry: Registry, champion: Champion) -> list[str]:
    """Files of a champion that are gone or are not what they were, each with what is wrong."""
    workspace, found = registry.folder.parent.parent, []
    for name, digest in champion.files.items():
        file = Path(os.path.normpath(workspace / name))
        if not file.is_file():
            found.append(f"{file}: is gone")
        elif digest_file(file) != digest:
            found.append(f"{file}: is not what it was")
    return found


def retire(registry: Registry, terms: Nightly, *, now: str) -> list[str]:
    """Remove the runs of nights that are neither recent nor of a champion that is kept, and models of other champions.

    Only runs that nights have made are looked at; the champion and those before it, as many as the job keeps, stay.

    Parameters
    ----------
    now
        Name of the run that is decided on, which stays.

    Returns
    -------
    Names of the runs that are gone.
    """
    champion = registry.champion()
    if champion is None:
        return []
    kept = [champion, *registry.ancestors(champion, terms.keep_champions)]
    made = list(dict.fromkeys(night.run for night in registry.history() if night.run and _is_of_night(night)))
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
        log.info("removed %s: neither of the last %d nights nor of a champion", ", ".join(gone), terms.keep_nights)
    return gone


def _is_of_night(night: Night) -> bool:
    """Whether its run was made by a night: one that was only decided on by hand is its user's."""
    return night.seen is not None or night.event in ("failed", "given up")


def _remove(folder: Path) -> None:
    """Take it away in one rename, then remove it."""
    away = folder.with_name(f"{_REMOVED}{folder.name}")
    shutil.rmtree(away, ignore_errors=True)
    folder.rename(away)
    shutil.rmtree(away, ignore_errors=True)
