"""Charge and multiplicity from the `info` of an ASE object, under the names that datasets and programs give them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np

from harness.reference.errors import InputError

CHARGE_NAMES = ("charge", "total_charge")
# OMol25 calls the multiplicity 2S + 1 `spin`
MULTIPLICITY_NAMES = ("multiplicity", "spin_multiplicity", "spin")
MOST = 100


def electronic_state(info: Mapping[str, Any], name: str = "atoms") -> tuple[int, int]:
    """Return (charge, multiplicity 2S + 1), each 0 where `info` does not give it; multiplicity 0 means unknown.

    Raises:
        InputError: A value is not a whole number within -100..100 (charge) or 0..100 (multiplicity), or two names
            of the same quantity have different values.
    """
    return _value(info, CHARGE_NAMES, -MOST, name), _value(info, MULTIPLICITY_NAMES, 0, name)


def _value(info: Mapping[str, Any], names: tuple[str, ...], least: int, structure: str) -> int:
    given = {key: _whole(key, info[key], least, structure) for key in names if key in info}
    if len(set(given.values())) > 1:
        words = ", ".join(f"info[{key!r}] is {value}" for key, value in given.items())
        raise InputError(f"structure {structure!r}: {words}; they are names of one quantity and must agree")
    return next(iter(given.values()), 0)


def _whole(key: str, value: Any, least: int, structure: str) -> int:
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool | np.bool_) else math.nan
    if not (least <= number <= MOST and number == round(number)):
        shown = " ".join(repr(value).split())[:40]
        raise InputError(
            f"structure {structure!r}: info[{key!r}] is {shown}, expected a whole number from {least} to {MOST}"
        )
    return int(number)
