"""The sections of the job that describe training: objective, optimizer, phases."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, model_validator

from tlbatch.config.base import Count, Fraction, Positive, Section
from tlbatch.config.model import HANDCRAFTED, Head, Model

Objective = Literal["cross-entropy", "focal", "binary", "corn", "cumulative", "regression", "tags"]
Decision = Literal["most-probable", "expected-grade"]
Symmetries = Literal["none", "flip", "rot4", "d4"]
StoredAs = Literal["fp32", "fp16", "bf16"]
Rate = Annotated[float, Field(gt=0, le=1e30)]
_OF_EPOCHS = (
    "label_smoothing", "mixup", "cutmix", "balance", "patience", "ema", "average", "accumulate",
)  # fmt: skip
"""Keys of a phase that a fit does not read."""
ALL_FROZEN = ("pool", "flatten")
"""Cuts of a network after which the head alone is left."""
FROZEN = (*ALL_FROZEN, HANDCRAFTED)
"""Cuts after which the head alone is left."""
Fit = Literal["logistic", "ridge", "svm", "kernel-logistic", "kernel-ridge", "kernel-svm", "neighbours"]


class Optimizer(Section):
    """The optimiser of a phase."""

    name: Literal["sgd", "adam", "adamw", "rmsprop", "adadelta"] = "adamw"
    """Optimiser."""
    lr: Rate = 1e-3
    """Learning rate of the head, for the global batch."""
    backbone_lr: Rate | None = None
    """Learning rate after the cut; empty: a tenth of lr."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor of the learning rate from each layer of the backbone to the one before it."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decay of weights (not of biases and norms): an L2 penalty, decoupled in adamw."""
    decay_to: Literal["zero", "start"] = "zero"
    """Where weights of the backbone decay to; start: their values at the begin of the phase (L2-SP)."""
    momentum: Fraction = 0.9
    """Momentum of sgd and rmsprop."""
    nesterov: bool = False
    """Nesterov's momentum in sgd."""

    @model_validator(mode="after")
    def _check_nesterov(self) -> Self:
        if self.nesterov and (self.name != "sgd" or not self.momentum):
            raise ValueError("nesterov goes with sgd and a momentum; leave it out")
        return self


class Phase(Section):
    """A stretch of training with one cut."""

    cut: Annotated[str, Field(min_length=1)] = "pool"
    """Last frozen module of the backbone, e.g. blocks.4; layer N: layers from number N on train; pool or flatten: all
    frozen; none: all trains; auto: probes choose; handcrafted: no network, but hand-made features, in all phases.
    ``python -m tlbatch.model BACKBONE`` lists them."""
    epochs: Annotated[int, Field(ge=1)] = 1
    """Passes over the training images."""
    fit: Fit | None = None
    """With all frozen, the head is fitted at once by scikit-learn in place of epochs, its penalty chosen by
    cross-validation over groups; kernel: on a radial basis function; empty: epochs."""
    optimizer: Optimizer = Optimizer()
    lr_grid: Annotated[tuple[Rate, ...], Field(alias="rates")] = ()
    """With all frozen: learning rates to try in place of optimizer.lr, a head each and one more a fold of the
    cross-validation over groups that chooses, all side by side in one process."""
    schedule: Literal["constant", "step", "cosine"] = "cosine"
    """Course of the learning rate over the phase."""
    step_epochs: Annotated[int, Field(ge=1)] = 10
    """Epochs between two steps of schedule step."""
    step_factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Factor of the learning rate at each step."""
    warmup: Annotated[float, Field(ge=0)] = 0.1
    """Steps with a linear rise of the learning rate; below 1 a share of the phase's steps."""
    batch_norm: Literal["frozen", "train"] = "frozen"
    """Whether BatchNorm after the cut keeps its pre-trained statistics."""
    label_smoothing: Fraction = 0.0
    """Label smoothing."""
    mixup: Annotated[float, Field(ge=0)] = 0.0
    """Alpha of mixup; 0: none. Needs images: the phase runs without the cache."""
    cutmix: Annotated[float, Field(ge=0)] = 0.0
    """Alpha of cutmix; 0: none. With both, each batch draws one."""
    balance: Literal["none", "sampler", "loss"] = "none"
    """Class balance: by drawing rare classes more often, or by weighing them in the loss."""
    balance_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor of the balance from epoch to epoch; 1: full balance throughout."""
    patience: Count = 0
    """Epochs without a better validation after which the phase ends; 0: never."""
    ema: Fraction = 0.0
    """Decay of an exponential moving average of the weights, which is validated and kept; 0: none."""
    average: bool = False
    """Try the mean of the weights before and after the phase, and keep it where validation says that it is better."""
    grad_clip: Annotated[float, Field(ge=0)] = 1.0
    """Largest norm of the gradient; 0: no limit."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Parts in which a batch goes through the network, for memory."""

    @model_validator(mode="after")
    def _check_lr_grid(self) -> Self:
        if self.fit:
            used = [key for key in _OF_EPOCHS if getattr(self, key) != type(self).model_fields[key].default]
            if used:
                raise ValueError(f"fit is at once, so there is no {', '.join(used)}; leave it out")
        if not self.lr_grid:
            return self
        if len(set(self.lr_grid)) < len(self.lr_grid):
            raise ValueError("rates must differ; name each once")
        if self.cut not in ALL_FROZEN or self.fit:
            raise ValueError("rates are those of a head that trains alone: cut = pool, and no fit")
        beside = ("mixup", "cutmix", "patience", "ema", "average")
        used = [key for key in beside if getattr(self, key)]
        if used or self.accumulate > 1:
            raise ValueError(f"rates cannot be tried with {', '.join(used) or 'accumulate'}; leave it out")
        return self


