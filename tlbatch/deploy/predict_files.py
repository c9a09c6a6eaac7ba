"""Predictions of an exported model for image files, as CSV with one row per image."""

import csv
import io
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO

import torch

from tlbatch.core.errors import UserError
from tlbatch.core.files import atomic_file, plain_text
from tlbatch.core.typing import Floats
from tlbatch.data.sources.base import shown
from tlbatch.data.sources.files import is_image, walk, why_unread
from tlbatch.data.sources.listing import Listing
from tlbatch.deploy.model import ExportedModel
from tlbatch.distributed.process_group import keep_freed_memory
from tlbatch.runs.manifest import Rejected

_UNREAD = 1


def predict_files(folder: Path, images: Sequence[Path], table: Path | None) -> int:
    """Predict images with the model in a folder, write a CSV table and return the exit code.

    Parameters
    ----------
    images
        Files, or folders of files at any depth.
    table
        CSV file to write; None: standard output.

    Raises
    ------
    UserError
        When there are no images, or the folder holds no complete model.
    """
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    files, lost = image_files(images)
    model = ExportedModel.load(folder, "cuda" if torch.cuda.is_available() else "cpu")
    if not torch.cuda.is_available():
        keep_freed_memory()
    with atomic_file(table) if table else nullcontext(sys.stdout.buffer) as file:
        num_unread = write_image_predictions(model, files, lost, file)
    sys.stdout.buffer.flush()
    if num_unread:
        sys.stderr.write(f"{num_unread} of {len(files) + len(lost)} could not be read; see the column error\n")
    return _UNREAD if num_unread else 0


def image_files(images: Sequence[Path]) -> tuple[list[Path], list[Rejected]]:
    """Return the given files and the sorted image files below the given folders; and the folders that cannot be read.

    Raises UserError if there are no images.
    """
    files: list[Path] = []
    lost: list[Rejected] = []
    for path in images:
        if path.is_dir():
            listing = Listing()
            files += sorted(path / inner / name for inner, names in walk(path, is_image, listing) for name in names)
            lost += listing.rejected
            lost += [Rejected(key=shown(str(path / inner)), cause=why_unread(inner)) for inner in listing.unread]
        else:
            files.append(path)
    if not lost and not any(path.exists() for path in files):
        named = ", ".join(map(str, images[:3])) or "no paths given"
        raise UserError(f"no images found ({named}); name image files or folders of images")
    return files, lost


def write_image_predictions(
    model: ExportedModel, files: Sequence[Path], lost: Sequence[Rejected], table: BinaryIO
) -> int:
    """Write a row for each image, and return how many could not be read."""
    classes = model.record.classes
    table.write(_line(["image", "predicted", *(f"p_{name}" for name in classes), "error"]))
    num_unread = len(lost)
    nothing = [""] * (1 + len(classes))
    for file, probabilities, error in _predicted(model, files):
        values = [classes[int(probabilities.argmax())], *(f"{value:.6f}" for value in probabilities.tolist())]
        table.write(_line([shown(str(file)), *(nothing if error else values), error]))
        num_unread += bool(error)
    table.writelines(_line([one.key, *nothing, one.cause]) for one in lost)
    return num_unread


def _predicted(model: ExportedModel, files: Sequence[Path]) -> Iterator[tuple[Path, Floats, str]]:
    """Yield each file with its probabilities or an error."""
    unread: dict[int, str] = {}
    left = iter(enumerate(files))
    for part in model.batches(_read(files, unread)):
        for place, probabilities in enumerate(part.probabilities):
            at, file = next(left)
            yield file, probabilities, unread.get(at) or part.errors.get(place, "")


def _read(files: Sequence[Path], unread: dict[int, str]) -> Iterator[bytes]:
    """Yield the bytes of each file; if one cannot be read, yield empty bytes and note the error in ``unread``."""
    for place, file in enumerate(files):
        try:
            data = file.read_bytes()
        except OSError as error:
            data, unread[place] = b"", error.strerror or str(error)
        yield data


def _line(cells: Sequence[str]) -> bytes:
    """Return a line of CSV in which no text starts a formula and cells with line breaks are quoted."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(map(plain_text, cells))
    return text.getvalue().removesuffix("\r\n").encode(errors="backslashreplace") + b"\n"
