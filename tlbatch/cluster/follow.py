"""Follow a run: show its logs as they grow, and wait for its end."""

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
from tlbatch.runs.stages import StageName

_POLL_S = 2.0
_SETTLE_S = 30.0
_BAR = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"


class Bar:
    """A progress bar at the bottom of a terminal; nothing if the output goes elsewhere."""

    def __init__(self, paths: RunPaths) -> None:
        self._paths = paths
        self._began = time.time()
        self._bar: Any = None

    def print(self, line: str) -> None:
        """Print a line above the bar."""
        if self._bar is not None:
            self._bar.clear()
        print(line, flush=True)

    def draw(self) -> None:
        """Show the latest progress of the run, if there is any since this bar was created."""
        progress = load_progress(self._paths) if sys.stdout.isatty() else None
        if progress is None or progress.time < self._began:
            return
        if self._bar is None:
            from tqdm import tqdm  # noqa: PLC0415 (of no use in a log file)

            self._bar = tqdm(total=progress.total, bar_format=_BAR, file=sys.stdout, leave=False, dynamic_ncols=True)
        self._bar.total, self._bar.n = progress.total, min(progress.done, progress.total)
        self._bar.set_description_str(" ".join(filter(None, [progress.stage, progress.where])), refresh=False)
        self._bar.set_postfix_str(", ".join(filter(None, [*progress.pace, progress.metric])), refresh=False)
        self._bar.refresh()

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()


class Follower:
    """Shows what has been added to a log since the last call, and the progress of the run."""

    def __init__(self, paths: RunPaths, pattern: str) -> None:
        """Start to follow the newest of the logs whose names match the pattern, one for each attempt."""
        self._paths, self._pattern = paths, pattern
        self._log: Path | None = None
        self._shown = 0
        self._bar = Bar(paths)

    def show(self) -> None:
        """Print the new complete lines, except submitit's own and errors, which are reported at the end."""
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
        """Show the rest and close the bar."""
        self.show()
        self._bar.close()


def run_step(command: Sequence[str], paths: RunPaths, environment: Mapping[str, str]) -> None:
    """Run a command to its end; on a terminal its lines go above a progress bar."""
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
    """Read what arrives within some seconds; None if nothing did, empty at the end of the file."""
    ready, _, _ = select.select([descriptor], [], [], seconds)
    return os.read(descriptor, 65536) if ready else None


def wait_for_chain(jobs: Mapping[StageName, str], paths: RunPaths) -> int:
    """Wait for the stages of a SLURM chain, showing the log of rank 0 of each, and return the exit code.

    It queries squeue only, so it works without accounting.
    """
    for stage, job_id in jobs.items():
        follower = Follower(paths, f"{stage}-{job_id}.*-rank0.log")
        while _in_queue(job_id):
            follower.show()
            time.sleep(_POLL_S)
        _settle(stage, paths)
        follower.end()
        if not paths.marker(stage).exists():
            return report_failure(stage, paths, job_id)
    return 0


def _in_queue(job_id: str) -> bool:
    """Return whether SLURM still holds the job; without an answer from the controller, assume that it does."""
    done = subprocess.run(
        ["squeue", "--noheader", "--jobs", job_id, "--format=%T"], capture_output=True, text=True, check=False
    )
    if done.returncode and "Invalid job id" not in done.stderr:
        return True
    return bool(done.stdout.strip()) and done.stdout.strip() != "COMPLETED"


def _settle(stage: StageName, paths: RunPaths) -> None:
    """Wait for a marker or a failure written on another node, which can appear late on a network file system."""
    deadline = time.monotonic() + _SETTLE_S
    while not paths.marker(stage).exists() and not paths.failures(stage) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
