"""Types that the fields of documents share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

NAME = r"^[a-z0-9][a-z0-9_-]*$"
WORD = r"^[a-z][a-z0-9_]*$"
Name = Annotated[str, Field(pattern=NAME, max_length=60)]
Word = Annotated[str, Field(pattern=WORD, max_length=60)]
Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Minutes = Annotated[float, Field(gt=0, le=366 * 24 * 60)]


class Strict(BaseModel):
    """Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def without_repeats(words: list[str]) -> list[str]:
    """The list as it is; raises ValueError if a word stands in it twice."""
    if len(set(words)) < len(words):
        raise ValueError("a value stands in the list twice")
    return words
