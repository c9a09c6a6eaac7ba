"""What every section of the job is made of."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Triple = tuple[float, float, float]
Metric = Literal["quadratic_kappa", "accuracy"]
SplitName = Literal["train", "val", "test"]


class Section(BaseModel):
    """A frozen part of the job that refuses unknown keys."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        coerce_numbers_to_str=True,
        allow_inf_nan=False,
    )
