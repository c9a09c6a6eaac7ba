"""WebDataset tars."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from tlbatch.config.data import Data
from tlbatch.core.errors import UserError
from tlbatch.core.text import counted, is_missing, trimmed
from tlbatch.data.shards.tar_reader import COMPRESSED, Member, scan_tar
from tlbatch.data.sources.base import Found
from tlbatch.data.sources.files import ending_of, given_split, walk
from tlbatch.data.sources.listing import Listing
from tlbatch.data.sources.tar_samples import Sample, group_samples, image_part, json_part, label_part, other_images

_UNPACK = {
    ".tar.gz": "gunzip", ".tgz": "gunzip", ".tar.bz2": "bunzip2", ".tbz2": "bunzip2", ".tar.xz": "unxz", ".txz": "unxz",
    ".tar.zst": "unzstd", ".tzst": "unzstd", ".tar.lz4": "unlz4",
}  # fmt: skip
"""What unpacks a compressed tar, by its extension."""


@dataclass
class _Seen:
    """What the tars of a set hold, as far as it was not obvious."""

    names: set[str] = field(default_factory=set)
    repeated: list[str] = field(default_factory=list)
    """Keys of samples whose names are in an earlier tar too."""
    dotted: list[str] = field(default_factory=list)
    """Names that end at another dot than the first."""
    unused: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Number of samples by the extension of the image that is read and of one that is not."""
    folders: set[str] = field(default_factory=set)
    """First folders in the names of samples."""
    num_by_folder: int = 0
    """Number of samples whose split is such a folder."""
    num_bools: int = 0


def from_tars(folder: Path, data: Data, listing: Listing) -> Iterator[Found]:
    """Yield the samples of WebDataset tars; the name of a tar up to its first dash names their split.

    If that is no name of a split, the first folder in the names of the members may be.
    """
    paths = _tars(folder, listing)
    seen = _Seen()
    for path in paths:
        try:
            members, damages = scan_tar(path)
        except OSError as error:
            listing.reject(str(path), f"unreadable ({error.strerror})")
            continue
        if any(damage.cause == COMPRESSED for damage in damages):
            raise UserError(
                f"{path}: is compressed, so it cannot be read in place; unpack it first, or with data.urls in a pipe"
            )
        samples, more = group_samples(members, to_first_dot="." in data.image_part)
        for damage in (*damages, *more):
            listing.reject(f"{path}: {damage.name}", damage.cause)
        prefix = path.relative_to(folder).with_suffix("").as_posix() + "/"
        with path.open("rb") as tar:
            for name, parts in samples:
                yield from _sample(path, tar, (name, parts), data, listing, seen, prefix=prefix)
    _check_splits(folder, paths, seen, data, listing)
    _tell(seen, listing)


def _tars(folder: Path, listing: Listing) -> list[Path]:
    """Return the tars below a folder, with numbers in their names in numeric order."""
    paths = [folder / inner / name for inner, names in walk(folder, _is_tar, listing) for name in names]
    for path in paths:
        if tool := _tool_of(path.name):
            raise UserError(
                f"{path}: a compressed tar cannot be read in place; unpack it first: {tool} {path.name}, and keep the "
                ".tar alone"
            )
    if not paths:
        raise UserError(f"{folder}: no .tar below it; set data.images to the folder of the tars")
    return sorted(paths, key=lambda path: re.sub(r"\d+", lambda found: found[0].zfill(20), str(path)))


def _tool_of(name: str) -> str:
    return next((tool for ending, tool in _UNPACK.items() if name.lower().endswith(ending)), "")


def _is_tar(_: str, name: str) -> bool:
    return ending_of(name) == ".tar" or bool(_tool_of(name))


def _sample(
    path: Path, tar: IO[bytes], sample: Sample, data: Data, listing: Listing, seen: _Seen, *, prefix: str
) -> Iterator[Found]:
    name, parts = sample
    if name not in seen.names:
        prefix = ""
    seen.names.add(name)
    part, lost = image_part(sample, data)
    for one, cause in lost:
        listing.reject(one, cause if one != name else f"{path}: {cause}")
    if not part:
        return
    fields: dict[str, object] = {}
    about = json_part(parts, part, data)
    if about is not None:
        try:
            fields = dict(json.loads(_payload(tar, about)))
        except (ValueError, TypeError, RecursionError) as error:
            listing.reject(name, f"{path}: json cannot be read ({error})")
            return
    label = fields.get(data.label_column)
    if label is None and (plain := label_part(parts, part, data)) is not None:
        label = _payload(tar, plain).decode(errors="replace").strip()
    cause = _cause(label, fields, data)
    if cause:
        listing.reject(name, f"{path}: {cause}")
        return
    if isinstance(label, list):
        label = data.tag_separator.join(map(str, label))
    seen.num_bools += isinstance(label, bool)
    group = _value(fields.get(data.group_column)) if data.group_column else ""
    label = str(label) if label in data.classes else _value(label)
    _note(sample, part, seen, prefix=prefix)
    split = str(fields[data.split.column]) if data.split.column else _split_of(path, name, data, seen)
    image = parts[part]
    yield Found(name, str(path), label, group=group, part=split, offset=image.offset, size=image.size, prefix=prefix)


