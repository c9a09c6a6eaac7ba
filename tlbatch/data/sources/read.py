"""Read the source of a job."""

import logging
from pathlib import Path
from typing import assert_never

import numpy as np
import numpy.typing as npt

from tlbatch.config.data import Data
from tlbatch.config.job import Job
from tlbatch.core.errors import UserError
from tlbatch.core.files import digest_file, digest_of
from tlbatch.data.shards.staging import stage_urls
from tlbatch.data.sources.acs import from_acs
from tlbatch.data.sources.base import Source
from tlbatch.data.sources.folders import from_folders
from tlbatch.data.sources.idx import from_idx
from tlbatch.data.sources.listing import Listing
from tlbatch.data.sources.make import make_source
from tlbatch.data.sources.table import from_csv, words_by_image
from tlbatch.data.sources.tars import from_tars
from tlbatch.data.synthetic.write import make_once
from tlbatch.runs.workspace import staged_folder, synthetic_folder

log = logging.getLogger(__name__)


def read_images(job: Job, *, workers: int) -> Source:
    """List the images of a job with their labels, after drawing synthetic images or downloading tars if needed.

    Raises UserError if they cannot be listed.
    """
    data = job.data
    if data.source == "synthetic":
        drawn = synthetic_folder(job)
        make_once(drawn, data.synthetic, workers=workers)
        if data.synthetic.kind == "garments":
            return read_source(data, drawn / "images", drawn / "garments.csv")
        return read_source(data, drawn / "train", drawn / "trainLabels.csv")
    images = data.images or staged_folder(job)
    if data.urls:
        stage_urls(data.urls, images)
    source = read_source(data, images, data.labels, job.workspace)
    for rejected in source.rejected:
        log.warning("left out: %s: %s", rejected.key, rejected.cause)
    return source


def digest_lists(data: Data) -> str:
    """Return a digest of the files that list given splits."""
    return digest_of({name: digest_file(file) for name, file in data.split.files.items()})


def read_source(data: Data, images: Path, labels: Path | None, workspace: Path | None = None) -> Source:
    """List the images of a source with their labels; a workspace below them is left out.

    Raises UserError if the folder or file is missing or malformed, more than ``data.max_rejected`` images are unusable,
    a class is empty, or there are fewer than two classes.
    """
    if not images.is_dir():
        raise UserError(f"{images}: no such folder of images; set data.images=PATH")
    listing = Listing(workspace)
    match data.source:
        case "idx":
            pixels: dict[str, npt.NDArray[np.uint8]] = {}
            return make_source(from_idx(images, pixels), data, listing, pixels=pixels)
        case "tars":
            return make_source(from_tars(images, data, listing), data, listing)
        case "acs":
            words = None if labels is None else words_by_image(data, labels)
            return make_source(from_acs(images, data, words, listing), data, listing)
        case "csv" | "synthetic":
            if labels is None:
                raise UserError("data.labels: is required with a table of labels; set data.labels=FILE")
            return make_source(from_csv(images, labels, data, listing), data, listing)
        case "folders":
            classes: dict[str, None] = {}
            found = from_folders(images, data, listing, classes)
            return make_source(found, data, listing, folders=classes)
        case _:
            assert_never(data.source)
