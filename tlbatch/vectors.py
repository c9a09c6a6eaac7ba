"""Write the cached activations of all images to files for other programs.

images.npz has X (n, d), y (n,), f (n,) and split (n,). With --text the same rows go to images-X.txt (comma-separated,
five decimals), images-y.txt (class numbers), images-f.txt (names) and images-s.txt (splits).
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tlbatch.activations.store import open_stores, view_keys
from tlbatch.core.cli import command_parser, run_command
from tlbatch.core.errors import UserError
from tlbatch.core.files import atomic_file, write_text
from tlbatch.data.dataset import labels_of
from tlbatch.data.image_set import open_images
from tlbatch.data.sources.base import name_of
from tlbatch.runs.records import SPLITS
from tlbatch.runs.run import Run
from tlbatch.runs.stage import require_finished

_CHUNK = 256
Table = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], list[str], list[str]]


def read_vectors(run: Run, *, phase: int) -> Table:
    """Read the vector of the unchanged view of every image at the cut of a phase.

    Returns
    -------
    Vectors (n, d), classes, names and splits.

    Raises
    ------
    UserError
        If the phase has not been cached, or only in random crops.
    """
    images = open_images(run, staged=True)
    cached = require_finished("cache", run)
    if run.job.train.crop_scale < 1:
        raise UserError(
            "the training images are cached as random crops; set train.crop_scale=1 to export their vectors"
        )
    index = images.index
    vectors: list[npt.NDArray[np.float32]] = []
    chosen = []
    for split in SPLITS:
        rows = images.rows(split)
        store = open_stores(run.job, cached.outputs, phase=phase, split=split)
        if store is None:
            raise UserError(f"phase {phase} of {run.folder} is not cached; choose another with --phase")
        places = store.find(view_keys(index["content"][rows], (0,)))
        vectors.extend(
            store.read(places[start : start + _CHUNK]).float().flatten(1).numpy()
            for start in range(0, len(places), _CHUNK)
        )
        chosen.append(rows)
    every = index[np.concatenate(chosen)]
    names = [name_of(key.decode()) for key in every["key"]]
    return np.concatenate(vectors), labels_of(every).numpy(), names, [SPLITS[code] for code in every["split"]]


def write_vectors(folder: Path, table: Table, *, text: bool) -> None:
    """Write the vectors to a file, or with ``text`` to text files with one row per image."""
    vectors, classes, names, splits = table
    if not text:
        with atomic_file(folder / "images.npz") as file:
            np.savez(file, X=vectors, y=classes, f=np.array(names), split=np.array(splits))
        return
    with atomic_file(folder / "images-X.txt") as file:
        file.writelines(_lines(vectors))
    labels = [",".join(map(str, row)) for row in classes.reshape(len(classes), -1).tolist()]
    for letter, column in (("y", labels), ("f", names), ("s", splits)):
        write_text(folder / f"images-{letter}.txt", "".join(f"{value}\n" for value in column))


def _lines(vectors: npt.NDArray[np.float32]) -> Iterator[bytes]:
    for row in vectors.tolist():
        yield (",".join(f"{value:.5f}" for value in row) + "\n").encode()


def main() -> None:
    """Run ``python -m tlbatch.vectors RUN``."""
    parser = command_parser("vectors", __doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder whose cache stage has finished")
    parser.add_argument("--phase", type=int, default=0, metavar="N", help="phase whose cut to export (default: 0)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where to write (default: RUN/vectors)")
    parser.add_argument("--text", action="store_true", help="write text files instead of images.npz")
    options = parser.parse_args()
    folder = options.out or options.run / "vectors"

    def work() -> int:
        write_vectors(folder, read_vectors(Run.load(options.run), phase=options.phase), text=options.text)
        print(folder)
        return 0

    run_command(work)


if __name__ == "__main__":
    main()
