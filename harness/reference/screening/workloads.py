"""Which candidates a case asks for."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from ase.data import atomic_numbers

from harness.reference.errors import InputError
from harness.reference.models.foundation import FoundationModel
from harness.reference.screening.crystals import Crystals
from harness.reference.screening.filters import FILTERS
from harness.reference.screening.prototypes import prototypes
from harness.reference.screening.random_stream import PER_STREAM, RandomStreams
from harness.reference.screening.space import SCALES, CandidateSpace
from harness.reference.screening.workload import Workload

HEAVIEST = 94


@dataclass(frozen=True)
class WorkloadConfig:
    """kind "prototypes": elements by symbol, by default all that the model knows up to plutonium; volumes; filters.
    kind "random": streams of per_stream structures of atoms[0]..atoms[1] atoms. max_neighbours: the model's by default.
    """

    kind: Literal["prototypes", "random"] = "prototypes"
    elements: tuple[str, ...] = ()
    volumes: tuple[float, ...] = SCALES
    filters: tuple[str, ...] = ()
    streams: int = 1
    per_stream: int = PER_STREAM
    atoms: tuple[int, int] = (2, 500)
    max_neighbours: int | None = None


def workload_of(config: WorkloadConfig, model: FoundationModel) -> Workload:
    """The candidates; raises InputError for unknown words and for elements that the model has not seen."""
    cutoff = model.config.cutoff
    limit = config.max_neighbours or model.config.max_neighbours
    if config.kind == "random":
        return RandomStreams(config.streams, config.per_stream, config.atoms, cutoff=cutoff, limit=limit)
    if config.kind != "prototypes":
        raise InputError(f"workload {config.kind!r}: expected prototypes or random")
    filters = []
    for name in config.filters:
        if name not in FILTERS:
            near = difflib.get_close_matches(name, FILTERS, n=1)
            raise InputError(
                f"filter {name!r}: there are {', '.join(FILTERS)}{f' (did you mean {near[0]!r}?)' * bool(near)}"
            )
        filters.append(FILTERS[name]())
    space = CandidateSpace(prototypes(), elements_of(config.elements, model), config.volumes)
    return Crystals(space, filters, cutoff=cutoff, limit=limit)


def elements_of(symbols: tuple[str, ...], model: FoundationModel) -> tuple[int, ...]:
    """Atomic numbers, in their order."""
    known = [z for z in range(1, HEAVIEST + 1) if bool(model.elements[z])]
    if not symbols:
        return tuple(known)
    for symbol in symbols:
        if symbol not in atomic_numbers:
            near = difflib.get_close_matches(symbol.capitalize(), atomic_numbers, n=1)
            raise InputError(f"element {symbol!r}: no such symbol{f' (did you mean {near[0]!r}?)' if near else ''}")
        if atomic_numbers[symbol] not in known:
            raise InputError(f"element {symbol!r}: the model has not seen it")
    return tuple(sorted(atomic_numbers[s] for s in symbols))
