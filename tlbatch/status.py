"""Show stage, state, progress and cost of runs, from their files and one squeue; SLURM accounting is not needed.

Without RUN: all runs of the workspace that have not finished, and those that finished in the last day. The exit code is
0, or 1 if a run has failed.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tlbatch.cluster.display import NO_RUNS, Lines, Screen, explained, status_json, survey, table
from tlbatch.cluster.run_files import modified
from tlbatch.cluster.run_state import Status
from tlbatch.cluster.squeue import Squeue
from tlbatch.core.cli import command_parser, run_command
from tlbatch.core.errors import UserError
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.stages import STAGES

_DAY_S = 24 * 3600


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``python -m tlbatch.status``."""
    options = _parser().parse_args(arguments)
    run_command(lambda: _follow(options) if options.follow else _show_once(options))


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("status", __doc__)
    parser.add_argument("run", nargs="*", type=Path, metavar="RUN", help="run folders, as submit printed them")
    parser.add_argument(
        "--workspace", type=Path, default=Path("workspace"), help="workspace to list (default: workspace)"
    )
    parser.add_argument("--follow", action="store_true", help="keep updating until all runs have ended")
    parser.add_argument(
        "--every", type=float, default=5.0, metavar="SECONDS", help="update interval of --follow (default: 5)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per run and line")
    return parser


def folders(runs: Sequence[Path], workspace: Path, now: float) -> list[RunPaths]:
    """Return the given runs, or the unfinished and recent ones of the workspace, oldest first.

    Raises UserError if there is no such workspace.
    """
    if runs:
        return [RunPaths(run) for run in runs]
    folder = workspace / "runs"
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name run folders, or set --workspace PATH")
    found = [RunPaths(record.parent) for record in folder.glob("*/job.json")]
    ends = {paths: modified(paths.marker(STAGES[-1])) for paths in found}  # 0 where there is none
    recent = [paths for paths in found if not ends[paths] or now - ends[paths] < _DAY_S]
    return sorted(recent, key=lambda paths: (modified(paths.record), paths.folder.name))


def _show_once(options: argparse.Namespace) -> int:
    squeue, now = Squeue(), time.time()
    found = survey(folders(options.run, options.workspace, now), squeue, now, named=bool(options.run))
    _warn(squeue, "")
    lines = (
        list(map(status_json, found)) if options.json else [*table(found), *explained(found)] if found else [NO_RUNS]
    )
    for line in lines:
        print(line)
    return int(any(one.has_failed for one in found))


def _follow(options: argparse.Namespace) -> int:
    """Show the runs repeatedly until all have ended: in place on a terminal, otherwise line by line."""
    squeue = Squeue()
    in_place = sys.stdout.isatty() and not options.json
    show: Callable[[list[Status]], None] = Screen().show if in_place else Lines(as_json=options.json).show
    runs, complaint = None, ""
    while True:
        now = time.time()
        runs = runs or folders(options.run, options.workspace, now)
        found = survey(runs, squeue, now, named=bool(options.run))
        complaint = _warn(squeue, complaint)
        show(found)
        if all(one.has_ended for one in found):
            break
        time.sleep(options.every)
    if not options.json:
        for text in explained(found) if found else [NO_RUNS]:
            print(text)
    return int(any(one.has_failed for one in found))


def _warn(squeue: Squeue, before: str) -> str:
    """Warn once that SLURM does not answer."""
    now = squeue.complaint or ""
    if now and now != before:
        sys.stderr.write(f"warning: {now}; the states shown are from the run folders alone\n")
    return now


if __name__ == "__main__":
    main()
