"""The run that predicts tonight's test images with a champion that was tested on others."""

import shutil

from tlbatch.cluster.create import make_run
from tlbatch.core.errors import UserError
from tlbatch.core.files import digest_file
from tlbatch.promotion.registry import Champion, Registry
from tlbatch.runs.manifest import Manifest
from tlbatch.runs.paths import RunPaths, weights_file
from tlbatch.runs.records import Best, RunRecord, load_record


def manifest_of(paths: RunPaths) -> Manifest:
    """What the set of a run is.

    Raises
    ------
    UserError
        When it is not there.
    """
    folder = paths.set_paths(paths.load_submitted().job)
    return load_record(Manifest, folder.manifest, missing="run shard first: python -m tlbatch.shard RUN")


def manifest_of_champion(registry: Registry, champion: Champion) -> Manifest:
    """What the set of a champion was in its night.

    Raises
    ------
    UserError
        When it is not there.
    """
    return load_record(Manifest, registry.index_of(champion).manifest, missing="python -m tlbatch.registry verify")


def rescoring_paths(paths: RunPaths) -> RunPaths:
    """Where it lies."""
    return RunPaths(paths.folder.with_name(f"{paths.folder.name}.champion"))


def rescoring_of(record: RunRecord, paths: RunPaths, champion: Champion) -> RunRecord | None:
    """What it is of; None where the champion was tested on these images, or does not know these classes.

    Its job is the champion's, pre-processing included, on tonight's images. The pre-trained weights only serve to find
    cached activations: where they are gone, the checkpoint stands for them; it has the head as well.

    Parameters
    ----------
    record
        Of tonight's run, whose shard stage has finished.

    Raises
    ------
    UserError
        When a run is not whole.
    """
    registry = Registry.of(record.job)
    own, theirs, other = manifest_of(paths), manifest_of_champion(registry, champion), registry.run_of(champion)
    if own.classes != theirs.classes or own.test_digest == theirs.test_digest:
        return None
    before = other.load()
    kept = before.job.data
    data = record.job.data.model_copy(
        update={"resize": kept.resize, "preprocess": kept.preprocess, "max_pixels": kept.max_pixels}
    )
    job = before.job.model_copy(
        update={key: getattr(record.job, key) for key in ("workspace", "private", "slurm", "report", "nightly")}
        | {"data": data, "run": rescoring_paths(paths).folder.name, "figures": False}
        | {"head": before.job.head.model_copy(update={"weights": ""})}  # where it began, of a run that may be gone
    )
    digest = before.weights_digest
    if digest is not None and not _is_there(job.model.weights, digest):
        checkpoint = other.checkpoints / _weights_of(other)
        model = job.model.model_copy(update={"weights": str(checkpoint), "match": "name"})
        job = job.model_copy(update={"model": model})
        digest = digest_file(checkpoint)
    return record.model_copy(
        update={"run": job.run, "job": job, "weights_digest": digest, "checkpoint_of": str(other.folder)}
    )


def make_rescoring(record: RunRecord, paths: RunPaths, champion: Champion) -> RunPaths | None:
    """The run, made where it is not there or is of another champion; None where there is none to make.

    Raises
    ------
    UserError
        As in `rescoring_of`.
    """
    again, other = rescoring_of(record, paths, champion), rescoring_paths(paths)
    if again is None:
        return None
    if other.record.exists() and other.load_submitted().checkpoint_of != again.checkpoint_of:
        shutil.rmtree(other.folder)
    if not other.record.exists():
        make_run(again)
    return other


def _is_there(weights: str, digest: str) -> bool:
    try:
        file = weights_file(weights)
    except UserError:
        return False
    return file is not None and digest_file(file) == digest


def _weights_of(run: RunPaths) -> str:
    missing = "the champion's run is not whole; python -m tlbatch.registry verify"
    return load_record(Best, run.best, missing=missing).weights
