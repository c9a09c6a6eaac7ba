"""Images and labels in containers: IDX files, and WebDataset tars."""

import gzip
import json
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from tlbatch.data.archive import Member, group_samples, scan_tar
from tlbatch.data.sources import Found, key_of
from tlbatch.data.walk import ENDINGS, walk
from tlbatch.job.errors import UserError
from tlbatch.job.images import Data
from tlbatch.job.records import Rejected

_MOST_PACKED = 1032
"""How far gzip can pack."""


def from_idx(folder: Path, pixels: dict[str, npt.NDArray[np.uint8]]) -> Iterator[Found]:
    """Pairs ``<part>-images-idx3-ubyte`` and ``<part>-labels-idx1-ubyte``, gzipped or not."""
    files = sorted(folder.glob("*-images-idx3-ubyte*"))
    if not files:
        raise UserError(f"{folder}: no *-images-idx3-ubyte.gz; set data.images to the folder of the IDX files")
    for file in files:
        part = file.name.split("-images-")[0]
        beside = file.with_name(file.name.replace("-images-idx3-", "-labels-idx1-"))
        images, labels = _read_idx(file, ndim=3), _read_idx(beside, ndim=1)
        if len(images) != len(labels):
            raise UserError(f"{beside}: {len(labels)} labels for {len(images)} images; fetch the pair again")
        pixels[str(file)] = images
        for number, label in enumerate(labels.tolist()):
            yield Found(f"{part}/{number:06d}", str(file), str(label), part=part, offset=number, size=0)


def _read_idx(path: Path, *, ndim: int) -> npt.NDArray[np.uint8]:
    """Unsigned bytes of an IDX file, whose header is 0, 0, 8, ndim and the big-endian sizes (LeCun, MNIST)."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(4 + 4 * ndim)
            if header[:4] != bytes((0, 0, 8, ndim)) or len(header) < 4 + 4 * ndim:
                raise UserError(f"{path}: not an IDX file of {ndim} dimensions of bytes; fetch it again")
            shape = np.frombuffer(header, ">u4", offset=4).astype(np.int64)
            wanted = math.prod(shape.tolist())
            if not 0 < wanted <= path.stat().st_size * _MOST_PACKED:
                raise UserError(f"{path}: damaged (it cannot hold the {wanted} bytes of its header); fetch it again")
            data = file.read(wanted + 1)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; put it beside the other half of its pair") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: damaged ({error}); fetch it again") from None
    if len(data) != wanted:
        more = "more" if len(data) > wanted else "fewer"
        raise UserError(f"{path}: damaged ({more} bytes than its header says); fetch it again")
    return np.frombuffer(data, np.uint8).reshape(shape)


def from_tars(folder: Path, data: Data, rejected: list[Rejected]) -> Iterator[Found]:
    """Samples of WebDataset tars; the name of a tar up to its first dash is what the source calls their split."""
    paths = [folder / inner / name for inner, names in walk(folder, {".tar"}, rejected) for name in names]
    if not paths:
        raise UserError(f"{folder}: no .tar below it; set data.images to the folder of the tars")
    for path in paths:
        try:
            members, damages = scan_tar(path)
        except OSError as error:
            rejected.append(Rejected(key=str(path), cause=f"unreadable ({error.strerror})"))
            continue
        samples, more = group_samples(members)
        rejected.extend(Rejected(key=f"{path}: {damage.name}", cause=damage.cause) for damage in (*damages, *more))
        with path.open("rb") as tar:
            for name, parts in samples:
                yield from _sample(path, tar, name, parts, data, rejected)


def _sample(
    path: Path, tar: IO[bytes], name: str, parts: dict[str, Member], data: Data, rejected: list[Rejected]
) -> Iterator[Found]:
    image = next((member for ending, member in parts.items() if f".{ending}" in ENDINGS), None)
    fields: dict[str, object] = {}
    if "json" in parts:
        try:
            fields = dict(json.loads(_payload(tar, parts["json"])))
        except (ValueError, TypeError, RecursionError) as error:
            rejected.append(Rejected(key=key_of(name), cause=f"{path}: json cannot be read ({error})"))
            return
    label = fields.get(data.label_column)
    if label is None:
        plain = parts.get("cls") or (parts.get("txt") if data.tag_separator else None)
        label = _payload(tar, plain).decode(errors="replace").strip() if plain else None
    if image is None or label is None:
        lacks = "image" if image is None else f"cls, and no json with {data.label_column}"
        rejected.append(Rejected(key=key_of(name), cause=f"{path}: no {lacks}"))
        return
    if isinstance(label, list):
        split = [tag for tag in map(str, label) if data.tag_separator and data.tag_separator in tag]
        if split:
            cause = f"{path}: the tag {split[0]!r} holds data.tag_separator"
            rejected.append(Rejected(key=key_of(name), cause=cause))
            return
        label = (data.tag_separator or " ").join(map(str, label))
    for column in filter(None, (data.group_column, data.split.column)):
        if fields.get(column) in (None, ""):
            rejected.append(Rejected(key=key_of(name), cause=f"{path}: nothing in the json field {column}"))
            return
    group = str(fields[data.group_column]) if data.group_column else ""
    part = str(fields[data.split.column]) if data.split.column else path.name.split("-")[0]
    yield Found(name, str(path), str(label), group=group, part=part, offset=image.offset, size=image.size)


def _payload(tar: IO[bytes], member: Member) -> bytes:
    tar.seek(member.offset)
    return tar.read(min(member.size, 1 << 20))
