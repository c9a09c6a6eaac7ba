"""The image files of a folder, as a table names them."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import takewhile
from pathlib import Path

from tlbatch.core.text import counted
from tlbatch.data.sources.files import ENDINGS, ending_of, is_image, walk
from tlbatch.data.sources.listing import Listing


class FileNames:
    """Image files, found by path, or by name if it is unique; Unicode forms count as equal."""

    def __init__(self, files: Iterable[str]) -> None:
        self._by_path: dict[str, list[str]] = {}
        self._by_name: dict[str, list[str]] = {}
        self._dropped = 0
        """Leading folders of the names that are looked up which the paths here lack."""
        for file in files:
            path = _composed(stem_of(file))
            self._by_path.setdefault(path, []).append(file)
            self._by_name.setdefault(path.rpartition("/")[2], []).append(file)

    def num_matching(self, names: Sequence[str]) -> int:
        """Return how many names are images, with or without their folders."""
        return max(self._num_at(names, dropped) for dropped in range(_num_common_folders(names) + 1))

    def drop_common_folders(self, names: Sequence[str]) -> None:
        """Leave out those leading folders of all names without which most of them are found."""
        most = _num_common_folders(names)
        if most:
            self._dropped = max(range(most + 1), key=lambda dropped: (self._num_at(names, dropped), -dropped))

    def _num_at(self, names: Sequence[str], dropped: int) -> int:
        return sum(bool(self.candidates(name, dropped)) for name in names)

    def candidates(self, name: str, dropped: int | None = None) -> list[str]:
        """Return the files that a name may mean."""
        inner = "/".join(_parts(name)[self._dropped if dropped is None else dropped :])
        stem = stem_of(inner)
        found = self._by_path.get(stem) or self._by_name.get(stem) or []
        if len(found) > 1 and inner != stem:
            found = [one for one in found if _composed(one) == inner or _composed(one).endswith(f"/{inner}")]
        return found


class NamedFiles(FileNames):
    """The image files of a folder, as a table names them; a number may lack its zeros."""

    def __init__(self, images: Path, listing: Listing) -> None:
        files = [(folder / name).as_posix() for folder, names in walk(images, is_image, listing) for name in names]
        super().__init__(files)
        self._images = images
        self._by_number: dict[int, list[str]] = {}
        self._used: set[str] = set()
        self._total = len(files)
        self._numbered: list[tuple[str, str]] = []
        """Names that were found by their number, with the file."""
        for name, own in self._by_name.items():
            if re.fullmatch(r"\d{1,18}", name):
                self._by_number.setdefault(int(name), []).extend(own)
        self._unread = {_composed(one) for inner in listing.unread for one in (inner, os.path.splitext(inner)[0])}  # noqa: PTH122

    def find(self, name: str) -> tuple[str | None, str]:
        """Return the file; or None, and why there is not exactly one."""
        found, stem = self.candidates(name), stem_of(name)
        if not found and re.fullmatch(r"\d{1,18}", stem):
            found = self._by_number.get(int(stem), [])
            if len(found) == 1:
                self._numbered.append((name, found[0]))
        if not found and "/".join(_parts(name)[self._dropped :]) in self._unread:
            return None, f"an image named {name} below {self._images} is in a format that is not read; convert it"
        if not found:
            return None, f"no image named {name} below {self._images}"
        if len(found) > 1:
            endings = len({stem_of(one) for one in found}) == 1
            way_out = "write its ending too" if endings else "write its folder too"
            return None, f"{len(found)} images named {name} ({found[0]} and {found[1]}); {way_out}"
        self._used.add(found[0])
        return found[0], ""

    def tell_what_was_found(self, listing: Listing) -> None:
        """Say how many files have no label, and how names were understood."""
        if self._numbered:
            name, file = self._numbered[0]
            number = counted(len(self._numbered), "image")
            listing.warn(f"{number} found by number alone, such as {file} for {name}")
        if len(self._used) < self._total:
            unused = counted(self._total - len(self._used), "image")
            listing.note(f"{unused} below {self._images} without a line in the labels file")


def _composed(name: str) -> str:
    """Return a name in Unicode's composed form, which file systems do not all keep."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _parts(name: str) -> list[str]:
    """Return the folders and the name of a path that may be absolute, or of Windows."""
    path = re.sub(r"^[A-Za-z]:(?=[\\/])", "", _composed(name)).replace("\\", "/")
    return [part for part in path.split("/") if part not in ("", ".")]


def _num_common_folders(names: Sequence[str]) -> int:
    """Return the number of leading folders that all names share."""
    folders = [_parts(name)[:-1] for name in names if name]
    if not folders:
        return 0
    pairs = zip(min(folders), max(folders), strict=False)  # what these two share, all share
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def image_names(listed: Sequence[str]) -> list[str]:
    """Return the names of listed images: without their extension, unless only that tells two of them apart."""
    plain = ["/".join(_parts(name)) or name for name in listed]
    counts = Counter(map(stem_of, set(plain)))
    return [name if counts[stem_of(name)] > 1 else stem_of(name) for name in plain]


def stem_of(name: str) -> str:
    """Return the name of an image without its extension."""
    return os.path.splitext(name)[0] if ending_of(name) in ENDINGS else name  # noqa: PTH122 (a Path per image costs too much)
