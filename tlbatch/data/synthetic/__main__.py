"""Draw a synthetic data set: fundus photographs that a grader has graded, or photographs of garments with phrases.

Nothing in it comes from a person or a shop. It is for trying and testing the whole chain without data, no more.
"""

import argparse
from pathlib import Path

from tlbatch.data.synthetic.garments.products import plan_garments
from tlbatch.data.synthetic.patients import plan_fundus
from tlbatch.data.synthetic.write import make


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tlbatch.data.synthetic", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder to write; must not exist yet")
    parser.add_argument(
        "--kind", choices=("fundus", "garments"), default="fundus", help="what to draw (default: fundus)"
    )
    parser.add_argument("--images", type=int, default=2000, help="garments: images in all (default: 2000)")
    parser.add_argument("--images-per-grade", type=int, default=200, help="fundus: images of each label (default: 200)")
    parser.add_argument("--side", type=int, default=384, help="height and width in pixels (default: 384)")
    parser.add_argument(
        "--grader-noise", type=float, default=0.1, help="fundus: share of labels one off (default: 0.1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed draws others (default: 0)")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw (default: 1)")
    return parser


def main() -> None:
    """``python -m tlbatch.data.synthetic FOLDER``."""
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
