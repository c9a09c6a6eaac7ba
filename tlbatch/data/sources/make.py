"""Make one source of the images that a listing found: keys, groups, labels in one spelling, and checks."""

import hashlib
import itertools
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from fnmatch import translate

import numpy as np
import numpy.typing as npt
import xxhash

from tlbatch.config.data import Data
from tlbatch.core.errors import UserError
from tlbatch.core.text import counted, folded, shortest
from tlbatch.data.more_formats import group_of_dicom
from tlbatch.data.sources.base import NO_LABEL, TWO_LABELS, Found, Labelled, Source, key_of, name_of, tags_of
from tlbatch.data.sources.listing import Listing, check_rejected
from tlbatch.data.sources.spellings import joined
from tlbatch.runs.manifest import Rejected


def make_source(
    found: Iterable[Found],
    data: Data,
    listing: Listing,
    *,
    folders: Iterable[str] = (),
    pixels: dict[str, npt.NDArray[np.uint8]] | None = None,
) -> Source:
    """Give every image its key and group, sort by key, and check labels and classes.

    Parameters
    ----------
    listing
        What was left out and understood up to now; what is left out here is added.
    folders
        Classes that exist even without images.

    Raises
    ------
    UserError
        When more images are rejected than ``data.max_rejected``, a class is empty, or there are fewer than two classes.
    """
    images = list(_labelled(_wanted(found, data, listing), data, listing))
    ignored = {folded(entry) for entry in data.ignore}
    named = {tag for name in folders for tag in tags_of(name, data) if folded(tag) not in ignored}
    images, of_label, of_group = _joined(images, data, named, listing)
    images = list(_without_doubles(sorted(images, key=lambda image: image.key), listing))
    classes = data.classes or _in_order(_used(images, data) | {of_label.get(name, name) for name in named})
    known = set(classes)
    images = [image for image in images if _has_known_label(image, known, data, listing)]
    check_rejected(listing.rejected, data)
    _check_classes(_used(images, data), classes, data)
    spellings: dict[str, tuple[str, ...]] = {}
    for spelling, group in of_group.items():
        spellings[group] = (*spellings.get(group, ()), spelling)
    return Source(
        images=tuple(images),
        classes=classes,
        columns=listing.columns,
        digest=_digest(images, listing.rejected),
        rejected=tuple(listing.rejected),
        notes=tuple(listing.notes),
        spellings=spellings,
        pixels=pixels or {},
    )


def _used(images: Iterable[Labelled], data: Data) -> set[str]:
    return {tag for label in {image.label for image in images} for tag in tags_of(label, data)}


def _wanted(found: Iterable[Found], data: Data, listing: Listing) -> Iterator[Found]:
    """Yield what ``data.ignore`` does not leave out, and log how many images each of its entries has."""
    if not data.ignore:
        yield from found
        return
    labels = {folded(entry): entry for entry in data.ignore}
    pattern = re.compile("|".join(f"(?P<p{number}>{translate(entry)})" for number, entry in enumerate(data.ignore)))
    counts = Counter(dict.fromkeys(data.ignore, 0))
    for one in found:
        label = labels.get(folded(one.label))
        named = pattern.match(one.name) or pattern.match(os.path.basename(one.path))  # noqa: PTH119
        if label is not None:
            counts[label] += 1
        elif named is not None:
            counts[data.ignore[int((named.lastgroup or "p0")[1:])]] += 1
        else:
            yield one
    for entry, count in counts.items():
        say = listing.note if count else listing.warn
        say(f"ignored: {counted(count, 'image')} by {entry!r}")


def _labelled(found: Iterable[Found], data: Data, listing: Listing) -> Iterator[Labelled]:
    times: dict[str, tuple[int, int]] = {}
    labels: dict[str, str] = {}  # one string per label, not one per image
    pattern = re.compile(data.group_pattern) if data.group_pattern else None
    num_alone = 0
    for one in found:
        key = key_of(one.prefix + one.name)
        try:
            status = _size_and_time(one.path, times, shared=one.size >= 0)
        except OSError as error:
            listing.reject(one.prefix + one.name, f"{one.path}: {error.strerror}")
            continue
        given = one.group or (group_of_dicom(one.path, data.dicom_group) if data.dicom_group else "")
        group = _text(given) or key
        num_alone += bool((data.group_column or data.dicom_group) and not given)
        if pattern is not None and not given:
            match = pattern.search(one.name)
            if match is None or not match.group(1):
                raise UserError(
                    f"{one.name}: data.group_pattern {data.group_pattern!r} does not match this image name; "
                    "fix the pattern"
                )
            group = _text(match.group(1))
        label = labels.setdefault(one.label, _text(data.tag_separator.join(tags_of(one.label, data))))
        stamp = _stamp(key, label, one.path, one.offset, one.size, status)
        yield Labelled(key, one.path, label, group, _text(one.part), stamp, one.offset, one.size)
    if num_alone:
        number = counted(num_alone, "image")
        listing.warn(f"{number} with nothing in {data.group_column or data.dicom_group}: each is a group of its own")


