"""Watching a run: its logs as they grow, its end, and what it scored or why it failed."""

import json
import os
import re
import select
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from tlbatch.job.cli import EXIT_USER_ERROR
from tlbatch.job.paths import RunPaths, leaderboard
from tlbatch.job.progress import load_progress
from tlbatch.job.records import Failure, FailureKind, RunRecord, StageName, load_record

_POLL_S = 2.0
_SETTLE_S = 30.0
_TAIL_LINES = 20
_TAIL_BYTES = 64 * 1024
_BAR = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"
SYNTHETIC = "synthetic images: the scores say that the software works, nothing about real ones"


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


def report_failure(stage: StageName, paths: RunPaths, job_id: str) -> int:
    """Say in one line why a stage ended without its marker; the exit code."""
    first, words = cause_of(stage, paths), _last_words(paths, job_id)
    if first is not None:
        beside = f" ({words})" if words and first.kind == "lost" else ""
        sys.stderr.write(f"error: {stage}: {first.message}{beside}\n")
        if first.kind in ("user", "stopped"):
            return EXIT_USER_ERROR
    else:
        sys.stderr.write(
            f"error: {stage}: ended without a result ({words or 'killed, out of memory, or cancelled'}); its logs may "
            "say why\n"
        )
    sys.stderr.write(
        f"see the logs in {paths.logs}; then go on with python -m tlbatch.submit {shlex.quote(str(paths.folder))}\n"
    )
    if first is None:
        sys.stderr.write(
            "".join(f"{line}\n" for log in newest_logs(paths)[:1] for line in last_lines(log, _TAIL_LINES))
        )
    return 1


def _last_words(paths: RunPaths, job_id: str) -> str:
    """What srun said of tasks that ended badly, e.g. "n2: task 1: Killed"; empty where it said nothing."""
    log = paths.logs / f"{job_id}_0_log.out"
    if not log.exists():
        return ""
    found = re.findall(r"^srun: error: (\S+: tasks? .*)$", "\n".join(last_lines(log, 100)), re.MULTILINE)
    return "; ".join(dict.fromkeys(found[:3]))


def newest_logs(paths: RunPaths) -> list[Path]:
    """The logs that hold anything: those of ranks, the newest first, then those of batch scripts and local jobs."""
    logs = [log for log in paths.logs.glob("*") if log.name.endswith((".log", "_log.out")) and log.stat().st_size]
    return sorted(logs, key=lambda log: (log.suffix == ".log", log.stat().st_mtime_ns), reverse=True)


def cause_of(stage: StageName, paths: RunPaths) -> Failure | None:
    """What a stage left that has failed; of several ranks the one that most likely was the first.

    Raises
    ------
    UserError
        When it cannot be read.
    """
    files = sorted(paths.marker(stage).parent.glob(f"{stage}.failed.*.json"))
    failures = [load_record(Failure, file, missing="run the stage again") for file in files]
    kinds = get_args(FailureKind)  # ranks that were stopped seldom are the cause
    return min(failures, key=lambda failure: (kinds.index(failure.kind), failure.rank), default=None)


def last_lines(log: Path, number: int) -> list[str]:
    """The end of a log."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        return file.read().decode(errors="replace").splitlines()[-number:]


def shown(value: float | None) -> str:
    """A score in four decimals."""
    return "undefined" if value is None else f"{value:.4f}"


def estimated(estimate: Mapping[str, float | None]) -> str:
    """A value and its interval."""
    if estimate["value"] is None or estimate["low"] is None or estimate["high"] is None:
        return shown(estimate["value"])
    return f"{estimate['value']:.4f} ({estimate['low']:.4f} to {estimate['high']:.4f})"


def print_scores(record: RunRecord, paths: RunPaths) -> None:
    """The end of a run: its scores, and where to read on."""
    report = json.loads(paths.report_json.read_text(encoding="utf-8"))
    ceilings = {ceiling["metric"]: ceiling for ceiling in report["ceilings"]}
    print()
    if report["synthetic"]:
        print(SYNTHETIC)
    for metric in ("accuracy", "quadratic_kappa"):
        if report["scores"][metric]["value"] is None and metric != report["metric"]:
            continue
        best = f"   best reachable with these labels {ceilings[metric]['score']:.4f}" if metric in ceilings else ""
        print(f"{metric:<16}{estimated(report['scores'][metric])}{best}")
    for name in ("edit_distance", "bleu", "mean_attribute") if report.get("tags") else ():
        print(f"{name:<16}{estimated(report['tags'][name])}")
    groups = "" if report["num_groups"] == report["n"] else f" of {report['num_groups']} groups"
    print(f"test images     {report['n']}{groups}")
    if report["strategy"]:
        chosen = report["strategy"]
        print(f"chosen          {chosen['chosen']}: {chosen['why']}")
        print(f"                {chosen['scenario']}: {chosen['scenario_why']}")
    if report["num_errors"]:
        print(f"not predicted   {report['num_errors']} test images could not be read, see predictions.csv")
    for pair, num in report["audit"]["across"].items():
        if num:
            print(f"leak            {num} images of {pair} too, or nearly: the scores are not to be trusted")
    print(f"report          {paths.report_page}")
    print(f"leaderboard     {leaderboard(record.job)}")
