"""The sections of a job that describe the network: backbone, head and phrase decoder."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from tlbatch.config.base import ADDED, Fraction, Section

Pool = Literal["auto", "avg", "max", "avgmax", "gem", "attention", "flatten"]
Share = Annotated[float, Field(ge=0, le=1)]
Deviation = Annotated[float, Field(gt=0, le=1)]
HANDCRAFTED = "handcrafted"
"""Name of the cut, and of the backbone, for handcrafted features."""


class Model(Section):
    """The pre-trained backbone."""

    backbone: str = "timm:tf_efficientnet_lite0"
    """Backbone: ``timm:NAME``, or the name of a torchvision classifier; set to handcrafted if the cut is."""
    weights: Annotated[str, Field(min_length=1)] = "none"
    """Pre-trained weights: a file (.safetensors, .pth); ``package:MODULE/FILE`` inside an installed package; the folder
    of another run; library (torchvision's or timm's own, downloaded when the job is submitted); or none (random)."""
    weights_entry: Annotated[str, ADDED] = ""
    """Which weights to read from a file of several, e.g. state_dict_ema or teacher; empty: those that are neither an
    average of the others nor one of a teacher and a student."""
    match: Literal["name", "order"] = "name"
    """How tensors of the weights file are matched to the backbone's."""
    size: Annotated[int, Field(ge=16, le=4096)] | None = None
    """Input height and width in pixels; empty: those of the weights, or the backbone's default."""
    mean: tuple[Share, Share, Share] | None = None
    """Mean of R, G, B in 0..1 with which the weights were trained; empty: as for size."""
    std: tuple[Deviation, Deviation, Deviation] | None = None
    """Standard deviation of R, G, B, as mean."""


class Head(Section):
    """The new classification head on top of the backbone."""

    after: tuple[str, ...] = ()
    """Modules of the backbone whose pooled outputs, concatenated, are the input of the head, e.g. blocks.4, or
    ["blocks.4", "pool"]; empty: the input of the backbone's own classifier, which is called pool here."""
    pool: Pool = "auto"
    """How a feature map becomes a vector; auto: as in the backbone, the mean after an inner module, and flattened if a
    phase has the cut flatten."""
    widths: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Sizes of the hidden layers, e.g. [256]; empty: a linear head."""
    dropout: Fraction = 0.0
    """Dropout rate before every linear layer except the first hidden one."""
    batch_norm: bool = False
    """Use BatchNorm after every hidden layer."""
    view_mean: bool = False
    """Average the vectors of all views of an image, in training and prediction; needs cached vectors."""
    group_mean: bool = False
    """Concatenate to the vector of an image the mean of the other images in its group, e.g. the patient's other eye, or
    its own vector if there are none; needs cached vectors."""
    weights: str = ""
    """Folder of another run whose head to initialise from; empty: random."""

    @field_validator("after", mode="before")
    @classmethod
    def _wrap_single(cls, value: object) -> object:
        return tuple(filter(None, (value,))) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_pools(self) -> Self:
        if len(self.after) > 1 and self.pool in ("gem", "attention"):
            raise ValueError("pool gem and attention work on a single module; name one in after")
        return self


class Decoder(Section):
    """The LSTM that generates the tags of an image in sequence (objective tags)."""

    embedding: Annotated[int, Field(ge=1, le=4096)] = 256
    """Size of the embedding of a tag, and of the image, which is the first input."""
    hidden: Annotated[int, Field(ge=1, le=4096)] = 256
    """Number of units of the LSTM."""
    dropout: Fraction = 0.5
    """Dropout rate before and after the LSTM."""
    max_tags: Annotated[int, Field(ge=1, le=64)] = 8
    """Largest number of tags in a generated phrase; longer training phrases are truncated."""
    min_images: Annotated[int, Field(ge=1)] = 1
    """Smallest number of training images for a tag to be in the vocabulary; rarer tags become one unknown tag."""
    beam: Annotated[int, Field(ge=1, le=100)] = 3
    """Beam width of the search for the most probable phrase; 1: greedy."""
