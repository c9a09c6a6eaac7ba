"""Follow a run: its logs as they grow, and its end."""

import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tlbatch.cluster.failures import report_failure
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.progress import load_progress
from tlbatch.runs.records import StageName

_POLL_S = 2.0
_SETTLE_S = 30.0
_BAR = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"


class Bar:
    """A line at the bottom of a terminal that says how far a run is; nothing where the output goes elsewhere."""

    def __init__(self, paths: RunPaths) -> None:
        self._paths = paths
        self._began = time.time()
        self._bar: Any = None

    def print(self, line: str) -> None:
        """Print a line above it."""
        if self._bar is not None:
            self._bar.clear()
        print(line, flush=True)

    def draw(self) -> None:
        """Show what the run told last, if it has told anything since this began."""
        told = load_progress(self._paths) if sys.stdout.isatty() else None
        if told is None or told.time < self._began:
            return
        if self._bar is None:
            from tqdm import tqdm  # noqa: PLC0415 (of no use in a log file)

            self._bar = tqdm(total=told.total, bar_format=_BAR, file=sys.stdout, leave=False, dynamic_ncols=True)
        self._bar.total, self._bar.n = told.total, min(told.done, told.total)
        self._bar.set_description_str(" ".join(filter(None, [told.stage, told.where])), refresh=False)
        self._bar.set_postfix_str(", ".join(filter(None, [*told.pace, told.metric])), refresh=False)
        self._bar.refresh()

    def close(self) -> None:
        """Take the line away."""
        if self._bar is not None:
            self._bar.close()


class Follower:
    """Shows what has been added to a log since it was last asked, and how far the run is."""

    def __init__(self, paths: RunPaths, pattern: str) -> None:
        """Begin to follow.

        Parameters
        ----------
        pattern
            Of the names of the logs, one for each life; the newest is followed.
        """
        self._paths, self._pattern = paths, pattern
        self._log: Path | None = None
        self._shown = 0
        self._bar = Bar(paths)

    def show(self) -> None:
        """Print the new whole lines, but not submitit's own, nor errors, which are reported at the end."""
        logs = sorted(self._paths.logs.glob(self._pattern), key=lambda log: log.stat().st_mtime_ns)
        if not logs:
            return
        if self._log is not None and logs[-1] != self._log:
            self._print_rest(self._log)
            self._shown = 0
        self._log = logs[-1]
        self._print_rest(self._log)
        self._bar.draw()

    def _print_rest(self, log: Path) -> None:
        with log.open("rb") as file:
            file.seek(self._shown)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._shown += len(whole)
        for line in whole.decode(errors="replace").splitlines():
            if not line.startswith(("submitit ", "error: ")):
                self._bar.print(line)

    def end(self) -> None:
        """Show the rest."""
        self.show()
        self._bar.close()


def run_step(command: Sequence[str], paths: RunPaths, environment: Mapping[str, str]) -> None:
    """Run a command to its end; on a terminal its lines go above a bar that says how far the run is."""
    if not sys.stdout.isatty():
        subprocess.run(command, env=environment, check=False)
        return
    bar, rest = Bar(paths), b""
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as step:
        assert step.stdout is not None
        while (new := _read_within(step.stdout.fileno(), _POLL_S)) != b"":
            *lines, rest = (rest + (new or b"")).split(b"\n")
            for line in lines:
                bar.print(line.decode(errors="replace"))
            bar.draw()
    bar.close()
    if rest:
        print(rest.decode(errors="replace"), flush=True)


def _read_within(descriptor: int, seconds: float) -> bytes | None:
    """What can be read, None where nothing came in time, and nothing at the end."""
    ready, _, _ = select.select([descriptor], [], [], seconds)
    return os.read(descriptor, 65536) if ready else None


def wait_for_chain(jobs: Mapping[StageName, str], paths: RunPaths) -> int:
    """Wait for the stages of a SLURM chain, showing the log of rank 0 of each; the exit code.

    Asks squeue only, so it works without accounting.
    """
    for stage, job_id in jobs.items():
        follower = Follower(paths, f"{stage}-{job_id}.*-rank0.log")
        while _in_queue(job_id):
            follower.show()
            time.sleep(_POLL_S)
        _settle(paths.marker(stage))
        follower.end()
        if not paths.marker(stage).exists():
            return report_failure(stage, paths, job_id)
    return 0


def _in_queue(job_id: str) -> bool:
    """Whether SLURM still holds the job; a controller that does not answer says nothing about it."""
    done = subprocess.run(
        ["squeue", "--noheader", "--jobs", job_id, "--format=%T"], capture_output=True, text=True, check=False
    )
    if done.returncode and "Invalid job id" not in done.stderr:
        return True
    return bool(done.stdout.strip()) and done.stdout.strip() != "COMPLETED"


def _settle(marker: Path) -> None:
    """A marker written on another node can appear a little later on a network file system."""
    deadline = time.monotonic() + _SETTLE_S
    failed = f"{marker.stem}.failed.*.json"
    while not marker.exists() and not list(marker.parent.glob(failed)) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
