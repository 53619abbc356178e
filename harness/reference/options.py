"""Plain data from a case file -> a configuration dataclass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from harness.reference.errors import InputError

Config = TypeVar("Config")


def build(kind: type[Config], options: Mapping[str, Any]) -> Config:
    """The dataclass with these fields, lists as tuples; raises InputError for a field it lacks or needs."""
    known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    for name in options:
        if name not in known:
            raise InputError(f"unknown option {name!r}; there are {', '.join(known)}")
    try:
        return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in options.items()})
    except TypeError as error:
        raise InputError(str(error)) from None
