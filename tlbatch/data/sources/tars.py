"""WebDataset tars."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from tlbatch.config.data import Data
from tlbatch.core.errors import UserError
from tlbatch.core.text import is_missing, trimmed
from tlbatch.data.shards.tar_reader import Member, group_samples, scan_tar
from tlbatch.data.sources.base import Found, key_of
from tlbatch.data.sources.files import ENDINGS, ending_of, walk
from tlbatch.data.sources.listing import Listing


def from_tars(folder: Path, data: Data, listing: Listing) -> Iterator[Found]:
    """Yield the samples of WebDataset tars; the name of a tar up to its first dash names their split."""
    paths = [folder / inner / name for inner, names in walk(folder, _is_tar, listing) for name in names]
    if not paths:
        raise UserError(f"{folder}: no .tar below it; set data.images to the folder of the tars")
    for path in paths:
        try:
            members, damages = scan_tar(path)
        except OSError as error:
            listing.reject(str(path), f"unreadable ({error.strerror})")
            continue
        samples, more = group_samples(members)
        for damage in (*damages, *more):
            listing.reject(f"{path}: {damage.name}", damage.cause)
        with path.open("rb") as tar:
            for name, parts in samples:
                yield from _sample(path, tar, name, parts, data, listing)


def _is_tar(_: str, name: str) -> bool:
    return ending_of(name) == ".tar"


def _sample(
    path: Path, tar: IO[bytes], name: str, parts: dict[str, Member], data: Data, listing: Listing
) -> Iterator[Found]:
    image = next((member for ending, member in parts.items() if f".{ending}" in ENDINGS), None)
    fields: dict[str, object] = {}
    if "json" in parts:
        try:
            fields = dict(json.loads(_payload(tar, parts["json"])))
        except (ValueError, TypeError, RecursionError) as error:
            listing.reject(key_of(name), f"{path}: json cannot be read ({error})")
            return
    label = fields.get(data.label_column)
    if label is None:
        plain = parts.get("cls") or (parts.get("txt") if data.tag_separator else None)
        label = _payload(tar, plain).decode(errors="replace").strip() if plain else None
    if image is None or label is None:
        lacks = "image" if image is None else f"cls, and no json with {data.label_column}"
        listing.reject(key_of(name), f"{path}: no {lacks}")
        return
    if isinstance(label, dict) or (isinstance(label, list) and not data.tag_separator):
        kind = "an object" if isinstance(label, dict) else "a list; set data.tag_separator, or write one class"
        listing.reject(key_of(name), f"{path}: {data.label_column} in the json is {kind}")
        return
    if isinstance(label, list):
        split = [tag for tag in map(str, label) if data.tag_separator in tag]
        if split:
            cause = f"{path}: the tag {split[0]!r} holds data.tag_separator"
            listing.reject(key_of(name), cause)
            return
        label = data.tag_separator.join(map(str, label))
    if data.split.column and fields.get(data.split.column) in (None, ""):
        listing.reject(key_of(name), f"{path}: nothing in the json field {data.split.column}")
        return
    group = _value(fields.get(data.group_column)) if data.group_column else ""
    part = str(fields[data.split.column]) if data.split.column else path.name.split("-")[0]
    label = str(label) if label in data.classes else _value(label)
    yield Found(name, str(path), label, group=group, part=part, offset=image.offset, size=image.size)


def _value(value: object) -> str:
    """Return a value of a json file as text; empty if it says that there is none."""
    text = "" if value is None else trimmed(str(value))
    return "" if is_missing(text) else text


def _payload(tar: IO[bytes], member: Member) -> bytes:
    tar.seek(member.offset)
    return tar.read(min(member.size, 1 << 20))
