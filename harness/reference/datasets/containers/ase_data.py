"""The dictionary `row.data` of an ASE database, of which only what is asked for is unfolded."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from harness.reference.datasets.containers.json_stream import decoded
from harness.reference.datasets.parsing.structure_builder import Unfit


def decode_data(data: Any, wanted: Collection[str]) -> dict[str, Any]:
    """Return all keys of row.data, with values of those wanted and None for the others.

    ASE packs it in bytes since version 8 of its databases (numbers first, then JSON that points at them, the place of
    the JSON in the first eight bytes), and as text before. Raises Unfit for anything else.
    """
    if not data or data == "null":
        return {}
    raw = data.encode() if isinstance(data, str) else bytes(data)
    start = 0 if isinstance(data, str) else int.from_bytes(raw[:8], "little")
    if start > len(raw):
        raise Unfit("malformed", "row.data points beyond its end")
    try:
        result = decoded(raw[start:])
    except Unfit as error:
        raise Unfit("malformed", f"row.data is {error}") from None
    if not isinstance(result, dict):
        raise Unfit("malformed", f"row.data is a {type(result).__name__}")
    return {str(name): _value(value, raw) if name in wanted else None for name, value in result.items()}


def _value(value: Any, raw: bytes) -> Any:
    if not isinstance(value, dict):
        return value
    stored = value.get("__ndarray__")
    if not isinstance(stored, list) or len(stored) != 3:
        return None
    shape, name, place = stored
    kind = np.dtype(str(name)[:10])
    if kind.kind not in "biuf":
        raise Unfit("malformed", f"row.data has numbers of type {str(name)[:10]!r}")
    if isinstance(place, list):
        return np.array(place, dtype=kind).reshape(shape)
    count = int(np.prod(shape, dtype=np.float64))
    if not (isinstance(place, int) and 0 <= place <= place + count * kind.itemsize <= len(raw)):
        raise Unfit("malformed", "row.data points beyond its end")
    return np.frombuffer(raw, kind, count, place).reshape(shape)
