"""Lists of the images of each split."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tlbatch.config.base import SplitName
from tlbatch.config.data import Data
from tlbatch.core.errors import UserError
from tlbatch.core.tables import read_lines
from tlbatch.core.text import counted
from tlbatch.data.sources.base import Labelled, name_of, shown, shown_key
from tlbatch.data.sources.files import ending_of
from tlbatch.data.sources.named_files import FileNames

log = logging.getLogger(__name__)
_SHOWN = 3


def listed_splits(images: Sequence[Labelled], data: Data, *, tell: bool) -> list[SplitName]:
    """Return the split of each image by the lists in ``data.split.files``.

    A list has a name a line, as a table may have it: with or without its extension and its folders, which may begin at
    the root. Lines that begin with # are comments, unless an image has that name.

    Parameters
    ----------
    tell
        Whether to log what the lists name that is no image here, and their encodings.

    Raises
    ------
    UserError
        When a list cannot be read, a name may mean several images, or an image is in two lists or in none.
    """
    of_file = {file: number for number, image in enumerate(images) for file in _files(image, data)}
    names = FileNames(of_file)
    lists = {split: _lines(file, split, tell=tell) for split, file in data.split.files.items()}
    names.drop_common_folders([line for lines in lists.values() for line in lines if not line.startswith("#")])
    found: dict[int, SplitName] = {}
    for split, lines in lists.items():
        file, unknown = data.split.files[split], []
        for line in lines:
            number = _number(line, names, of_file, file)
            if number is None:
                unknown += [line] if not line.startswith("#") else []
            elif found.setdefault(number, split) != split:
                raise UserError(f"{file}: {line} is listed in {found[number]} too; remove it from one")
        if unknown and tell:
            log.warning("%s: no usable image for %s, such as %s", file, counted(len(unknown), "name"), unknown[0])
    _refuse_unlisted(images, found)
    return [found[number] for number in range(len(images))]


def _files(image: Labelled, data: Data) -> Iterator[str]:
    """Yield the names that a list may have for an image: its own, and its path below the folder of the images."""
    name, ending = name_of(image.key), ending_of(image.path) if image.size < 0 else ""
    yield name if ending_of(name) == ending else name + ending
    if image.size < 0 and data.images is not None and Path(image.path).is_relative_to(data.images):
        yield Path(image.path).relative_to(data.images).as_posix()


def _lines(file: Path, split: SplitName, *, tell: bool) -> list[str]:
    try:
        lines, encoding = read_lines(file)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); set data.split.files.{split}=FILE") from None
    if encoding != "UTF-8" and tell:
        log.info("%s: encoded in %s", file, encoding)
    return list(filter(None, lines))


def _number(line: str, names: FileNames, of_file: Mapping[str, int], file: Path) -> int | None:
    """Return the number of the image that a line names; None if there is none."""
    some = {of_file[one]: one for one in names.candidates(line)}
    if len(some) > 1:
        first, second, *_ = some.values()
        raise UserError(
            f"{file}: {line} may be {shown(first)} or {shown(second)}; write its folder, and its ending where that is "
            "not enough"
        )
    return next(iter(some), None)


def _refuse_unlisted(images: Sequence[Labelled], found: Mapping[int, SplitName]) -> None:
    left = [shown_key(image.key) for number, image in enumerate(images) if number not in found]
    if left:
        more = ", ..." if len(left) > _SHOWN else ""
        number = counted(len(left), "image")
        raise UserError(f"data.split.files: no file lists {number} ({', '.join(left[:_SHOWN])}{more}); add each to one")
