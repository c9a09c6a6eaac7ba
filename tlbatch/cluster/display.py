"""Display the table of runs on a terminal, in a log file or as JSON."""

import json
import shutil
import sys
import time
from collections.abc import Sequence

from tlbatch.cluster.run_files import RunFiles, read_run_files
from tlbatch.cluster.run_state import Status, describe, unreadable
from tlbatch.cluster.squeue import Squeue
from tlbatch.core.errors import UserError
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.progress import rate, span

_MOVED_S = 30.0
"""Seconds after which a log file gets a line where only numbers have changed."""
_DETAILED = 5
"""Failed runs that are explained at most."""
NO_RUNS = "no run is active or has finished recently"
_HEADER = ("run", "stage", "state", "where", "done", "images/s", "left", "metric", "restarts", "GPU-hours")


def survey(runs: Sequence[RunPaths], squeue: Squeue, now: float, *, named: bool) -> list[Status]:
    """Return the status of each run, with a single query to SLURM for all of them.

    A run that cannot be read is an error if it was named, and listed as unreadable otherwise.
    """
    files: list[RunFiles | Status] = []
    for paths in runs:
        try:
            files.append(read_run_files(paths))
        except UserError as error:
            if named:
                raise
            files.append(unreadable(paths, error))
    queue = squeue.query(job for one in files if isinstance(one, RunFiles) for job in one.jobs)
    return [describe(one, queue, squeue, now) if isinstance(one, RunFiles) else one for one in files]


class Screen:
    """A table that is redrawn in place."""

    def __init__(self) -> None:
        self._num_lines = 0

    def show(self, found: list[Status]) -> None:
        """Draw the table, cut to the width and height of the terminal."""
        size = shutil.get_terminal_size()
        lines = [line[: size.columns - 1] for line in table(found)]
        if len(lines) > size.lines - 1:
            lines = [*lines[: size.lines - 2], f"and {len(lines) - size.lines + 2} more runs"]
        up = f"\x1b[{self._num_lines}F" if self._num_lines else ""
        sys.stdout.write(f"{up}\x1b[J" + "".join(f"{line}\n" for line in lines))
        sys.stdout.flush()
        self._num_lines = len(lines)


class Lines:
    """A line for a run whenever its state changes, and now and then when only numbers have changed."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._shown: dict[str, tuple[object, float, str]] = {}

    def show(self, found: list[Status]) -> None:
        """Print a line for each run that has changed."""
        now = time.monotonic()
        for one in found:
            key = (one.stage, one.state, one.why.split(" ")[0], one.where, one.metric, one.restarts)
            text = status_json(one) if self._as_json else line(one)
            before, when, shown = self._shown.get(one.folder, (None, 0.0, ""))
            if key != before or (text != shown and now - when > _MOVED_S):
                self._shown[one.folder] = key, now, text
                print(text, flush=True)


def table(found: Sequence[Status]) -> list[str]:
    """Format a header and an aligned line for each run."""
    rows = [_HEADER, *map(_cells, found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def line(one: Status) -> str:
    """Format the line of a run for a log file."""
    names = {"images/s": " images/s", "left": " left", "restarts": " restarts", "GPU-hours": " GPU-hours"}
    cells = dict(zip(_HEADER, _cells(one), strict=True))
    head = f"{time.strftime('%H:%M:%S')} {cells['run']}: {cells['stage']} {cells['state']}"
    rest = [f"{cells[name]}{names.get(name, '')}" for name in _HEADER[3:] if cells[name] not in ("-", "0", "0.00")]
    return ", ".join([head, *rest])


def _cells(one: Status) -> tuple[str, ...]:
    return (
        one.run,
        one.stage or "-",
        f"{one.state} ({one.why})" if one.why else one.state,
        one.where or "-",
        "-" if one.done is None else f"{one.done}/{one.total} {one.unit}",
        "-" if one.images_per_s is None else rate(one.images_per_s),
        "-" if one.seconds_left is None else span(one.seconds_left),
        one.metric or "-",
        str(one.restarts),
        f"{one.gpu_hours:.2f}",
    )


def explained(found: Sequence[Status]) -> list[str]:
    """Explain why runs have failed, each with the end of its log; if many have, the newest only."""
    failed = [one for one in found if one.has_failed]
    lines = []
    for one in failed[-_DETAILED:]:
        lines += ["", f"{one.run}: {one.stage or 'job'} {one.state}: {one.cause}"]
        lines += [one.log, *(f"  {text}" for text in one.tail)] if one.log else []
    others = len(failed) - _DETAILED
    return [*lines, "", f"{others} more have failed; name their folders to see why"] if others > 0 else lines


def status_json(one: Status) -> str:
    """Format a run's status as one line of JSON."""
    return json.dumps(one.model_dump(mode="json"), sort_keys=True, ensure_ascii=False, allow_nan=False)
