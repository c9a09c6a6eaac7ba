"""Predict all validation and test images of a run with its selected checkpoint.

Or, with the folder of an exported model and images: predict these images and write CSV.
"""

import argparse
import logging
import os
import sys
from pathlib import Path

from tlbatch.core.cli import run_command
from tlbatch.data.dataset import open_set
from tlbatch.deploy.predict_files import predict_files
from tlbatch.deploy.record import RECORD
from tlbatch.evaluation.inference import join_and_predict
from tlbatch.model.checkpoint import load_best
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.records import job_digest
from tlbatch.runs.stage import require_finished, run_guarded, run_once
from tlbatch.runs.world import read_world

log = logging.getLogger(__name__)


def run(run_dir: Path) -> None:
    """Predict with the run's checkpoint, unless it is done."""
    paths, world = RunPaths(run_dir), read_world(os.environ)
    record = paths.load()
    require_finished("train", paths, record)
    best, weights = load_best(paths)
    images = open_set(paths.set_paths(record.job), record.job.slurm)
    inputs = {"job": job_digest(record), "weights": best.digest, "set": images.manifest.index_digest}
    there = any(paths.predictions.glob("part-*.npz"))
    run_once(
        "predict",
        paths,
        inputs,
        world,
        lambda: join_and_predict(record, images, best, weights, paths, world),
        is_there=there,
    )


def main() -> None:
    """Run ``python -m tlbatch.predict RUN`` or ``python -m tlbatch.predict MODEL_FOLDER IMAGES... [--csv FILE]``."""
    parser = argparse.ArgumentParser(prog="python -m tlbatch.predict", description=__doc__)
    parser.add_argument(
        "folder",
        type=Path,
        metavar="FOLDER",
        help="run folder, as python -m tlbatch.submit printed it; or the folder of an exported model",
    )
    parser.add_argument("images", type=Path, nargs="*", metavar="IMAGES", help="image files, or folders of them")
    parser.add_argument(
        "--csv", type=Path, metavar="FILE", help="where to write the predictions (default: standard output)"
    )
    given = parser.parse_args()
    if given.images or given.csv or (given.folder / RECORD).exists():
        run_command(lambda: predict_files(given.folder, given.images, given.csv))
    sys.exit(run_guarded("predict", run, given.folder))


if __name__ == "__main__":
    main()
