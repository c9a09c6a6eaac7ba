"""The images that a job names, wherever they are."""

import logging

from tlbatch.data.listing import read_source
from tlbatch.data.phantom.writing import make_once
from tlbatch.data.sources import Source
from tlbatch.data.staging import stage_urls
from tlbatch.job.config import Job
from tlbatch.job.files import digest_file, digest_of
from tlbatch.job.images import Data
from tlbatch.job.paths import phantom_folder, staged_folder

log = logging.getLogger(__name__)


def read_images(job: Job, *, workers: int) -> Source:
    """List the images of a job with their labels; draw synthetic ones, and fetch tars, where they are not there yet.

    Raises
    ------
    UserError
        When they cannot be listed.
    """
    data = job.data
    if data.source == "phantom":
        drawn = phantom_folder(job)
        make_once(drawn, data.phantom, workers=workers)
        if data.phantom.kind == "garments":
            return read_source(data, drawn / "images", drawn / "garments.csv")
        return read_source(data, drawn / "train", drawn / "trainLabels.csv")
    images = data.images or staged_folder(job)
    if data.urls:
        stage_urls(data.urls, images)
    source = read_source(data, images, data.labels)
    for rejected in source.rejected:
        log.warning("left out: %s: %s", rejected.key, rejected.cause)
    return source


def digest_lists(data: Data) -> str:
    """Of the lists of a given split."""
    return digest_of({name: digest_file(file) for name, file in data.split.files.items()})
