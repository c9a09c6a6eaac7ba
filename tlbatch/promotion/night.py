"""One nightly run: find new images and labels, retrain, test, and promote or keep the champion."""

import itertools
import shlex
import shutil
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from tlbatch.cluster import job_arrays, launch
from tlbatch.cluster.create import make_run
from tlbatch.cluster.failures import cause_of
from tlbatch.cluster.follow import wait_for_chain
from tlbatch.cluster.launch import Target
from tlbatch.cluster.results import print_scores
from tlbatch.cluster.squeue import Squeue
from tlbatch.core.cli import EXIT_AGAIN
from tlbatch.core.errors import UserError
from tlbatch.core.files import digest_of
from tlbatch.data.index import read_index
from tlbatch.data.sources.read import digest_lists, read_images
from tlbatch.promotion.lease import LeaseHolder
from tlbatch.promotion.records import Event, Night, Pending
from tlbatch.promotion.registry import Registry
from tlbatch.promotion.rescoring import VERIFY, make_rescoring, rescoring_paths
from tlbatch.promotion.retention import wrong_files
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.records import Best, RunRecord, job_digest, load_record
from tlbatch.runs.run import Run
from tlbatch.runs.stages import StageName, stages_of

_POLL_S = 10.0
_COMPARED = ("key", "group", "label", "tags", "split", "content")
"""Columns of the index on which training depends."""


def is_active(job: str) -> bool | None:
    """Return whether a SLURM job has not ended; None if SLURM does not answer."""
    found = Squeue().query([job])
    return None if found is None else any(not one.has_ended for one in found[job])


def hold_night(record: RunRecord, registry: Registry, before: LeaseHolder | None, where: Target) -> int:
    """Run one night and return its exit code."""
    began = time.monotonic()
    if before is not None:
        print(f"took over the registry lock, whose holder is gone ({before})", flush=True)
    asked = job_digest(record)
    seen = digest_of([read_images(record.job, workers=1).digest, digest_lists(record.job.data), asked])
    pending = registry.pending()
    if pending is not None and pending.seen != seen:
        why = "images, labels or job have changed since it began; its shards and cached activations are reused"
        _note(registry, "given up", pending.run, why)
        registry.night_file.unlink()
        pending = None
    if pending is None:
        last = next((night for night in reversed(registry.history()) if night.seen), None)
        if last is not None and last.seen == seen:
            _note(registry, "nothing new", None, f"as on {last.time}")
            print(f"nothing new since {last.time} ({time.monotonic() - began:.1f} s)", flush=True)
            return 0
        pending = Pending(run=record.run, seen=seen, asked=asked, began=datetime.now(UTC).isoformat(timespec="seconds"))
        pending.save(registry.night_file)
    else:
        print(f"resuming the night that began {pending.began}", flush=True)
    paths = RunPaths(record.job.workspace / "runs" / pending.run)
    if not paths.record.exists():
        make_run(_begun(record, registry, pending.run))
    own = paths.load_submitted().resubmitted(record.job.slurm, record.images)
    own.save(paths.record)
    return _work(Run(own, paths), registry, pending, where)


def _begun(record: RunRecord, registry: Registry, run: str) -> RunRecord:
    """Return the record of a night's run with its initial weights."""
    job = record.job.model_copy(update={"run": run})
    record = record.model_copy(update={"run": run, "job": job})
    champion = registry.champion()
    if champion is None or job.nightly.init_from == "pretrained":
        return record
    other = registry.run_of(champion)
    before = other.load().job
    cuts = [(data.split, data.group_column, data.group_pattern) for data in (job.data, before.data)]
    if cuts[0] != cuts[1]:  # a training image of one may be a test image of the other
        print("the champion was trained on another split: this night starts from the pre-trained weights", flush=True)
        return record
    best = load_record(Best, other.best, missing=VERIFY)
    update: dict[str, object] = {
        "model": job.model.model_copy(update={"weights": str(other.checkpoints / best.weights), "match": "name"})
    }
    heads = [one.head.model_copy(update={"weights": ""}) for one in (job, before)]
    is_trained_on = not (job.chooses or job.phase[0].fit)
    if heads[0] == heads[1] and job.objective == before.objective and is_trained_on:
        update["head"] = job.head.model_copy(update={"weights": str(other.folder)})
    return record.model_copy(update={"job": job.model_copy(update=update), "weights_digest": best.digest})


