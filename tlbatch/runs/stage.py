"""Run a stage once, record how it ended, and turn errors into exit codes."""

import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from filelock import FileLock, Timeout

from tlbatch.core.cli import EXIT_AGAIN, EXIT_USER_ERROR, command_parser
from tlbatch.core.errors import StoppedError, UserError
from tlbatch.core.files import place_named, remove_drafts, write_text
from tlbatch.runs.attempts import BEGAN, record_attempt
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.records import Failure, FailureKind, Marker, job_digest, load_record
from tlbatch.runs.run import Run
from tlbatch.runs.signals import stop_at_once
from tlbatch.runs.stages import StageName
from tlbatch.runs.world import World, accelerate_environment, read_world

log = logging.getLogger(__name__)
_LOST = re.compile(r"^Dist\w*Error|by peer|Timed out|timed out waiting|NCCL|gloo")
"""Messages of torch's collectives when another rank is gone."""
AGAIN = "TLBATCH_AGAIN"
"""Environment variable with the file that tells the batch script to requeue the job."""


def stage_main(stage: StageName, run: Callable[[Path], None], doc: str | None) -> None:
    """Run ``python -m tlbatch.<stage> RUN``."""
    parser = command_parser(stage, doc)
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder, as python -m tlbatch.submit printed it")
    leave(run_guarded(stage, run, parser.parse_args().run))


def run_guarded(stage: StageName, run: Callable[[Path], None], run_dir: Path) -> int:
    """Run a stage and return its exit code; a failure is recorded with its cause in the run folder."""
    try:
        world = read_world(os.environ)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_USER_ERROR
    os.environ.update(accelerate_environment(world) | {BEGAN: str(time.time())})
    level, rank = (logging.INFO, "") if world.is_main else (logging.WARNING, f" rank {world.rank}:")
    form = f"%(asctime)s {stage}{rank} %(message)s"
    logging.basicConfig(level=level, format=form, datefmt="%H:%M:%S", stream=sys.stdout, force=True)
    try:
        stop_at_once()  # a pending warning arrives here
        with place_named():
            run(run_dir)
    except StoppedError as error:
        record_failure(stage, world, run_dir, str(error), "stopped")
        return _ask_for_requeue(error, world)
    except UserError as error:
        record_failure(stage, world, run_dir, str(error), "user")
        sys.stderr.write(f"error: {error}\n")
        return EXIT_USER_ERROR
    except Exception as error:  # noqa: BLE001 (the outermost)
        message = f"{type(error).__name__}: {error}".splitlines()[0]
        is_lost = world.world_size > 1 and _LOST.search(f"{type(error).__name__} {error}")
        if is_lost:
            message = f"{world.node} rank {world.rank}: another rank is gone ({message}); see its log, or its node"
        record_failure(stage, world, run_dir, message, "lost" if is_lost else "crash")
        traceback.print_exc()
        return 1
    return 0


def _ask_for_requeue(stopped: StoppedError, world: World) -> int:
    """Ask the batch script around this stage to requeue the job; without one, the exit code says so."""
    again = os.environ.get(AGAIN)
    if not stopped.again or again is None:
        sys.stderr.write(f"error: {stopped}\n")
        return EXIT_AGAIN if stopped.again else EXIT_USER_ERROR
    log.info("%s; progress was saved", stopped.what)
    if world.is_main:
        write_text(Path(again), stopped.what)
    return EXIT_AGAIN


def leave(code: int) -> NoReturn:
    """Exit with the code of a stage, unless a batch script has been asked to requeue the job.

    Under srun the first nonzero code gets the other ranks killed, and their codes win.
    """
    sys.exit(0 if code == EXIT_AGAIN and AGAIN in os.environ else code)


def record_failure(stage: StageName, world: World, run_dir: Path, message: str, kind: FailureKind) -> None:
    """Record why a rank of a stage failed."""
    paths = RunPaths(run_dir)
    if not paths.record.exists():
        return
    failure = Failure(stage=stage, rank=world.rank, message=message, kind=kind)
    try:
        failure.save(paths.failure(stage, world.rank))
    except (OSError, UserError) as error:
        log.warning("the cause could not be recorded in %s: %s", paths.folder, error)


def require_finished(stage: StageName, run: Run) -> Marker:
    """Return the marker of an earlier stage; refuse one that has not finished, or finished with another job."""
    done = load_record(Marker, run.paths.marker(stage), missing=f"run {stage} first: python -m tlbatch.{stage} RUN")
    if done.inputs.get("job") != job_digest(run.record):
        raise UserError(f"{run.paths.record}: {stage} finished here with another job; submit it as a new run")
    return done


def run_once(
    stage: StageName,
    paths: RunPaths,
    inputs: dict[str, str],
    world: World,
    work: Callable[[], dict[str, str] | None],
    *,
    is_there: bool = True,
) -> bool:
    """Do the work of a stage unless its marker exists; write the marker with the work's outputs last.

    If the results of a finished stage are not there any more, they are made again. A stage that has finished with other
    inputs is refused.

    Returns
    -------
    Whether the work was done just now.
    """
    marker = paths.marker(stage)
    if marker.exists() and not is_there:
        log.warning("the results of %s are gone: running it again", stage)
    elif marker.exists():
        done = load_record(Marker, marker, missing="run the stage again")
        changed = sorted(name for name in {**inputs, **done.inputs} if inputs.get(name) != done.inputs.get(name))
        if changed:
            raise UserError(
                f"{paths.folder}: {stage} finished here with another {' and '.join(changed)}; "
                "submit the job again for a new run folder"
            )
        log.info("already done, in %.0f s", done.seconds)
        return False
    if world.is_main:
        for old in [*paths.failures(stage), *paths.markers.glob(f"{stage}.again.*")]:
            old.unlink()
    start = time.monotonic()
    with _alone(stage, paths, world), record_attempt(stage, paths, world):
        outputs = work() or {}
    if world.is_main:
        seconds = time.monotonic() - start
        Marker(
            stage=stage, inputs=inputs, outputs=outputs, world_size=world.world_size, seconds=seconds,
            hosts=(world.nodes,),
        ).save(marker)  # fmt: skip
        log.info("finished in %.0f s", seconds)
    return True


@contextmanager
def _alone(stage: StageName, paths: RunPaths, world: World) -> Iterator[None]:
    """Let rank 0 lock the stage in this folder against other processes, and remove drafts that kills have left."""
    if not world.is_main:
        yield
        return
    paths.markers.mkdir(parents=True, exist_ok=True)
    lock = FileLock(paths.marker(stage).with_suffix(".lock"))
    try:
        held = lock.acquire(blocking=False)
    except Timeout:
        raise UserError(f"{paths.folder}: {stage} is already running here; wait for it, or cancel it") from None
    with held:
        for folder in paths.own_folders:
            remove_drafts(folder)
        yield
