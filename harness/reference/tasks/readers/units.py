"""Units that files name in words, as factors to eV and angstrom."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from harness.reference.datasets.units import BOHR_ANGSTROM, HARTREE_EV, KCAL_PER_MOL_EV
from harness.reference.errors import InputError

_KJ_PER_MOL_EV = KCAL_PER_MOL_EV / 4.184
# the first word of each row is shown to users
_ENERGIES = (
    (KCAL_PER_MOL_EV, ("kcal/mol", "kcalmol-1", "kcalpermol", "kcal_mol", "kcal")),
    (_KJ_PER_MOL_EV, ("kJ/mol", "kjmol-1", "kjpermol", "kj_mol")),
    (1.0, ("eV", "electronvolt", "electronvolts")),
    (1e-3, ("meV",)),
    (HARTREE_EV, ("hartree", "hartrees", "ha", "eh", "au", "a.u.", "a.u")),
    (HARTREE_EV / 2, ("rydberg", "ry", "rydbergs")),
)
_LENGTHS = (
    (1.0, ("angstrom", "ang", "a", "\N{LATIN SMALL LETTER A WITH RING ABOVE}", "angstroms", "\N{ANGSTROM SIGN}")),
    (BOHR_ANGSTROM, ("bohr", "bohrs", "a0", "au", "a.u.", "a.u")),
    (10.0, ("nm", "nanometer", "nanometre")),
    (0.01, ("pm", "picometer", "picometre")),
)


def find_energy_unit(where: str, text: Any) -> float:
    """Return eV per unit of that name; raises InputError with the known names."""
    return _find(where, text, _ENERGIES)


def find_length_unit(where: str, text: Any) -> float:
    """Return angstrom per unit of that name; raises InputError with the known names."""
    return _find(where, text, _LENGTHS)


def _find(where: str, text: Any, rows: tuple[tuple[float, tuple[str, ...]], ...]) -> float:
    value = np.asarray(text)
    word = value.reshape(-1)[0] if value.size == 1 else value.tolist()
    name = word.decode(errors="replace") if isinstance(word, bytes) else str(word)
    known: Mapping[str, float] = {_plain(alias): factor for factor, aliases in rows for alias in aliases}
    if _plain(name) in known:
        return known[_plain(name)]
    near = difflib.get_close_matches(_plain(name), known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise InputError(f"{where}: unknown unit {name[:40]!r} ({hint}there are {', '.join(a[0] for _, a in rows)})")


def _plain(name: str) -> str:
    return re.sub(r"[\s^()*]", "", name).lower()
