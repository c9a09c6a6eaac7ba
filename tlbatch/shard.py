"""Write images and labels to WebDataset tars, with an index and a manifest."""

import logging
import os
import shutil
from functools import partial
from pathlib import Path

from filelock import FileLock

from tlbatch.core.files import DRAFT_LASTS_S, digest_of, remove_drafts, write_text
from tlbatch.data.build_index import refuse_other_classes, write_audited_index
from tlbatch.data.shards.store import read_store
from tlbatch.data.shards.upgrade import reading_of, upgrade_sidecars
from tlbatch.data.shards.writer import indexed, plan_shards, write_chunks
from tlbatch.data.sources.read import digest_lists, read_images
from tlbatch.data.sources.table import label_columns
from tlbatch.data.value_range import KnownRange
from tlbatch.runs.progress import ProgressReporter
from tlbatch.runs.run import Run
from tlbatch.runs.stage import run_once, stage_main
from tlbatch.runs.workspace import SetPaths, data_digest, set_folder
from tlbatch.runs.world import read_world

log = logging.getLogger(__name__)


def run(run_dir: Path, share: tuple[int, int] | None = None) -> None:
    """Bring the run's set up to date: shard new images, audit, and write the index that the run will read.

    With a share (number of an array task, number of tasks), write only that share of the shards, and no index.
    """
    run, world = Run.load_submitted(run_dir), read_world(os.environ)
    job, paths = run.job, run.paths
    folder = set_folder(job)
    folder.mkdir(parents=True, exist_ok=True)
    source = read_images(job, workers=world.num_threads)
    upgrade_sidecars(folder, source, workers=world.num_threads)
    job.check_order(source.classes)
    refuse_other_classes(job.data, folder, source)
    job.report.check(source.classes)
    job.nightly.check(source.classes, tuple(job.report.questions))
    if job.report.subgroups and job.data.labels:
        label_columns(job.data, job.data.labels, job.report.subgroups, source.columns)
    if share is not None:
        chunks = plan_shards(job, source, read_store(folder, only=indexed(folder)))
        reporter = ProgressReporter(paths, world, "shard", saves=share[0] == 0)
        tell = partial(reporter.update, unit="images", where=f"share {share[0] + 1} of {share[1]}")
        write_chunks(job, source, folder, chunks[share[0] :: share[1]], tell, workers=world.num_threads)
        write_text(paths.share(share[0]), "")
        return
    inputs = {"source": source.digest, "data": data_digest(job), "splits": digest_lists(job.data)}

    def work() -> dict[str, str]:
        for place in (folder, folder.parent):  # a newer draft may be in use by another task
            remove_drafts(place, older_s=DRAFT_LASTS_S)
        chunks = plan_shards(job, source, read_store(folder))
        tell = partial(ProgressReporter(paths, world, "shard").update, unit="images", where="new images")
        unusable = write_chunks(job, source, folder, chunks, tell, workers=world.num_threads)
        known = KnownRange(job, source, workers=world.num_threads)
        store = read_store(folder)
        rows = store.find(source.images)
        reading = reading_of(store.traits[rows[rows >= 0]], known)
        lost = [one.image.key for one in unusable if one.passing]
        index = SetPaths(folder, digest_of([inputs, lost, *([reading] if reading else [])])[:12])
        if index.manifest.is_file():
            log.info("using the index %s", index.index_folder)
        else:
            shutil.rmtree(index.index_folder, ignore_errors=True)
            write_audited_index(job, source, index, store, unusable, known, paths)
            log.info("wrote the index %s", index.index_folder)
        return {"index": index.index}

    there = not paths.marker("shard").exists() or run.set_paths.manifest.exists()
    with FileLock(folder / ".lock"):
        run_once("shard", paths, inputs, world, work, is_there=there)


if __name__ == "__main__":
    stage_main("shard", run, __doc__)
