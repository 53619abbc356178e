"""The official formats by name."""

from __future__ import annotations

import difflib

from harness.reference.datasets.parsing.base import Format
from harness.reference.datasets.readers import (
    alexandria,
    ani1x,
    asedb,
    aselmdb,
    mptrj,
    qcml,
    qm7x,
    s2ef_lmdb,
    s2ef_text,
    transition1x,
)
from harness.reference.errors import InputError

FORMATS: dict[str, Format] = {
    module.FORMAT.name: module.FORMAT
    for module in (
        alexandria,
        ani1x,
        asedb,
        aselmdb,
        mptrj,
        qcml,
        qm7x,
        s2ef_lmdb,
        s2ef_text,
        transition1x,
    )
}


def named(name: str) -> Format:
    """The format of that name; raises InputError with the nearest one."""
    if name in FORMATS:
        return FORMATS[name]
    near = difflib.get_close_matches(name, FORMATS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(FORMATS)}"
    raise InputError(f"no format {name!r} ({hint})")
