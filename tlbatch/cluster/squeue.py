"""What SLURM's controller knows of jobs: one squeue for all, scontrol for those that have ended; no accounting."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain

_TIMEOUT_S = 60
_WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"})
_ENDED = frozenset({
    "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL", "PREEMPTED",
    "REVOKED",
})  # fmt: skip
_FORMAT = "%i|%T|%S|%e|%j|%r"


@dataclass(frozen=True)
class QueuedJob:
    """A line of squeue."""

    id: str
    """Job id; an array element as A_a."""
    state: str
    reason: str
    name: str
    start: float | None
    """Unix seconds."""
    end: float | None
    """When the job ended, or will end at the latest."""

    @property
    def is_waiting(self) -> bool:
        """Whether the job waits to start or restart."""
        return self.state in _WAITING

    @property
    def is_running(self) -> bool:
        """Whether the job holds nodes."""
        return not self.is_waiting and not self.has_ended

    @property
    def has_ended(self) -> bool:
        """Whether the job has ended; SLURM forgets it some minutes later."""
        return self.state in _ENDED


class Squeue:
    """Queries SLURM as rarely as possible."""

    def __init__(self) -> None:
        self.complaint: str | None = None
        """Why squeue did not answer the last query."""
        self._ends: dict[str, str] = {}

    def query(self, jobs: Iterable[str]) -> Mapping[str, tuple[QueuedJob, ...]] | None:
        """Return all that squeue knows of some jobs, by the id that was asked for; None if it does not answer."""
        self.complaint, wanted = None, sorted(set(jobs))
        if not wanted:
            return {}
        if shutil.which("squeue") is None:
            self.complaint = "squeue: not found on PATH"
            return None
        options = ["--noheader", "--array", "--states=all", f"--format={_FORMAT}", f"--jobs={','.join(wanted)}"]
        done = _answer(["squeue", *options])
        if done is None or (done.returncode and "Invalid job id" not in done.stderr):  # one that it has forgotten
            errors = done.stderr.strip().splitlines() if done else []
            self.complaint = f"squeue: {errors[-1] if errors else 'no answer'}"
            return None
        found = list(chain.from_iterable(map(_parsed, done.stdout.splitlines())))
        of_array: dict[str, list[QueuedJob]] = {}
        for job in found:
            for name in {job.id, job.id.partition("_")[0]}:
                of_array.setdefault(name, []).append(job)
        return {job: tuple(of_array.get(job, ())) for job in wanted}

    def final_state(self, job: str) -> str:
        """Return how a job ended if SLURM remembers, e.g. "OUT_OF_MEMORY, exit code 0:125"; asked once per job."""
        if job not in self._ends:
            done = _answer(["scontrol", "--oneliner", "show", "job", job]) if shutil.which("scontrol") else None
            self._ends[job] = "" if done is None or done.returncode else _end_in(done.stdout)
        return self._ends[job]


def _answer(command: list[str]) -> subprocess.CompletedProcess[str] | None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SQUEUE_")}
    try:
        return subprocess.run(
            command, env=environment | {"SLURM_TIME_FORMAT": "%s"}, capture_output=True, text=True, check=False,
            timeout=_TIMEOUT_S,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None


def _parsed(line: str) -> list[QueuedJob]:
    fields = line.strip().split("|", 5)
    if len(fields) < 6:
        return []
    job, state, start, end, name, reason = fields
    return [QueuedJob(job, state, "" if reason == "None" else reason, name, _seconds(start), _seconds(end))]


def _seconds(text: str) -> float | None:
    return float(text) if text.isdecimal() else None


def _end_in(shown: str) -> str:
    """Return how a job ended; for an array, an element that did not complete."""
    ends = []
    for line in shown.splitlines():
        fields = dict(re.findall(r"(?:^|\s)(JobState|Reason|ExitCode)=(\S*)", line))
        if fields.get("JobState") in _ENDED - {"COMPLETED"}:
            why = [fields["JobState"]]
            why += [fields["Reason"]] if fields.get("Reason", "None") not in ("None", fields["JobState"]) else []
            why += [f"exit code {fields['ExitCode']}"] if fields.get("ExitCode", "0:0") != "0:0" else []
            ends.append(", ".join(why))
    return ends[-1] if ends else ""
