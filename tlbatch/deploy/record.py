"""``model.json``: the description of an exported model and of its preprocessing."""

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
    """Preprocessing of an image before the network, in this order."""

    max_pixels: int
    """Images with more pixels (width times height) are refused."""
    value_range: tuple[float, float] | None = None
    """Values that become 0 and 255 in images of more than 8 bits that do not state them; none: such are refused."""
    steps: tuple[StepName, ...]
    resize: int
    """Short side to which larger images are scaled down and re-encoded as JPEG; 0: files stay as they are."""
    size: int
    """Height and width of the central square that the network takes."""
    mean: Triple
    """Mean of R, G and B in 0..1, which is subtracted."""
    std: Triple
    views: Symmetries
    """Views whose probabilities are averaged."""
    view_mean: bool
    """Whether the head takes the mean feature vector of all views configured in ``network.train``."""


class Form(Record):
    """The model in one file format."""

    file: str
    difference: float | None
    """Largest difference of a probability from the run's own model, on test images; none: not computed."""
    left_out: str = ""
    """Why the file was not written; empty: it was."""


class Exported(Record):
    """``model.json``."""

    version: Literal[1]
    """Version of this record."""
    tlbatch: str
    """Version of tlbatch that wrote it."""
    run: str
    created: str
    """When the run was submitted."""
    weights: str
    """SHA-256 of the weights of the run."""
    classes: tuple[str, ...]
    network: Network
    phase: int
    """Training phase of the checkpoint."""
    preprocessing: Preprocessing
    thresholds: tuple[float, ...]
    """Thresholds between grades, if the decision uses them."""
    temperature: float | None
    """Divisor of the log-probabilities; none: no scaling."""
    metric: Metric
    score: Estimate
    """Score on the test split."""
    num_train: int
    """Training images."""
    num_checked: int
    """Test images on which the formats were compared."""
    from_predictions: float | None
    """Largest difference between a probability computed in 32 bits during export and predictions.csv; none if the
    predictions there depend on other images of the group."""
    forms: dict[FormName, Form]
    files: dict[str, str]
    """SHA-256 of every other file in the folder."""
