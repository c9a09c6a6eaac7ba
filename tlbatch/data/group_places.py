"""The positions of groups in the order that splits cut, kept from run to run."""

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from filelock import FileLock

from tlbatch.core.errors import UserError
from tlbatch.core.files import to_csv, write_text


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
