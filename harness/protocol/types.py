"""Types of fields that suites, systems and parameters share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

NAME = r"^[a-z0-9][a-z0-9_-]*$"
IDENTIFIER = r"^[a-z][a-z0-9_]*$"
Name = Annotated[str, Field(pattern=NAME, max_length=60)]
Identifier = Annotated[str, Field(pattern=IDENTIFIER, max_length=60)]
PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Values = TypeVar("Values", bound=Sequence[str])
Minutes = Annotated[float, Field(gt=0, le=366 * 24 * 60)]
# What a cost or a count is about: a whole case, or a part of it.
Scope = Literal["case", "epoch", "trial", "stage", "precision"]


class StrictModel(BaseModel):
    """An immutable model that refuses unknown keys; the string below a field is its description."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, defer_build=True)


def check_unique(values: Values) -> Values:
    """Return the values unchanged; raise ValueError if one is a duplicate."""
    duplicate = next((value for k, value in enumerate(values) if value in values[:k]), None)
    if duplicate is not None:
        raise ValueError(f"duplicate value {duplicate!r}")
    return values