class Train(Section):
    """How every phase trains."""

    batch_size: Annotated[int, Field(ge=1)] = 32
    """Global batch, shared out among the ranks."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Precision of the forward pass."""
    compile: bool = False
    """torch.compile the network; pays in long jobs, and needs a C++ compiler on the nodes."""
    augment: Symmetries = "flip"
    """none; mirror left and right; rot4: quarter turns; d4: the 8 symmetries of the square."""
    crop_scale: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Smallest share of the image's area in a random crop; 1: no random crop."""
    random_views: Count = 0
    """With random crops: so many views of each image are drawn once, which can be cached; 0: new ones every epoch."""
    tta: Annotated[bool, Field(alias="test_views")] = False
    """Predict the mean of the probabilities over the symmetries of augment, where validation says that it beats the
    upright view alone."""
    every_view: bool = False
    """An epoch takes every view of every image, in place of one at random."""
    workers: Count | None = None
    """Loader processes a rank; empty: one less than its cores beside a GPU, none on a CPU."""

    @model_validator(mode="after")
    def _check_tta(self) -> Self:
        if self.random_views and self.crop_scale == 1:
            raise ValueError("random_views are random crops: set crop_scale below 1")
        if self.tta and self.augment == "none":
            raise ValueError("tta averages over the symmetries of augment, which is none; set it to flip, rot4 or d4")
        if self.every_view and self.crop_scale < 1 and not self.random_views:
            raise ValueError("every_view needs a finite number of views: set random_views, or crop_scale = 1")
        return self


class Cache(Section):
    """Activations at the cut, computed once and shared by all runs of the workspace."""

    enabled: bool = True
    """Cache where a phase has a cut and a finite number of views."""
    dtype: Annotated[StoredAs | Literal["auto"], Field(alias="stored_as")] = "auto"
    """Type of the stored numbers; auto: that of train.mixed_precision."""
    budget_gb: Positive = 50.0
    """Largest size of a cut's activations for this job's images; a phase that would need more runs without."""


class Network(BaseModel, frozen=True, extra="forbid", protected_namespaces=()):
    """The sections of the job that the network is built of, without places on the machine it was trained on."""

    model: Model
    head: Head
    objective: Objective
    decision: Decision
    phase: tuple[Phase, ...]
    train: Train
    seed: int
