"""Turn a validated job into a run folder, checking everything that can be checked before anything runs."""

import os
import shlex
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from tlbatch import __version__
from tlbatch.cluster.container import Mount, check_container, command_of, image_digest, mounts_of
from tlbatch.config.data import Data
from tlbatch.config.job import Job
from tlbatch.config.load import with_slurm
from tlbatch.config.slurm import Slurm
from tlbatch.core.errors import UserError
from tlbatch.core.files import absolute, atomic_folder, digest_file, to_json
from tlbatch.runs.paths import RunPaths, weights_file
from tlbatch.runs.permissions import claim_logs, folder_mode
from tlbatch.runs.provenance import checkout_commit
from tlbatch.runs.records import Best, RunRecord, load_record
from tlbatch.runs.run import Run


def resolve(job: Job) -> RunRecord:
    """Make all paths absolute, name the run, and find the files that its stages need.

    Raises UserError if images, labels or weights are missing.
    """
    data = _data(job.data)
    files = {key: absolute(file) for key, file in job.report.files.items()}
    report = job.report.model_copy(update=files)
    report.check_files()
    workspace = absolute(job.workspace)
    slurm = _slurm(job.slurm)
    model = job.model
    if model.weights == "library":
        model = model.model_copy(
            update={"weights": str(_library_weights(model.backbone, workspace / "weights", slurm))}
        )
    weights = weights_file(model.weights)
    if weights is not None and not model.weights.startswith("package:"):
        model = model.model_copy(update={"weights": str(weights)})
    head = job.head
    if head.weights:
        other = absolute(Path(head.weights))
        load_record(Best, RunPaths(other).best, missing="head.weights must be the folder of a trained run")
        head = head.model_copy(update={"weights": str(other)})
    now = datetime.now(UTC)
    run = job.run or f"{job.name}-{now:%Y%m%d-%H%M%S}"
    return RunRecord(
        run=run,
        job=job.model_copy(
            update={"slurm": slurm}
            | {"data": data, "model": model, "head": head, "workspace": workspace, "run": run, "report": report}
        ),
        weights_digest=digest_file(weights) if weights else None,
        images=_images(slurm),
        tlbatch_version=__version__,
        commit=checkout_commit(),
        created=now.isoformat(timespec="seconds"),
    )


def _data(data: Data) -> Data:
    """Return the section data with absolute paths, all of which must exist."""
    data = data.model_copy(
        update={
            "images": absolute(data.images) if data.images else None,
            "labels": absolute(data.labels) if data.labels else None,
            "split": data.split.model_copy(
                update={"files": {name: absolute(file) for name, file in data.split.files.items()}}
            ),
        }
    )
    if data.images and not data.images.is_dir():
        raise UserError(f"data.images: no such folder {data.images}; set data.images=PATH")
    if data.labels and not data.labels.is_file():
        raise UserError(f"data.labels: no such file {data.labels}; set data.labels=PATH")
    for name, file in data.split.files.items():
        if not file.is_file():
            raise UserError(f"data.split.files.{name}: no such file {file}; set data.split.files.{name}=FILE")
    return data


def _slurm(slurm: Slurm) -> Slurm:
    """Return the section slurm with absolute paths, after checking that the program and the mounts exist."""
    update: dict[str, object] = {}
    if slurm.notify is not None:
        notify = absolute(slurm.notify)
        if not (notify.is_file() and os.access(notify, os.X_OK)):
            raise UserError(f"slurm.notify: {notify} is not executable; chmod +x it, or set slurm.notify=PATH")
        update["notify"] = notify
    if slurm.runtime not in ("none", "podman-hpc"):
        update["container"] = f"{slurm.runtime}:{absolute(Path(slurm.image))}"
    mounts = {text: absolute(Path(text.removesuffix(":rw"))) for text in slurm.mounts}
    for text, path in mounts.items():
        if not path.exists():
            raise UserError(f"slurm.mounts: no such file or folder {path}; fix or remove {text!r}")
    update["mounts"] = tuple(f"{path}{':rw' if text.endswith(':rw') else ''}" for text, path in mounts.items())
    return slurm.model_copy(update=update)