def _work(run: Run, registry: Registry, pending: Pending, where: Target) -> int:
    """Run the rest of the night; a failure is noted in the history, and a damaged champion is named as its cause."""
    try:
        code = 0 if run.paths.marker("shard").exists() else _run(run, where, ("shard",))
        alike = None if code else _night_alike(run, registry, pending)
        if alike is not None:
            return _end_alike(run.paths, registry, pending, alike)
        code = code or _stages(run, registry, where)
    except UserError as error:
        cause = _broken(registry, run.paths) or str(error)
        _note(registry, "failed", run.name, cause)
        raise UserError(cause) from None
    if code == EXIT_AGAIN:
        return code
    if code:
        broken = _broken(registry, run.paths)
        _note(registry, "failed", run.name, broken or _cause(run))
        if broken:
            raise UserError(broken)
        return code
    registry.night_file.unlink(missing_ok=True)
    print(f"night's page    {registry.page(run.name)}", flush=True)
    return 0


def _night_alike(run: Run, registry: Registry, pending: Pending) -> Night | None:
    """Return the previous night if images, labels, splits and job are those of this run, whatever the file times."""
    history = registry.history()
    last = next((night for night in reversed(history) if night.index), None)
    if last is None or last.asked != pending.asked or run.paths.marker("train").exists():
        return None
    file = Path(last.index or "") / "index.npy"
    if not file.exists() or any(night.run == pending.run for night in history):
        return None
    now, then = read_index(run.set_paths.index_file), read_index(file)
    return last if all(np.array_equal(now[column], then[column]) for column in _COMPARED) else None


def _end_alike(paths: RunPaths, registry: Registry, pending: Pending, alike: Night) -> int:
    """End a night whose files differ only in their times, and remove its run."""
    why = f"only file times have changed, the images are those of {alike.time}"
    _note(registry, "nothing new", None, why, seen=pending.seen)
    shutil.rmtree(paths.folder)
    registry.night_file.unlink()
    print(f"nothing new: {why}", flush=True)
    return 0


def _stages(run: Run, registry: Registry, where: Target) -> int:
    """Run the remaining stages, then the champion on the same test images, then the decision."""
    code = _run(run, where)
    if code == 0:
        print_scores(run)
        champion = registry.champion()
        other = make_rescoring(run, champion) if champion and champion.run != run.name else None
        if other is not None:
            code = _run(other, where)
    return code or _run(run, where, ("promote",))


def _cause(run: Run) -> str:
    """Return why a stage of the night has failed, if it left a message."""
    stages: tuple[StageName, ...] = (*stages_of(run.job), "promote")
    for paths, stage in itertools.product((run.paths, rescoring_paths(run.paths)), stages):
        failure = cause_of(stage, paths)
        if failure is not None and not paths.marker(stage).exists():
            return f"{stage}: {failure.message}"
    return "see its log; the next night resumes it"


def _broken(registry: Registry, paths: RunPaths) -> str:
    """Return what is wrong with the champion of a tested run, with the ways out; empty if nothing is."""
    champion = registry.champion()
    if champion is None or champion.run == paths.folder.name or not paths.marker("reduce").exists():
        return ""
    wrong = wrong_files(registry, champion)
    if not wrong:
        return ""
    ways = [f"python -m tlbatch.registry {shlex.quote(str(registry.folder))} rollback"] if champion.previous else []
    ways.append(f"python -m tlbatch.promote {shlex.quote(str(paths.folder))} --override REASON")
    return f"champion {champion.number} is damaged: {wrong[0]}; {', or '.join(ways)}, then run again"


def _run(run: Run, where: Target, stages: Sequence[StageName] = ()) -> int:
    """Run all or some stages of a run on the chosen target, and return the exit code."""
    if where != "chain":
        return launch.run_and_wait(run, where, stages)
    # Jobs of a night that was killed while they were queued.
    while run.paths in (jobs := job_arrays.active_jobs([run])):
        print(f"job {jobs[run.paths]:>8}  is still queued or running", flush=True)
        time.sleep(_POLL_S)
    return wait_for_chain(launch.submit_chain(run, stages), run.paths)


def _note(registry: Registry, event: Event, run: str | None, why: str, *, seen: str | None = None) -> None:
    champion = registry.champion()
    now = datetime.now(UTC).isoformat(timespec="seconds")
    number = champion.number if champion else None
    registry.note(Night(time=now, event=event, run=run, champion=number, reasons=(why,), seen=seen))
