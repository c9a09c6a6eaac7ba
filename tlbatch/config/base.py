"""Base class and common types of the sections of a job."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializationInfo, SerializerFunctionWrapHandler, model_serializer

Fraction = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Triple = tuple[float, float, float]
Metric = Literal["quadratic_kappa", "accuracy"]
ADDED = "added"
"""Marks a key that digests did not always have, `Annotated[..., ADDED]`: they leave it out while it has its default."""
SplitName = Literal["train", "val", "test"]


class Section(BaseModel):
    """A frozen section of the job that refuses unknown keys."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        coerce_numbers_to_str=True,
        allow_inf_nan=False,
        populate_by_name=True,
        loc_by_alias=False,
    )

    def for_digest(self, **selected: set[str]) -> dict[str, Any]:
        """Return the section as JSON values under the key names that digests have always used.

        A renamed key has its first name as alias: old job files and records still load, and nothing that is found by
        a digest (shards, groups, finished stages) is computed again. For the same reason a key marked as `ADDED` is
        left out while it has its default. ``include`` and ``exclude`` take the current names.
        """
        return self.model_dump(mode="json", by_alias=True, **selected)  # type: ignore[arg-type]

    @model_serializer(mode="wrap")
    def _leave_out_added(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        for name, key in type(self).model_fields.items() if info.by_alias else ():
            if ADDED in key.metadata and getattr(self, name) == key.get_default(call_default_factory=True):
                values.pop(key.alias or name, None)
        return values
