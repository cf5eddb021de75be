"""What all parts of a specification share: strictness, field types with their limits, and what a misspelt word was meant to be."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Strict(BaseModel):
    """A frozen model that accepts its own fields only, converts nothing, and refuses NaN and infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
"""A name that is safe in paths, URLs and W&B: lower-case letters, digits, `_` and `-`, at most 64."""

Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFraction = Annotated[float, Field(gt=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1, lt=2**31)]
"""An integer of at least one; records hold 32 bits."""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word most like the given one, or that it abbreviates; None when nothing is near."""
    words = list(known)
    found = get_close_matches(word, words, n=1, cutoff=0.6) or [other for other in words if len(word) > 2 and other.startswith(word)]
    return found[0] if found else None
