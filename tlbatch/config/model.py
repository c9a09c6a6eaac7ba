"""The sections of the job that describe the network: backbone, head and phrase decoder."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from tlbatch.config.base import Fraction, Section

Pool = Literal["auto", "avg", "max", "avgmax", "gem", "attention", "flatten"]
Share = Annotated[float, Field(ge=0, le=1)]
Deviation = Annotated[float, Field(gt=0, le=1)]
HANDCRAFTED = "handcrafted"
"""The cut, and the backbone, of features that no network computes."""


class Model(Section):
    """The pre-trained backbone."""

    backbone: str = "timm:tf_efficientnet_lite0"
    """``timm:NAME`` or the name of a torchvision classifier; handcrafted where the cut is."""
    weights: Annotated[str, Field(min_length=1)] = "none"
    """A file (.safetensors, .pth), ``package:MODULE/FILE`` inside an installed package, the folder of another run,
    library (torchvision's or timm's own, fetched when the job is submitted), or none (random)."""
    match: Literal["name", "order"] = "name"
    """How the file's tensors find their places."""
    size: Annotated[int, Field(ge=16, le=4096)] | None = None
    """Input height and width in pixels; empty: what came with the weights, or the backbone's own."""
    mean: tuple[Share, Share, Share] | None = None
    """Normalisation of R, G, B in 0..1 that the weights were trained with; empty: as size."""
    std: tuple[Deviation, Deviation, Deviation] | None = None
    """See mean."""


class Head(Section):
    """What stands on the backbone and is new."""

    after: tuple[str, ...] = ()
    """Modules of the backbone whose pooled outputs the head sees side by side, e.g. blocks.4, or ["blocks.4", "pool"];
    empty: what the backbone's own classifier sees, which is called pool here."""
    pool: Pool = "auto"
    """How a map becomes a vector; auto: as the backbone does it, the mean after an inner module, and flattened where
    a phase has the cut flatten."""
    widths: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Hidden layers, e.g. [256]; empty: a linear head."""
    dropout: Fraction = 0.0
    """Dropout before every linear layer but the first hidden one."""
    batch_norm: bool = False
    """BatchNorm after every hidden layer."""
    view_mean: bool = False
    """The vector of an image is the mean over all its views, in training and prediction; needs cached vectors."""
    group_mean: bool = False
    """The head sees the vector of an image and beside it the mean of those of the rest of its group (the other eye of a
    patient; its own where it is alone); needs cached vectors."""
    weights: str = ""
    """Folder of another run whose head to begin with; empty: random."""

    @field_validator("after", mode="before")
    @classmethod
    def _wrap_single(cls, value: object) -> object:
        return tuple(filter(None, (value,))) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_pools(self) -> Self:
        if len(self.after) > 1 and self.pool in ("gem", "attention"):
            raise ValueError("pool gem and attention stand on one module; name one in after")
        return self


class Decoder(Section):
    """The LSTM that writes the tags of an image, one after the other (objective tags)."""

    embedding: Annotated[int, Field(ge=1, le=4096)] = 256
    """Numbers that stand for a tag, and for the image before the first one."""
    hidden: Annotated[int, Field(ge=1, le=4096)] = 256
    """Units of the LSTM."""
    dropout: Fraction = 0.5
    """Dropout before and after the LSTM."""
    max_tags: Annotated[int, Field(ge=1, le=64)] = 8
    """Tags that are written at most; what a training image has beyond them is not learned."""
    min_images: Annotated[int, Field(ge=1)] = 1
    """Training images that a tag must have to be written; rarer ones are all learned as one unknown tag."""
    beam: Annotated[int, Field(ge=1, le=100)] = 3
    """Phrases that are followed at once in search of the most probable one; 1: greedy."""