def _images(slurm: Slurm) -> tuple[str, ...]:
    """Return the digest of the container image, if there is one."""
    return tuple(filter(None, [image_digest(slurm)]))


def _library_weights(backbone: str, folder: Path, slurm: Slurm) -> Path:
    """Return the library's own weights of a backbone, downloaded once.

    A subprocess downloads them, so that this process need not import torch.
    """
    file = folder / f"{backbone.replace(':', '-')}.safetensors"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        arguments = ["-m", "tlbatch.model", backbone, "--fetch", str(file)]
        command = command_of(slurm, [Mount(folder, writable=True)], arguments)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no cause given"])[-1]
            raise UserError(last.removeprefix("error: "))
    return file


def new_run(record: RunRecord) -> Run:
    """Return a new run; refuse a name that is taken, or that cannot be stored or passed to SLURM."""
    run = Run(record, _paths_of(record))
    _check_names(run)
    check_container(run.job.slurm, mounts_of([record]))
    if run.folder.exists():
        raise UserError(
            f"{run.folder}: a run of this name exists already; choose another with run=NAME, or resume it: "
            f"python -m tlbatch.submit {shlex.quote(str(run.folder))}"
        )
    return run


def _paths_of(record: RunRecord) -> RunPaths:
    return RunPaths(record.job.workspace / "runs" / record.run)


def _check_names(run: Run) -> None:
    if set("%\\") & set(str(run.folder)) or not str(run.folder).isprintable():
        raise UserError(
            f"workspace: {str(run.job.workspace)!r} contains %, a backslash or a control character, which SLURM "
            "interprets in the names of logs; choose another with workspace=PATH"
        )
    try:
        to_json(run.record.model_dump(mode="json")).encode()
    except UnicodeEncodeError as error:
        line = error.object[: error.end].splitlines()[-1].strip()
        raise UserError(f"{line!r} is not valid UTF-8, as job.json must be; rename it, or choose another") from None


def open_run(folder: Path, overrides: Sequence[str]) -> Run:
    """Open an existing run to resume it, with overrides of its section ``slurm``.

    Raises UserError if the folder is no run, or an override is of another section.
    """
    run = Run.load_submitted(absolute(folder))
    slurm = _slurm(with_slurm(run.job, overrides).slurm) if overrides else run.job.slurm
    again = run.record.resubmitted(slurm, _images(slurm))
    check_container(slurm, mounts_of([again]))
    if again != run.record:
        again.save(run.paths.record)
    return Run(again, run.paths)


def existing_run(record: RunRecord, *, save: bool) -> Run | None:
    """Return the existing run of this name if its job is the same; the new slurm section replaces its own."""
    paths = _paths_of(record)
    if not paths.record.exists():
        return None
    found = paths.load_submitted()
    jobs = [one.job.model_dump(mode="json", exclude={"slurm", "workspace", "run"}) for one in (found, record)]
    if jobs[0] != jobs[1] or found.weights_digest != record.weights_digest:
        return None
    updated = found.resubmitted(record.job.slurm, record.images)
    if save and updated != found:
        updated.save(paths.record)
    return Run(updated, paths)


def run_of_allocation(allocation: str, record: RunRecord) -> Run | None:
    """Return the run that an earlier attempt of the SLURM job created for this job, if any."""
    for file in sorted((record.job.workspace / "runs").glob("*/job.json"), reverse=True):
        try:
            run = Run.load_submitted(file.parent)
        except UserError:
            continue
        if run.record.allocation == allocation and run.job.name == record.job.name:
            return run
    return None


def make_run(record: RunRecord) -> Run:
    """Create the run folder and save the resolved job in it."""
    run = new_run(record)
    with atomic_folder(run.folder, mode=folder_mode(private=record.job.private)) as draft:
        record.save(RunPaths(draft).record)
        claim_logs(RunPaths(draft))
    return run
