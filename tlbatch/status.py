"""Status: the stage, state, progress and cost of runs, from their own files and one squeue; accounting is not needed.

Without RUN: the runs of the workspace that have not finished, and those that finished in the last day. The exit code
is 0, or 1 if a run has failed.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tlbatch.controller import Controller
from tlbatch.job.cli import leave_with
from tlbatch.job.errors import UserError
from tlbatch.job.paths import RunPaths
from tlbatch.job.progress import rate, span
from tlbatch.job.records import STAGES
from tlbatch.seen import Seen, look, modified
from tlbatch.states import Status, describe, unreadable

_DAY_S = 24 * 3600
_MOVED_S = 30.0
"""In a log file: after so long a line for numbers that have moved."""
_DETAILED = 5
"""Runs that are explained where many have failed."""
_NONE = "no run that is at work or has finished lately"
_HEADER = ("run", "stage", "state", "where", "done", "images/s", "left", "metric", "restarts", "GPU-hours")


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m tlbatch.status``."""
    options = _parser().parse_args(arguments)
    leave_with(lambda: _follow(options) if options.follow else _show_once(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tlbatch.status", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", nargs="*", type=Path, metavar="RUN", help="run folders, as submit printed them")
    parser.add_argument("--workspace", type=Path, default=Path("workspace"), help="where to look for runs (workspace)")
    parser.add_argument("--follow", action="store_true", help="go on until all runs have ended")
    parser.add_argument("--every", type=float, default=5.0, metavar="SECONDS", help="with --follow (5)")
    parser.add_argument("--json", action="store_true", help="one JSON object a run and line")
    return parser


def folders(runs: Sequence[Path], workspace: Path, now: float) -> list[RunPaths]:
    """The runs that are asked for, or those of the workspace that are of interest, the oldest first.

    Raises
    ------
    UserError
        When there is no such workspace.
    """
    if runs:
        return [RunPaths(run) for run in runs]
    place = workspace / "runs"
    if not place.is_dir():
        raise UserError(f"{place}: no such folder; name run folders, or set --workspace PATH")
    found = [RunPaths(record.parent) for record in place.glob("*/job.json")]
    ends = {paths: modified(paths.marker(STAGES[-1])) for paths in found}  # 0 where there is none
    recent = [paths for paths in found if not ends[paths] or now - ends[paths] < _DAY_S]
    return sorted(recent, key=lambda paths: (modified(paths.record), paths.folder.name))


def survey(runs: Sequence[RunPaths], controller: Controller, now: float, *, named: bool) -> list[Status]:
    """What is said of each run, with one question to SLURM for all.

    Raises
    ------
    UserError
        When one that was named cannot be read; of others that is said.
    """
    seen: list[Seen | Status] = []
    for paths in runs:
        try:
            seen.append(look(paths))
        except UserError as error:
            if named:
                raise
            seen.append(unreadable(paths, error))
    queue = controller.ask(job for one in seen if isinstance(one, Seen) for job in one.jobs)
    return [describe(one, queue, controller, now) if isinstance(one, Seen) else one for one in seen]


def _survey(options: argparse.Namespace, controller: Controller) -> list[Status]:
    now = time.time()
    return survey(folders(options.run, options.workspace, now), controller, now, named=bool(options.run))


def _show_once(options: argparse.Namespace) -> int:
    controller = Controller()
    found = _survey(options, controller)
    _complain(controller, "")
    if options.json:
        for one in found:
            print(_to_json(one))
    else:
        print("\n".join(table(found) + explained(found)) if found else _NONE)
    return int(any(one.has_failed for one in found))


def _follow(options: argparse.Namespace) -> int:
    """Show the runs again and again until all have ended: in place on a terminal, else line by line."""
    controller = Controller()
    in_place = sys.stdout.isatty() and not options.json
    show: Callable[[list[Status]], None] = Screen().show if in_place else Lines(as_json=options.json).show
    runs, complaint = None, ""
    while True:
        now = time.time()
        runs = runs or folders(options.run, options.workspace, now)
        found = survey(runs, controller, now, named=bool(options.run))
        complaint = _complain(controller, complaint)
        show(found)
        if all(one.has_ended for one in found):
            break
        time.sleep(options.every)
    if not options.json:
        for text in explained(found) if found else [_NONE]:
            print(text)
    return int(any(one.has_failed for one in found))


def _complain(controller: Controller, before: str) -> str:
    """Say once that SLURM gives no answer."""
    now = controller.complaint or ""
    if now and now != before:
        sys.stderr.write(f"warning: {now}; what is shown is from the run folders alone\n")
    return now


class Screen:
    """The table in place of the one before."""

    def __init__(self) -> None:
        self._num_lines = 0

    def show(self, found: list[Status]) -> None:
        """Draw it, no wider and no higher than the terminal."""
        size = shutil.get_terminal_size()
        lines = [line[: size.columns - 1] for line in table(found)]
        if len(lines) > size.lines - 1:
            lines = [*lines[: size.lines - 2], f"and {len(lines) - size.lines + 2} more runs"]
        up = f"\x1b[{self._num_lines}F" if self._num_lines else ""
        sys.stdout.write(f"{up}\x1b[J" + "".join(f"{line}\n" for line in lines))
        sys.stdout.flush()
        self._num_lines = len(lines)


class Lines:
    """A line for a run when something has changed, and now and then for numbers that have moved."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._shown: dict[str, tuple[object, float, str]] = {}

    def show(self, found: list[Status]) -> None:
        """Print what is new."""
        now = time.monotonic()
        for one in found:
            key = (one.stage, one.state, one.why.split(" ")[0], one.where, one.metric, one.restarts)
            text = _to_json(one) if self._as_json else line(one)
            before, when, shown = self._shown.get(one.folder, (None, 0.0, ""))
            if key != before or (text != shown and now - when > _MOVED_S):
                self._shown[one.folder] = key, now, text
                print(text, flush=True)


def table(found: Sequence[Status]) -> list[str]:
    """A header and an aligned line for each run."""
    rows = [_HEADER, *map(_cells, found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def line(one: Status) -> str:
    """What a log file is told of a run."""
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
    """Why runs have failed, each with the end of its log; of many the newest."""
    failed = [one for one in found if one.has_failed]
    lines = []
    for one in failed[-_DETAILED:]:
        lines += ["", f"{one.run}: {one.stage or 'job'} {one.state}: {one.cause}"]
        lines += [one.log, *(f"  {text}" for text in one.tail)] if one.log else []
    others = len(failed) - _DETAILED
    return [*lines, "", f"{others} more have failed: name their folders to see why"] if others > 0 else lines


def _to_json(one: Status) -> str:
    return json.dumps(one.model_dump(mode="json"), sort_keys=True, ensure_ascii=False, allow_nan=False)


if __name__ == "__main__":
    main()
