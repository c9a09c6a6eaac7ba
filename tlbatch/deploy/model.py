"""A model folder written by `tlbatch.export`, which needs neither the run nor a cluster."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import xxhash

from tlbatch.core.errors import UserError
from tlbatch.core.files import digest_file
from tlbatch.data.decode import Rgb, is_plain
from tlbatch.data.image_files import UnreadableImageError
from tlbatch.data.shards.encode import ShardImage, to_shard
from tlbatch.data.views import Views, training_views
from tlbatch.data.wide_pixels import NoRangeError
from tlbatch.deploy.graph import ExportModule
from tlbatch.deploy.record import RECORD, WEIGHTS, Exported
from tlbatch.model.build import build_classifier
from tlbatch.model.checkpoint import load_trained
from tlbatch.model.symmetries import apply_symmetries
from tlbatch.runs.records import load_record

_SQUARES = 32
"""Images per batch."""


class ImagePredictions(NamedTuple):
    """Predictions for a batch of images."""

    probabilities: npt.NDArray[np.float32]
    """(n, num_classes); NaN where an image could not be read."""
    errors: dict[int, str]
    """Reason by position of the image."""


class ExportedModel:
    """A classifier of image files.

    Images get the preprocessing of the stages shard, train and predict. Each image is treated as alone in its group.
    """

    def __init__(self, record: Exported, answering: ExportModule, views: Views, device: torch.device) -> None:
        self.record, self.answering = record, answering
        self._views, self._device = views, device

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> "ExportedModel":
        """Load a model from its folder; UserError if the folder is missing or a file in it has changed."""
        again = "export the run again: python -m tlbatch.export RUN FOLDER"
        missing = "name a folder that python -m tlbatch.export wrote"
        record = load_record(Exported, folder / RECORD, missing=missing, damaged=again)
        file = folder / WEIGHTS
        if not file.is_file() or digest_file(file) != record.files.get(WEIGHTS):
            raise UserError(f"{file}: missing or changed since its export; export the run or copy the file again")
        network, best_views = record.network, record.preprocessing.views
        model = build_classifier(network, len(record.classes), described_by=file)
        try:
            load_trained(model, file)
        except RuntimeError:
            raise UserError(f"{folder / RECORD}: describes another network than {WEIGHTS}; {again}") from None
        model.to(device)
        model.set_cut(network.phase[record.phase].cut, freeze_batch_norm=False)
        size, of_vectors = model.spec.size, network.head.view_mean
        views = training_views(network.train, size) if of_vectors else Views(size, best_views)
        symmetry = views.numbers if views.crop_scale == 1 else ()
        answering = ExportModule(model, symmetry=symmetry, of_vectors=of_vectors, temperature=record.temperature)
        return cls(record, answering, views, torch.device(device))

    @property
    def draws_crops(self) -> bool:
        """Whether views are random crops of the full image, so that its central square is not enough."""
        return self._views.crop_scale < 1

    def predict(self, files: Iterable[bytes], *, in_shard: bool = False) -> ImagePredictions:
        """Return the probabilities of image files.

        Parameters
        ----------
        files
            The bytes of each file.
        in_shard
            Whether they come from the shards of the run, already preprocessed, and not from the original files.
        """
        parts, num = [np.empty((0, len(self.record.classes)), np.float32)], 0
        errors: dict[int, str] = {}
        for part in self.batches(files, in_shard=in_shard):
            errors |= {num + place: why for place, why in part.errors.items()}
            parts.append(part.probabilities)
            num += len(part.probabilities)
        return ImagePredictions(np.concatenate(parts), errors)

    def batches(self, files: Iterable[bytes], *, in_shard: bool = False) -> Iterator[ImagePredictions]:
        """Predict as `predict` does, and yield the results batch by batch."""
        left = iter(files)
        while some := list(islice(left, max(1, _SQUARES // len(self._views.numbers)))):
            yield self._predict(some, in_shard=in_shard)

    @property
    def _drawn(self) -> tuple[int, ...]:
        """Views to decode; the symmetries of a square are computed on the device."""
        return self._views.numbers if self.draws_crops else (0,)

    def _predict(self, files: list[bytes], *, in_shard: bool) -> ImagePredictions:
        size = self._views.size
        errors: dict[int, str] = {}
        squares = np.zeros((len(self._drawn), len(files), size, size, 3), np.uint8)
        symmetry = np.zeros(squares.shape[:2], np.uint8)
        for place, data in enumerate(files):
            try:
                for number, (rgb, applied) in enumerate(self._read(data, in_shard=in_shard)):
                    squares[number, place], symmetry[number, place] = rgb, applied
            except UnreadableImageError as error:
                errors[place] = str(error)
        found = self._probabilities(torch.from_numpy(squares), torch.from_numpy(symmetry))
        for place in np.flatnonzero(~np.isfinite(found).all(axis=1)).tolist():
            errors.setdefault(place, "its probabilities are not finite")
        found[list(errors)] = np.nan
        return ImagePredictions(found, errors)

    def _read(self, data: bytes, *, in_shard: bool) -> list[tuple[Rgb, int]]:
        wanted = self.record.preprocessing
        if in_shard:
            stored, plain = data, is_plain(data)
        else:
            made = self._made(data)
            stored, plain = made.data, made.plain
        content = xxhash.xxh3_128_hexdigest(stored).encode()
        limits = wanted.value_range
        views = self._drawn
        return [self._views.read(stored, view, content=content, plain=plain, value_range=limits) for view in views]

    def _made(self, data: bytes) -> ShardImage:
        """Return an image as it would be in a shard of the run; UnreadableImageError if it cannot be read."""
        wanted = self.record.preprocessing
        try:
            return to_shard(
                data,
                resize=wanted.resize,
                steps=wanted.steps,
                max_pixels=wanted.max_pixels,
                value_range=wanted.value_range,
            )
        except NoRangeError as error:
            raise UnreadableImageError(f"{error}, as the model was not trained on such images") from None

    @torch.inference_mode()
    def _probabilities(self, squares: torch.Tensor, symmetry: torch.Tensor) -> npt.NDArray[np.float32]:
        squares = squares.to(self._device)
        if self.draws_crops:
            views = [apply_symmetries(some, how) for some, how in zip(squares, symmetry, strict=True)]
            found = self.answering.of_views(views)
        else:
            found = self.answering(squares[0])
        return np.asarray(found.float().cpu().numpy())
