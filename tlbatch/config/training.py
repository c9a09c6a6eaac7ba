"""The sections of a job that describe training: objective, optimizer, phases."""

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
"""Keys of a phase that a fit does not use."""
ALL_FROZEN = ("pool", "flatten")
"""Cuts of a network that freeze the whole backbone."""
FROZEN = (*ALL_FROZEN, HANDCRAFTED)
"""Cuts after which only the head is trained."""
Fit = Literal["logistic", "ridge", "svm", "kernel-logistic", "kernel-ridge", "kernel-svm", "neighbours"]


class Optimizer(Section):
    """The optimiser of a phase."""

    name: Literal["sgd", "adam", "adamw", "rmsprop", "adadelta"] = "adamw"
    """Name of the optimiser."""
    lr: Rate = 1e-3
    """Learning rate of the head, for the global batch size."""
    backbone_lr: Rate | None = None
    """Learning rate of the backbone after the cut; empty: a tenth of lr."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Layer-wise learning rate decay: the factor from each layer of the backbone to the one before it."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Weight decay, except of biases and normalisation layers: an L2 penalty, decoupled in adamw."""
    decay_to: Literal["zero", "start"] = "zero"
    """Target of the backbone's weight decay; start: the weights at the start of the phase (L2-SP)."""
    momentum: Fraction = 0.9
    """Momentum of sgd and rmsprop."""
    nesterov: bool = False
    """Use Nesterov momentum in sgd."""

    @model_validator(mode="after")
    def _check_nesterov(self) -> Self:
        if self.nesterov and (self.name != "sgd" or not self.momentum):
            raise ValueError("nesterov needs sgd with momentum; leave it out")
        return self


class Phase(Section):
    """A phase of training with one cut."""

    cut: Annotated[str, Field(min_length=1)] = "pool"
    """Last frozen module of the backbone, e.g. blocks.4; layer N: layers from number N on are trained; pool or flatten:
    the whole backbone is frozen; none: everything is trained; auto: probes choose; handcrafted: handcrafted features
    instead of a network, in all phases. ``python -m tlbatch.model BACKBONE`` lists the cuts."""
    epochs: Annotated[int, Field(ge=1)] = 1
    """Number of passes over the training images."""
    fit: Fit | None = None
    """Fit the head with scikit-learn instead of training it in epochs, with its penalty chosen by grouped
    cross-validation; needs a frozen backbone. kernel-*: with a radial basis function kernel; empty: epochs."""
    optimizer: Optimizer = Optimizer()
    lr_grid: Annotated[tuple[Rate, ...], Field(alias="rates")] = ()
    """Learning rates to try instead of optimizer.lr; needs a frozen backbone. Grouped cross-validation chooses; the
    heads for all rates and folds train in parallel in one process."""
    schedule: Literal["constant", "step", "cosine"] = "cosine"
    """Learning rate schedule of the phase."""
    step_epochs: Annotated[int, Field(ge=1)] = 10
    """Number of epochs between steps of schedule step."""
    step_factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Factor of the learning rate at each step of schedule step."""
    warmup: Annotated[float, Field(ge=0)] = 0.1
    """Number of steps of linear learning rate warmup; below 1: a fraction of the phase's steps."""
    batch_norm: Literal["frozen", "train"] = "frozen"
    """Whether BatchNorm layers after the cut keep their pre-trained statistics or are trained."""
    label_smoothing: Fraction = 0.0
    """Amount of label smoothing."""
    mixup: Annotated[float, Field(ge=0)] = 0.0
    """Alpha of mixup; 0: off. It needs images, so the phase runs without the cache."""
    cutmix: Annotated[float, Field(ge=0)] = 0.0
    """Alpha of cutmix; 0: off. With mixup too, one of the two is chosen at random for each batch."""
    balance: Literal["none", "sampler", "loss"] = "none"
    """Class balancing: by oversampling rare classes, or by class weights in the loss."""
    balance_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor by which the balancing weakens from epoch to epoch; 1: constant."""
    patience: Count = 0
    """Early stopping: end the phase after this many epochs without a better validation score; 0: never."""
    ema: Fraction = 0.0
    """Decay of an exponential moving average of the weights, which is then validated and saved; 0: off."""
    average: bool = False
    """Average the weights before and after the phase, and keep the average if it is better on validation."""
    grad_clip: Annotated[float, Field(ge=0)] = 1.0
    """Largest norm of the gradient; 0: no limit."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Number of gradient accumulation steps per batch, to save memory."""

    @model_validator(mode="after")
    def _check_lr_grid(self) -> Self:
        if self.fit:
            used = [key for key in _OF_EPOCHS if getattr(self, key) != type(self).model_fields[key].default]
            if used:
                raise ValueError(f"fit has no epochs; leave out {', '.join(used)}")
        if not self.lr_grid:
            return self
        if len(set(self.lr_grid)) < len(self.lr_grid):
            raise ValueError("lr_grid must not repeat a rate; name each once")
        if self.cut not in ALL_FROZEN or self.fit:
            raise ValueError("lr_grid needs a head that trains alone; set cut = pool, and leave fit out")
        beside = ("mixup", "cutmix", "patience", "ema", "average")
        used = [key for key in beside if getattr(self, key)]
        if used or self.accumulate > 1:
            raise ValueError(f"lr_grid does not work with {', '.join(used) or 'accumulate'}; leave it out")
        return self


