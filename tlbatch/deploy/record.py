"""``model.json``: what a trained model is that left its run, and how an image becomes its answer."""

from typing import Literal

from tlbatch.config.base import Metric, Triple
from tlbatch.config.data import StepName
from tlbatch.config.training import Network, Symmetries
from tlbatch.runs.records import Record
from tlbatch.runs.report import Estimate

EXPORTED_VERSION: Literal[1] = 1
FormName = Literal["safetensors", "onnx", "pt2"]
WEIGHTS = "model.safetensors"
RECORD = "model.json"
CARD = "README.md"


class Preprocessing(Record):
    """What happens to an image before the network, in this order."""

    max_pixels: int
    """Width times height above which an image is refused."""
    steps: tuple[StepName, ...]
    resize: int
    """Short side to which larger images are scaled down, as a JPEG; 0: the file stays as it is."""
    size: int
    """Height and width of the square in the middle, as the network takes it in."""
    mean: Triple
    """Of R, G, B in 0..1, which is subtracted."""
    std: Triple
    views: Symmetries
    """Whose probabilities are averaged."""
    view_mean: bool
    """Whether the head sees the mean of the vectors of all views that ``network.train`` names."""


class Form(Record):
    """A file that holds the model."""

    file: str
    difference: float | None
    """Largest of a probability from the run's own model, on images of its test split; none: it was not computed."""
    left_out: str = ""
    """Why the file is not there; empty: it is."""


class Exported(Record):
    """``model.json``."""

    version: Literal[1]
    """Of this record."""
    tlbatch: str
    """Version that wrote it."""
    run: str
    created: str
    """When the run was submitted."""
    weights: str
    """SHA-256 of the weights of the run."""
    classes: tuple[str, ...]
    network: Network
    phase: int
    """Of the checkpoint."""
    preprocessing: Preprocessing
    thresholds: tuple[float, ...]
    """Between grades, where they decide."""
    temperature: float | None
    """By which logarithms of the probabilities are divided; none: they stay as they are."""
    metric: Metric
    score: Estimate
    """On the test split."""
    num_train: int
    """Training images."""
    num_checked: int
    """Test images that the forms were compared on."""
    from_predictions: float | None
    """Largest difference of a probability of the model, computed here in 32 bits, from predictions.csv; none where that
    takes other images into account."""
    forms: dict[FormName, Form]
    files: dict[str, str]
    """SHA-256 of every other file in the folder."""
