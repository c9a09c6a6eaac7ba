"""The run that predicts tonight's test images with a champion that was tested on others."""

import shutil

from tlbatch.cluster.create import make_run
from tlbatch.core.errors import UserError
from tlbatch.core.files import digest_file
from tlbatch.promotion.records import Champion
from tlbatch.promotion.registry import Registry
from tlbatch.runs.manifest import Manifest
from tlbatch.runs.paths import RunPaths, weights_file
from tlbatch.runs.records import Best, RunRecord, load_record
from tlbatch.runs.run import Run

VERIFY = "check the champion with python -m tlbatch.registry FOLDER verify"
"""What to do about a missing file of a champion."""


def manifest_of_champion(registry: Registry, champion: Champion) -> Manifest:
    """Return the manifest of a champion's set of images, as kept in the registry; UserError if it is missing."""
    return load_record(Manifest, registry.index_of(champion).manifest, missing=VERIFY)


def rescoring_paths(paths: RunPaths) -> RunPaths:
    """Return the paths of the champion's run on the test images of a run."""
    return RunPaths(paths.folder.with_name(f"{paths.folder.name}.champion"))


def rescoring_of(run: Run, champion: Champion) -> RunRecord | None:
    """Return its record; None if the champion was tested on these images or has other classes.

    The job is the champion's, with its preprocessing, on tonight's images. The pre-trained weights are only needed to
    find cached activations; if they are missing, the checkpoint replaces them, which also holds the head.

    Parameters
    ----------
    run
        Tonight's run, whose shard stage has finished.

    Raises
    ------
    UserError
        When a run is incomplete.
    """
    registry = Registry.of(run.job)
    own, theirs, other = run.load_manifest(), manifest_of_champion(registry, champion), registry.run_of(champion)
    if own.classes != theirs.classes or own.test_digest == theirs.test_digest:
        return None
    before = other.load()
    kept = before.job.data
    update = {"resize": kept.resize, "preprocess": kept.preprocess, "max_pixels": kept.max_pixels}
    if own.limits != theirs.limits:
        update["value_range"] = theirs.limits
    data = run.job.data.model_copy(update=update)
    job = before.job.model_copy(
        update={key: getattr(run.job, key) for key in ("workspace", "private", "slurm", "report", "nightly")}
        | {"data": data, "run": rescoring_paths(run.paths).folder.name, "figures": False}
        | {"head": before.job.head.model_copy(update={"weights": ""})}  # initial weights, from a run that may be gone
    )
    digest = before.weights_digest
    if digest is not None and not _is_there(job.model.weights, digest):
        checkpoint = other.checkpoints / load_record(Best, other.best, missing=VERIFY).weights
        model = job.model.model_copy(update={"weights": str(checkpoint), "weights_entry": "", "match": "name"})
        job = job.model_copy(update={"model": model})
        digest = digest_file(checkpoint)
    return run.record.model_copy(
        update={"run": job.run, "job": job, "weights_digest": digest, "checkpoint_of": str(other.folder)}
    )


def make_rescoring(run: Run, champion: Champion) -> Run | None:
    """Return that run, after creating it if it is missing or of another champion; None if none is needed.

    Raises UserError as in `rescoring_of`.
    """
    again, other = rescoring_of(run, champion), rescoring_paths(run.paths)
    if again is None:
        return None
    if other.record.exists() and other.load_submitted().checkpoint_of != again.checkpoint_of:
        shutil.rmtree(other.folder)
    if not other.record.exists():
        make_run(again)
    return Run.load_submitted(other.folder)


def _is_there(weights: str, digest: str) -> bool:
    try:
        file = weights_file(weights)
    except UserError:
        return False
    return file is not None and digest_file(file) == digest
