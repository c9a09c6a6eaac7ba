"""Labelled images as their owners keep them: class folders, or a CSV file beside a folder."""

import csv
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from tlbatch.job.config import Data
from tlbatch.job.errors import UserError
from tlbatch.job.files import digest_of

ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".gif", ".bmp"})


@dataclass(frozen=True)
class Labelled:
    """One image of a source."""

    key: str
    path: Path
    label: str
    group: str


@dataclass(frozen=True)
class Source:
    """All labelled images, sorted by key, with the classes in their order."""

    images: tuple[Labelled, ...]
    classes: tuple[str, ...]
    columns: tuple[str, str]
    digest: str
    """Of keys, labels, groups, file sizes and times: another value means that the source has changed."""


def key_of(name: str) -> str:
    """The key of an image: its name with every character but letters, digits, ``_``, ``-``, ``~`` and ``/`` quoted.

    WebDataset ends a key at the first dot of the member's name, so dots are quoted too.
    """
    return quote(name, safe="/").replace(".", "%2E")


def name_of(key: str) -> str:
    """The name that `key_of` made the key of."""
    return unquote(key)


def read_source(data: Data, images: Path, labels: Path | None) -> Source:
    """List the images of a folder with their labels.

    Raises
    ------
    UserError
        When the folder or file is missing, a label has no image, a key or a class is doubled, a class is empty,
        or there are fewer than two classes.
    """
    if not images.is_dir():
        raise UserError(f"{images}: no such folder of images; set data.images=PATH")
    named = list(_from_folders(images) if labels is None else _from_csv(images, labels, data))
    found = sorted(
        (Labelled(key_of(name), path, label, _group(name, data.group_pattern)) for name, path, label in named),
        key=lambda image: image.key,
    )
    _refuse_doubled_keys(found)
    classes = data.classes or _in_order({image.label for image in found} | _class_folders(images, labels))
    _check_classes(found, classes, where=labels or images)
    columns = ("image", "label") if labels is None else (data.key_column, data.label_column)
    return Source(tuple(found), classes, columns, _digest(found))


def _from_folders(images: Path) -> Iterator[tuple[str, Path, str]]:
    for path in _image_files(images):
        relative = path.relative_to(images)
        if len(relative.parts) < 2:
            raise UserError(f"{path}: lies outside of a class folder; move it into {images}/<class>/")
        yield relative.with_suffix("").as_posix(), path, relative.parts[0]


def _class_folders(images: Path, labels: Path | None) -> set[str]:
    """Folders count as classes even when empty, so that an empty one is noticed."""
    if labels is not None:
        return set()
    return {folder.name for folder in images.iterdir() if folder.is_dir() and not folder.name.startswith(".")}


def _from_csv(images: Path, labels: Path, data: Data) -> Iterator[tuple[str, Path, str]]:
    files: dict[str, Path] = {}
    for path in _image_files(images):
        name = path.relative_to(images).with_suffix("").as_posix()
        if name in files:
            raise UserError(f"{files[name]} and {path}: same name with two endings; remove one")
        files[name] = path
    by_stem = {Path(name).name: path for name, path in files.items()}
    for line, row in _rows(labels, data):
        name, label = row[data.key_column].strip(), row[data.label_column].strip()
        stem = str(Path(name).with_suffix("")) if Path(name).suffix.lower() in ENDINGS else name
        found = files.get(stem) or by_stem.get(stem)
        if found is None:
            raise UserError(f"{labels}:{line}: no image named {name} below {images}; add it or remove the line")
        if not label:
            raise UserError(
                f"{labels}:{line}: {name} has no label in column {data.label_column}; add it or remove the line"
            )
        yield stem, found, label


def _rows(labels: Path, data: Data) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        with labels.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            for field, column in (("key_column", data.key_column), ("label_column", data.label_column)):
                if column not in (reader.fieldnames or ()):
                    have = ", ".join(reader.fieldnames or ())
                    raise UserError(f"{labels}: no column {column} (it has {have}); set data.{field}=NAME")
            for row in reader:
                if row[data.key_column] is None or row[data.label_column] is None:
                    raise UserError(f"{labels}:{reader.line_num}: too few columns; mend the line")
                yield reader.line_num, row
    except FileNotFoundError:
        raise UserError(f"{labels}: no such labels file; set data.labels=PATH") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{labels}: not a CSV file in UTF-8 ({error}); convert it") from None


def _image_files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in ENDINGS and path.is_file() and not hidden:
            yield path


def _group(name: str, pattern: str) -> str:
    if not pattern:
        return name
    match = re.search(pattern, name)
    if match is None or match.group(1) is None:
        raise UserError(f"{name}: data.group_pattern {pattern!r} does not match this image name; mend the pattern")
    return match.group(1)


def _refuse_doubled_keys(images: list[Labelled]) -> None:
    for one, other in itertools.pairwise(images):
        if one.key == other.key:
            raise UserError(f"{one.path} and {other.path}: both have the key {one.key}; rename or remove one")


def _in_order(labels: set[str]) -> tuple[str, ...]:
    if all(re.fullmatch(r"-?\d+", label) for label in labels):
        return tuple(sorted(labels, key=int))
    return tuple(sorted(labels))


def _check_classes(images: list[Labelled], classes: tuple[str, ...], *, where: Path) -> None:
    if not images:
        raise UserError(f"{where}: no labelled image found ({', '.join(sorted(ENDINGS))}); set data.images=PATH")
    used = {image.label for image in images}
    unknown = sorted(used - set(classes))
    if unknown:
        example = next(image for image in images if image.label == unknown[0])
        raise UserError(
            f"{where}: {example.key} has the label {unknown[0]!r}, which data.classes does not list; add it there"
        )
    empty = [name for name in classes if name not in used]
    if empty:
        raise UserError(f"{where}: class {empty[0]!r} has no images; add some, or remove the class")
    if len(classes) < 2:
        raise UserError(f"{where}: only one class ({classes[0]!r}); a classifier needs at least two")


def _digest(images: list[Labelled]) -> str:
    stats = [(image, image.path.stat()) for image in images]
    return digest_of([[i.key, i.label, i.group, s.st_size, s.st_mtime_ns] for i, s in stats])
