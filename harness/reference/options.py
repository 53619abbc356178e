"""Plain data from a case file -> a configuration dataclass."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from harness.reference.errors import InputError

Config = TypeVar("Config")


def build(kind: type[Config], options: Mapping[str, Any]) -> Config:
    """The dataclass with these fields, lists as tuples; raises InputError for wrong fields and words."""
    known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    for name in options:
        if name not in known:
            raise InputError(f"unknown option {name!r}; there are {', '.join(known)}")
    for name, hint in get_type_hints(kind).items():
        if name in options and get_origin(hint) is Literal:
            check_word(name, options[name], get_args(hint))
    try:
        return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in options.items()})
    except TypeError as error:
        raise InputError(str(error)) from None


def check_word(name: str, given: object, words: Sequence[str]) -> None:
    """Raise InputError for what is none of the words."""
    if given not in words:
        close = difflib.get_close_matches(str(given).lower(), words, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise InputError(f"{name} is {given!r}{hint}; there are {', '.join(words)}")