def _stamp(key: str, label: str, path: str, offset: int, length: int, status: tuple[int, int]) -> int:
    """Return the stamp of an image, given the size and time of its file; in a file with others its length is not -1."""
    where = f"{key_of(path)}\0{offset}" if length >= 0 else f"{offset}"
    return xxhash.xxh3_64_intdigest(f"{key}\0{label}\0{status[0]}\0{status[1]}\0{where}".encode())


def _joined(
    images: list[Labelled], data: Data, named: set[str], listing: Listing
) -> tuple[list[Labelled], dict[str, str], dict[str, str]]:
    """Give labels, and groups, that are one value in several spellings the same one; return those of both too."""
    labels: Counter[str] = Counter(dict.fromkeys(named, 0))
    for label, count in Counter(image.label for image in images).items():
        labels.update(dict.fromkeys(tags_of(label, data), count))
    groups = Counter(image.group for image in images if image.group != image.key)
    of_label = joined(labels, "tag" if data.tag_separator else "label", data.spellings, listing, known=data.classes)
    of_group = joined(groups, "group", data.spellings, listing)
    if of_label or of_group:
        times: dict[str, tuple[int, int]] = {}
        images = [_respelled(image, data, of_label, of_group, times) for image in images]
    return images, of_label, of_group


def _respelled(
    image: Labelled,
    data: Data,
    of_label: Mapping[str, str],
    of_group: Mapping[str, str],
    times: dict[str, tuple[int, int]],
) -> Labelled:
    label = data.tag_separator.join(of_label.get(tag, tag) for tag in tags_of(image.label, data))
    found = replace(image, label=label, group=of_group.get(image.group, image.group))
    if label == image.label:
        return found
    status = _size_and_time(image.path, times, shared=image.size >= 0)
    return replace(found, stamp=_stamp(image.key, label, image.path, image.offset, image.size, status))


def _text(text: str) -> str:
    """Return text that can be encoded in UTF-8."""
    return text.encode(errors="backslashreplace").decode()


def _size_and_time(path: str, times: dict[str, tuple[int, int]], *, shared: bool) -> tuple[int, int]:
    if path in times:
        return times[path]
    status = os.stat(path)  # noqa: PTH116 (a Path per image would cost more than the call)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(0, "is not a regular file")
    found = status.st_size, status.st_mtime_ns
    if shared:
        times[path] = found
    return found


def _without_doubles(images: list[Labelled], listing: Listing) -> Iterator[Labelled]:
    """Yield one image per key; none if the labels differ, because either may be wrong."""
    for _, group in itertools.groupby(images, key=lambda image: image.key):
        same = list(group)
        agreed = len({image.label for image in same}) == 1
        if agreed:
            yield same[0]
        for image in same[1 if agreed else 0 :]:
            why = "the key is there twice" if agreed else TWO_LABELS
            listing.reject(name_of(image.key), f"{why} ({same[0].path} and {same[-1].path})")


def _has_known_label(image: Labelled, classes: set[str], data: Data, listing: Listing) -> bool:
    tags = tags_of(image.label, data)
    unknown = [tag for tag in tags if tag not in classes]
    if not tags:
        listing.reject(name_of(image.key), NO_LABEL)
    elif unknown:
        cause = f"has the label {unknown[0]!r}, which data.classes does not list"
        listing.reject(name_of(image.key), cause)
    return bool(tags) and not unknown


def _in_order(labels: set[str]) -> tuple[str, ...]:
    numbers = {label: shortest(label) for label in labels}
    if all(number is not None for number in numbers.values()):
        return tuple(sorted(labels, key=lambda label: (Decimal(numbers[label] or 0), label)))
    return tuple(sorted(labels))


def _check_classes(used: set[str], classes: tuple[str, ...], data: Data) -> None:
    where = data.labels or data.images or data.source
    if not used:
        raise UserError(f"{where}: no labelled image found; set data.images=PATH, or another data.source")
    empty = [name for name in classes if name not in used]
    if empty:
        raise UserError(f"{where}: class {empty[0]!r} has no images; add some, or remove the class")
    if len(classes) < 2:
        raise UserError(f"{where}: only one class ({classes[0]!r}); a classifier needs at least two")


def _digest(images: list[Labelled], rejected: Sequence[Rejected]) -> str:
    sha = hashlib.sha256()
    for row in rejected:
        sha.update(f"{_text(row.key)}\0{_text(row.cause)}\n".encode())
    for image in images:
        sha.update(f"{image.key}\0{image.stamp}\0{image.group}\0{image.part}\n".encode())
    return sha.hexdigest()
