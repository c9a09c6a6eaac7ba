"""Draw a synthetic data set: graded fundus photographs, or photographs of garments with phrases.

No image comes from a person or a shop: the data set is only for trying out and testing the software without real data.
"""

import argparse
from pathlib import Path

from tlbatch.data.synthetic.garments.products import plan_garments
from tlbatch.data.synthetic.patients import plan_fundus
from tlbatch.data.synthetic.write import make


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tlbatch.data.synthetic", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder to create; must not exist")
    parser.add_argument(
        "--kind", choices=("fundus", "garments"), default="fundus", help="images to draw (default: fundus)"
    )
    parser.add_argument("--images", type=int, default=2000, help="garments: total number of images (default: 2000)")
    parser.add_argument("--images-per-grade", type=int, default=200, help="fundus: images per label (default: 200)")
    parser.add_argument("--side", type=int, default=384, help="height and width in pixels (default: 384)")
    parser.add_argument(
        "--grader-noise", type=float, default=0.1, help="fundus: fraction of labels off by one grade (default: 0.1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    parser.add_argument("--workers", type=int, default=1, help="number of worker processes (default: 1)")
    return parser


def main() -> None:
    """Run ``python -m tlbatch.data.synthetic FOLDER``."""
    parser = _parser()
    given = parser.parse_args()
    try:
        if given.kind == "garments":
            plan = plan_garments(num_images=given.images, side=given.side, seed=given.seed)
        else:
            plan = plan_fundus(
                images_per_grade=given.images_per_grade,
                side=given.side,
                grader_noise=given.grader_noise,
                seed=given.seed,
            )
        make(given.folder, plan, workers=given.workers)
    except (FileExistsError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
