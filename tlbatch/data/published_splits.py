"""The splits of four published systems, reproduced row for row to check their results: leaks included.

Each is a function of the images in the order of (class, key), as in their authors' folders.

retinopathy-lr, retinopathy-dl
    The VGG-16 retinopathy project of 2016 on 1,000 images, 200 of each grade (scikit-learn 0.18,
    ``StratifiedShuffleSplit(test_size=0.3, random_state=42)``). Its logistic regression stratified on the grades. Its
    networks stratified on one-hot rows, of which that version treated every 0 and every 1 as a separate sample
    (scikit-learn issues 8670 and 9037): rows repeat, and 143 of its 300 test rows are in train.
flowers17
    Two-phase fine-tuning of VGG-16 on the 17 category flower set, 2018: ``train_test_split(test_size=0.25,
    random_state=42)``, not stratified; the checkpoint was chosen on the test images.
dogs-vs-cats
    The tutorial on a frozen VGG-16 of 2017: folders train and valid; valid is the test set.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tlbatch.config.base import SplitName
from tlbatch.config.data import Recipe
from tlbatch.core.errors import UserError
from tlbatch.core.typing import Ints
from tlbatch.data.index import IndexRows
from tlbatch.data.sources.base import Labelled
from tlbatch.runs.records import SPLITS

_SEED = 42
_TEN = 10


def published_rows(images: Sequence[Labelled], recipe: Recipe) -> IndexRows:
    """Return the rows of a recipe, sorted; an image may have several; UserError if the images do not fit the recipe."""
    if recipe == "dogs-vs-cats":
        return _sorted_rows([(number, _from_folder(image)) for number, image in enumerate(images)])
    order = sorted(range(len(images)), key=lambda number: (images[number].label, images[number].key))
    labels = np.array([images[number].label for number in order])
    parts = _flowers17(len(order)) if recipe == "flowers17" else _retinopathy(labels, one_hot=recipe.endswith("dl"))
    return _sorted_rows([(order[place], split) for split, places in parts.items() for place in places.tolist()])


def _sorted_rows(pairs: list[tuple[int, SplitName]]) -> IndexRows:
    numbers = np.array(sorted((image, SPLITS.index(split)) for image, split in pairs), np.int64).reshape(-1, 2)
    return IndexRows(numbers[:, 0], numbers[:, 1])


def _from_folder(image: Labelled) -> SplitName:
    if image.part not in {"train", "valid"}:
        raise UserError(f"{image.path}: the recipe dogs-vs-cats needs folders train and valid; arrange the images so")
    return "train" if image.part == "train" else "test"


def _flowers17(num_images: int) -> dict[SplitName, Ints]:
    """Split like scikit-learn's ShuffleSplit: the first part of a permutation is the test set."""
    permutation = np.random.RandomState(_SEED).permutation(num_images)
    test = permutation[: -(-num_images // 4)]
    return {"train": permutation[len(test) :], "val": test, "test": test}


def _retinopathy(labels: npt.NDArray[np.str_], *, one_hot: bool) -> dict[SplitName, Ints]:
    """Split like StratifiedShuffleSplit of scikit-learn 0.18, which flattened a two-dimensional y."""
    classes, counts = np.unique(labels, return_counts=True)
    if len(set(counts.tolist())) != 1 or counts[0] % _TEN:
        raise UserError(
            "data.split.recipe: the retinopathy recipes need equally many images of each grade, a multiple of ten; "
            "set data.per_class=200"
        )
    if one_hot:
        rows = labels[:, None] == classes
        members = [np.nonzero(rows == value)[0] for value in (False, True)]
        share = len(labels) / rows.size
    else:
        members = [np.nonzero(labels == name)[0] for name in classes]
        share = 1.0
    random = np.random.RandomState(_SEED)
    train, test = [], []
    for rows_of_class in members:
        shuffled = rows_of_class[random.permutation(len(rows_of_class))]
        num_train, num_test = (round(len(shuffled) * part * share) for part in (0.7, 0.3))
        train.append(shuffled[:num_train])
        test.append(shuffled[num_train : num_train + num_test])
    all_train, all_test = (random.permutation(np.concatenate(rows)) for rows in (train, test))
    if not one_hot:  # the logistic regression used no validation rows
        return {"train": all_train, "val": all_train[:0], "test": all_test}
    num_fit = len(all_train) * 9 // _TEN  # Keras took the last tenth for validation
    return {"train": all_train[:num_fit], "val": all_train[num_fit:], "test": all_test}
