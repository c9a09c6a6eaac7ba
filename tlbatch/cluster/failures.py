"""Why a run failed: its failure records, and the last lines of its logs."""

import re
import shlex
import sys
from pathlib import Path
from typing import get_args

from tlbatch.core.cli import EXIT_USER_ERROR
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.records import Failure, FailureKind, load_record
from tlbatch.runs.stages import StageName

_TAIL_LINES = 20
_TAIL_BYTES = 64 * 1024


def report_failure(stage: StageName, paths: RunPaths, job_id: str) -> int:
    """Print in one line why a stage ended without its marker, and return the exit code."""
    first, killed = cause_of(stage, paths), _killed_tasks(paths, job_id)
    if first is not None:
        also = f" ({killed})" if killed and first.kind == "lost" else ""
        sys.stderr.write(f"error: {stage}: {first.message}{also}\n")
        if first.kind in ("user", "stopped"):
            return EXIT_USER_ERROR
    else:
        sys.stderr.write(
            f"error: {stage}: ended without a result ({killed or 'killed, out of memory, or cancelled'}); its logs may "
            "say why\n"
        )
    sys.stderr.write(
        f"see the logs in {paths.logs}; then resume with python -m tlbatch.submit {shlex.quote(str(paths.folder))}\n"
    )
    if first is None:
        sys.stderr.write(
            "".join(f"{line}\n" for log in newest_logs(paths)[:1] for line in last_lines(log, _TAIL_LINES))
        )
    return 1


def _killed_tasks(paths: RunPaths, job_id: str) -> str:
    """Return what srun reported of failed tasks, e.g. "n2: task 1: Killed"; empty if nothing."""
    log = paths.logs / f"{job_id}_0_log.out"
    if not log.exists():
        return ""
    found = re.findall(r"^srun: error: (\S+: tasks? .*)$", "\n".join(last_lines(log, 100)), re.MULTILINE)
    return "; ".join(dict.fromkeys(found[:3]))


def newest_logs(paths: RunPaths) -> list[Path]:
    """Return the logs that are not empty: those of ranks, newest first, then those of batch scripts and local jobs."""
    logs = [log for log in paths.logs.glob("*") if log.name.endswith((".log", "_log.out")) and log.stat().st_size]
    return sorted(logs, key=lambda log: (log.suffix == ".log", log.stat().st_mtime_ns), reverse=True)


def cause_of(stage: StageName, paths: RunPaths) -> Failure | None:
    """Return the failure record of a stage; of several ranks, that of the one that most likely failed first.

    Raises UserError if a record cannot be read.
    """
    failures = [load_record(Failure, file, missing="run the stage again") for file in paths.failures(stage)]
    kinds = get_args(FailureKind)  # ranks that were stopped are seldom the cause
    return min(failures, key=lambda failure: (kinds.index(failure.kind), failure.rank), default=None)


def last_lines(log: Path, number: int) -> list[str]:
    """Return the last lines of a log."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        return file.read().decode(errors="replace").splitlines()[-number:]
