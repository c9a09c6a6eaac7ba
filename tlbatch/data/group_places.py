"""The positions of groups in the order that splits cut, kept from run to run."""

import csv
import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from filelock import FileLock

from tlbatch.config.data import Data, Split
from tlbatch.core.errors import UserError
from tlbatch.core.files import to_csv, write_text
from tlbatch.core.text import folded


@contextmanager
def places_of_groups(file: Path) -> Iterator[dict[str, float]]:
    """Yield the positions of groups in the order that splits cut; additions are saved, and shared by all indexes.

    Raises UserError if the file is damaged.
    """
    with FileLock(file.with_suffix(".lock")):
        places = read_places(file) if file.exists() else {}
        before = dict(places)
        yield places
        if places != before:
            write_text(file, to_csv(("group", "place"), places.items()))


def read_places(file: Path) -> dict[str, float]:
    """Return the position of each group; UserError if the file is damaged."""
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            return {group: float(place) for group, place in islice(csv.reader(lines, strict=True), 1, None)}
    except (ValueError, csv.Error) as error:
        raise UserError(f"{file}: damaged ({error}); put it back from a copy, or remove it for new splits") from None


def hashed_place(name: str, salt: str) -> float:
    """Return the hash of a name as a number in [0, 1)."""
    digest = hashlib.sha256(f"{salt}\0{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


@dataclass(frozen=True)
class Spellings:
    """The other names of each group: those in the source, and earlier ones."""

    joined: Mapping[str, Sequence[str]]
    """Spellings of a group, and groups that were joined with it."""
    known: Mapping[str, Sequence[str]]
    """Names of groups that have a position, by their common form."""

    @staticmethod
    def of(data: Data, known: Mapping[str, float], joined: Mapping[str, Sequence[str]]) -> "Spellings":
        """Collect the names; names of files are never spellings of one another."""
        forms: dict[str, list[str]] = defaultdict(list)
        if data.spellings != "apart" and (data.group_column or data.group_pattern):  # else groups are names of files
            for name in known:
                forms[folded(name)].append(name)
        return Spellings(joined, forms)

    def of_group(self, name: str) -> list[str]:
        """Return all names of a group."""
        names = [name, *self.joined.get(name, ())]
        earlier = [other for one in names for other in self.known.get(folded(one), ())] if self.known else ()
        return list(dict.fromkeys([*names, *earlier]))

    def places_of(self, name: str, split: Split, known: Mapping[str, float]) -> list[float]:
        """Return the positions that the names of a group have; with method hash, each has one."""
        names = self.of_group(name)
        hashes = [hashed_place(one, split.salt) for one in names] if split.method == "hash" else []
        return [*hashes, *(known[one] for one in names if one in known)]

    def keep(self, placed: Mapping[str, float], known: dict[str, float]) -> None:
        """Give all names of a group its position; those that take it from another follow after that one."""
        for name, place in placed.items():
            for other in (name, *self.joined[name]) if name in self.joined else ():
                if known.get(other) != place:
                    known.pop(other, None)
                    known[other] = place
