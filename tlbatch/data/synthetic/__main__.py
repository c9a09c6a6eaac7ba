"""Draw a synthetic data set: graded fundus photographs, or photographs of garments with phrases.

No image comes from a person or a shop: the data set is only for trying out and testing the software without real data.
"""

import argparse
from pathlib import Path

from pydantic import ValidationError

from tlbatch.config.data import Synthetic
from tlbatch.data.synthetic.write import make


def main() -> None:
    """Run ``python -m tlbatch.data.synthetic FOLDER``."""
    parser = argparse.ArgumentParser(prog="python -m tlbatch.data.synthetic", description=__doc__)
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="folder to create; must not exist")
    add("--kind", choices=("fundus", "garments"), default="fundus", help="images to draw (default: fundus)")
    add("--images", dest="num_images", type=int, default=2000, help="garments: total number of images (default: 2000)")
    add("--images-per-grade", type=int, default=200, help="fundus: images per label (default: 200)")
    add("--side", type=int, default=384, help="height and width in pixels (default: 384)")
    add("--grader-noise", type=float, default=0.1, help="fundus: fraction of labels off by one grade (default: 0.1)")
    add("--seed", type=int, default=0, help="random seed (default: 0)")
    add("--workers", type=int, default=1, help="number of worker processes (default: 1)")
    given = vars(parser.parse_args())
    folder, workers = given.pop("folder"), given.pop("workers")
    try:
        make(folder, Synthetic(**given), workers=workers)
    except ValidationError as error:
        first = error.errors()[0]
        parser.error(f"{first['loc'][0]}: {first['msg']} (got {first['input']})")
    except (FileExistsError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