class Train(Section):
    """Settings of training that all phases share."""

    batch_size: Annotated[int, Field(ge=1)] = 32
    """Global batch size, divided among the ranks."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Precision of the forward pass."""
    compile: bool = False
    """Use torch.compile; pays off in long jobs, and needs a C++ compiler on the nodes."""
    augment: Symmetries = "flip"
    """Symmetries to augment images with. flip: left-right flip; rot4: rotations by 90 degrees; d4: the 8 symmetries of
    the square."""
    crop_scale: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Smallest fraction of the image's area in a random crop; 1: no random crops."""
    random_views: Count = 0
    """With random crops: number of views of each image, drawn once so that they can be cached; 0: new views every
    epoch."""
    tta: Annotated[bool, Field(alias="test_views")] = False
    """Test-time augmentation: average the probabilities over the symmetries of augment, if that is better on validation
    than the unchanged view alone."""
    every_view: bool = False
    """Use every view of every image in an epoch, instead of a random one."""
    workers: Count | None = None
    """Number of data loader processes per rank; empty: one less than its cores on a GPU, none on a CPU."""

    @model_validator(mode="after")
    def _check_tta(self) -> Self:
        if self.random_views and self.crop_scale == 1:
            raise ValueError("random_views needs random crops; set crop_scale below 1")
        if self.tta and self.augment == "none":
            raise ValueError("tta averages over the symmetries of augment, which is none; set it to flip, rot4 or d4")
        if self.every_view and self.crop_scale < 1 and not self.random_views:
            raise ValueError("every_view needs a finite number of views; set random_views, or crop_scale = 1")
        return self


class Cache(Section):
    """Cache of the activations at the cut, computed once and shared by all runs of the workspace."""

    enabled: bool = True
    """Cache activations if a phase has a cut and a finite number of views."""
    dtype: Annotated[StoredAs | Literal["auto"], Field(alias="stored_as")] = "auto"
    """Data type of the cached activations; auto: that of train.mixed_precision."""
    budget_gb: Positive = 50.0
    """Largest size in GB of a cut's activations for the images of the job; a phase that needs more runs without the
    cache."""


class Network(BaseModel, frozen=True, extra="forbid", protected_namespaces=()):
    """The sections of the job from which the network is built, without paths of the machine it was trained on."""

    model: Model
    head: Head
    objective: Objective
    decision: Decision
    phase: tuple[Phase, ...]
    train: Train
    seed: int
