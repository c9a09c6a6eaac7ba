"""Compare a run with the champion on the same test images, and promote it if the job's rule says so.

A night does this by itself; use this command for runs that were made in other ways, and to overrule a decision.
"""

import logging
import os
import subprocess
import sys
from pathlib import Path

from tlbatch.core.cli import command_parser, with_new_options
from tlbatch.core.errors import UserError
from tlbatch.promotion.champion import overruled_before, promote_run
from tlbatch.promotion.records import Decision
from tlbatch.promotion.registry import Registry, promotion_file
from tlbatch.promotion.rescoring import make_rescoring
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.records import load_record
from tlbatch.runs.run import Run
from tlbatch.runs.stage import leave, require_finished, run_guarded, run_once
from tlbatch.runs.world import read_world

log = logging.getLogger(__name__)


def run(run_dir: Path, overruled: str = "") -> None:
    """Decide whether to promote the run, by the rule or for the reason given, and act on it, unless that is done.

    An empty reason leaves the decision to the rule. Raises UserError if the run holds predictions of a champion, or has
    not finished.
    """
    run, world = Run.load(run_dir), read_world(os.environ)
    paths = run.paths
    if run.record.checkpoint_of is not None:
        raise UserError(f"{run_dir}: holds new predictions of a champion, so it is no challenger; name another run")
    run.job.require_classes("a registry")
    reduced = require_finished("reduce", run)
    if overruled:
        paths.marker("promote").unlink(missing_ok=True)
        promotion_file(paths).unlink(missing_ok=True)
    else:
        overruled = overruled_before(paths)
    inputs = {"job": reduced.inputs["job"], "predictions": reduced.inputs["predictions"], "overruled": overruled}
    if not run_once("promote", paths, inputs, world, lambda: promote_run(run, overruled)):
        decision = load_record(Decision, promotion_file(paths), missing="--override REASON decides again")
        log.info("%s: %s; --override REASON overrules it", decision.outcome, "; ".join(decision.reasons))


def _rescore(run: Run) -> None:
    """Let the champion predict the run's test images on this machine, unless it has."""
    champion = Registry.of(run.job).champion()
    other = make_rescoring(run, champion) if champion and champion.run != run.name else None
    if other is None:
        return
    command = [sys.executable, "-m", "tlbatch.submit", "--local", str(other.folder)]
    if subprocess.run(command, check=False).returncode:
        raise UserError(f"{other.folder}: the champion could not predict these images; fix the errors above")


def main() -> None:
    """Run ``python -m tlbatch.promote RUN [--override REASON]``."""
    parser = command_parser("promote", __doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder, as tlbatch.submit printed it")
    parser.add_argument(
        "--override", metavar="REASON", default="", help="promote the run for this reason, whatever the rule says"
    )
    given = parser.parse_args(with_new_options(None))

    def work(folder: Path) -> None:
        if not given.override and not RunPaths(folder).marker("promote").exists():
            _rescore(Run.load(folder))
        run(folder, given.override)

    leave(run_guarded("promote", work, given.run))


if __name__ == "__main__":
    main()
