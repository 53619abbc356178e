"""Names that are missing from a file, and the names in it that may stand for the same."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

# A label under these names is offered, never taken: reference methods, corrections and units hide behind them.
SYNONYMS = {
    "energy": re.compile(r"energ|^e$|^e[_.-]|[_.-]e$|^(raw_)?y(_|$)|toten|^u0$|e_?tot", re.IGNORECASE),
    "forces": re.compile(r"forc|^f$|^f[_.-]|[_.-]f$|grad", re.IGNORECASE),
    "stress": re.compile(r"stress|virial", re.IGNORECASE),
    "charge": re.compile(r"^(\w*(tot|net|mol|sys)\w*_)?charge$|^q$", re.IGNORECASE),
    "spin": re.compile(r"^(\w+_)?(spin|multiplicity)$", re.IGNORECASE),
}
SYNONYMS["y"] = SYNONYMS["energy"]


def similar_name(key: str, names: Iterable[str]) -> str:
    """Return the name that most likely stands for a key, or ""."""
    candidates = sorted({str(name) for name in names if str(name) != key})
    if pattern := SYNONYMS.get(key):
        candidates = [name for name in candidates if pattern.search(name)]
        return min(candidates, key=lambda name: (len(name), name)) if candidates else ""
    return next(iter(difflib.get_close_matches(key, candidates, n=1)), "")