def _cause(label: object, fields: dict[str, object], data: Data) -> str:
    """Return why a sample cannot be used, given its label and the fields of its json; empty if it can."""
    if label is None and data.label_column in fields:
        return f"{data.label_column} in the json is null"
    if label is None:
        have = f" (it has {', '.join(map(str, fields))}; set data.label_column=NAME)" if fields else ""
        return f"no cls, and no json with {data.label_column}{have}"
    if isinstance(label, dict):
        return f"{data.label_column} in the json is an object"
    if isinstance(label, list) and not data.tag_separator:
        return f"{data.label_column} in the json is a list; set data.tag_separator, or write one class"
    if isinstance(label, list):
        split = [tag for tag in map(str, label) if data.tag_separator in tag]
        if split:
            return f"the tag {split[0]!r} holds data.tag_separator"
    if data.split.column and fields.get(data.split.column) in (None, ""):
        return f"nothing in the json field {data.split.column}"
    return ""


def _split_of(path: Path, name: str, data: Data, seen: _Seen) -> str:
    """Return what a tar calls the split of a sample."""
    of_tar, of_member = path.name.split("-")[0], name.partition("/")[0] if "/" in name else ""
    seen.folders.add(of_member)
    names = data.split.names
    if given_split(of_tar, names) is None and of_member and given_split(of_member, names) is not None:
        seen.num_by_folder += 1
        return of_member if data.split.method == "given" else of_tar
    return of_tar


def _check_splits(folder: Path, paths: Sequence[Path], seen: _Seen, data: Data, listing: Listing) -> None:
    """Refuse, or say, that members or tars are named as splits which the job does not read."""
    if data.split.method == "given":
        if seen.num_by_folder and not (data.split.files or data.split.column):
            number = counted(seen.num_by_folder, "image")
            listing.note(f"the split of {number} is the first folder of the names in the tars")
        return
    members, tars = (_splits(names) for names in (seen.folders, {path.name.split("-")[0] for path in paths}))
    if members:
        raise UserError(
            f"{folder}: {', '.join(members)}, the folders in its tars, look like splits; set data.split.method=given, "
            "or rename them"
        )
    if tars:
        listing.warn(f"the tars are named as splits ({', '.join(tars)}); only data.split.method=given keeps to them")


def _splits(names: set[str]) -> list[str]:
    """Return the names that mean splits, if training is among them and another."""
    splits = {name: split for name in sorted(names) if (split := given_split(name, {}))}
    return list(splits) if "train" in splits.values() and len(set(splits.values())) > 1 else []


def _note(sample: Sample, image: str, seen: _Seen, *, prefix: str) -> None:
    name, parts = sample
    if prefix:
        seen.repeated.append(prefix + name)
    if "." in name.rpartition("/")[2]:
        seen.dotted.append(name)
    seen.unused.update((image, other) for other in other_images(parts, image))


def _tell(seen: _Seen, listing: Listing) -> None:
    if seen.dotted:
        number = counted(len(seen.dotted), "sample")
        listing.note(f"{number} with more dots in the name, such as {seen.dotted[0]}: the name ends at the last one")
    if seen.repeated:
        number = counted(len(seen.repeated), "sample")
        listing.warn(f"{number} named as one in an earlier tar: the tar is put before, as in {seen.repeated[0]}")
    for (image, other), count in seen.unused.items():
        listing.warn(f"{counted(count, 'sample')} with several images: {image} is read, {other} is not")
    if seen.num_bools:
        listing.note(f"{counted(seen.num_bools, 'label')} true or false in the json: the classes are True and False")


def _value(value: object) -> str:
    """Return a value of a json file as text; empty if it says that there is none."""
    text = "" if value is None else trimmed(str(value))
    return "" if is_missing(text) else text


def _payload(tar: IO[bytes], member: Member) -> bytes:
    tar.seek(member.offset)
    return tar.read(min(member.size, 1 << 20))
