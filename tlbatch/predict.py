"""Predict all validation and test images of a run with its selected checkpoint.

Or, with the folder of an exported model and images: predict these images and write CSV.
"""

import os
from pathlib import Path

from tlbatch.core.cli import command_parser, run_command
from tlbatch.data.image_set import open_images
from tlbatch.deploy.predict_files import predict_files
from tlbatch.deploy.record import RECORD
from tlbatch.evaluation.inference import join_and_predict
from tlbatch.runs.records import job_digest
from tlbatch.runs.run import Run
from tlbatch.runs.stage import leave, require_finished, run_guarded, run_once
from tlbatch.runs.world import read_world


def run(run_dir: Path) -> None:
    """Predict with the run's checkpoint, unless it is done."""
    run, world = Run.load(run_dir), read_world(os.environ)
    require_finished("train", run)
    best, weights = run.paths.load_best()
    images = open_images(run, staged=True)
    inputs = {"job": job_digest(run.record), "weights": best.digest, "set": images.manifest.index_digest}

    def work() -> None:
        join_and_predict(run, images, best, weights, world)

    run_once("predict", run.paths, inputs, world, work, is_there=any(run.paths.predictions.glob("part-*.npz")))


def main() -> None:
    """Run ``python -m tlbatch.predict RUN`` or ``python -m tlbatch.predict MODEL_FOLDER IMAGES... [--csv FILE]``."""
    parser = command_parser("predict", __doc__)
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
    leave(run_guarded("predict", run, given.folder))


if __name__ == "__main__":
    main()
