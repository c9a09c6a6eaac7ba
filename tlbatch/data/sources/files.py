"""Files below a folder: those that cannot be read are listed or logged, never dropped silently."""

import logging
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from tlbatch.config.base import SplitName
from tlbatch.core.text import counted, folded
from tlbatch.runs.manifest import Rejected

log = logging.getLogger(__name__)
ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".gif", ".bmp"})
"""Extensions of image files."""
_SPLITS: dict[SplitName, tuple[str, ...]] = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "tst", "t10k"),
}


def given_split(name: str, more: Mapping[str, SplitName]) -> SplitName | None:
    """Return the split that a name means, in any case; None if it is not known."""
    known: dict[str, SplitName] = {one: split for split, names in _SPLITS.items() for one in names}
    return (known | {folded(one): split for one, split in more.items()}).get(folded(name))


def walk(root: Path, endings: Collection[str], rejected: list[Rejected]) -> Iterator[tuple[Path, list[str]]]:
    """Yield every folder below ``root``, relative to it, with the names of its files that have one of the extensions.

    Links to folders are followed, hidden files and folders are skipped, and other files are counted in the log.
    """

    def unreadable(error: OSError) -> None:
        rejected.append(Rejected(key=str(error.filename), cause=f"unreadable folder ({error.strerror})"))

    others: Counter[str] = Counter()
    above: dict[str, tuple[tuple[int, int], ...]] = {}
    for place, folders, files in os.walk(root, followlinks=True, onerror=unreadable):
        status = os.stat(place)  # noqa: PTH116
        here = status.st_dev, status.st_ino
        upper = above.get(os.path.dirname(place), ())  # noqa: PTH120
        if here in upper:
            rejected.append(Rejected(key=place, cause="a symbolic link that leads back to a folder above it"))
            folders.clear()
            continue
        above[place] = (*upper, here)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        names = sorted(name for name in files if not name.startswith("."))
        yield Path(place).relative_to(root), [name for name in names if ending_of(name) in endings]
        other = [name for name in names if ending_of(name) not in endings]
        unnamed = [Path(place, name) for name in other if not ending_of(name)]  # like most links to folders
        links = [link for link in unnamed if link.is_symlink() and not link.exists()]
        rejected += [Rejected(key=str(link), cause=f"a symbolic link to nowhere ({link.readlink()})") for link in links]
        others.update(ending_of(name) or name for name in other)
    if others:
        shown = ", ".join(f"{count} {ending}" for ending, count in others.most_common(5))
        log.warning("%s below %s with an extension that is not read: %s", counted(others.total(), "file"), root, shown)


def ending_of(name: str) -> str:
    """Return the extension of a file name in lower case, with its dot."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 (a Path per image would cost too much)
