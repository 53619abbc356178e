"""Which candidates a case asks for."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from ase.data import chemical_symbols

from harness.reference.errors import InputError
from harness.reference.models.foundation import FoundationModel
from harness.reference.programs.screening.candidates.prototype_space import SCALES, CandidateSpace, element_numbers
from harness.reference.programs.screening.candidates.prototype_workload import FILTERS, Crystals
from harness.reference.programs.screening.candidates.prototypes import prototypes
from harness.reference.programs.screening.candidates.random_space import PER_RANK, RandomSpace
from harness.reference.programs.screening.candidates.random_workload import RandomBoxes
from harness.reference.programs.screening.candidates.workload import Workload

HEAVIEST = 94


@dataclass(frozen=True)
class WorkloadConfig:
    """kind "prototypes": elements by symbol, by default all that the model knows up to plutonium; volumes; filters.
    kind "random": streams of per_stream structures of atoms[0]..atoms[1] atoms. max_neighbours: the model's by default.
    """

    kind: Literal["prototypes", "random"]
    elements: tuple[str, ...] = ()
    volumes: tuple[float, ...] = SCALES
    filters: tuple[str, ...] = ()
    streams: int = 1
    per_stream: int = PER_RANK
    atoms: tuple[int, int] = (2, 500)
    max_neighbours: int | None = None


def workload_of(config: WorkloadConfig, model: FoundationModel) -> Workload:
    """The candidates; raises InputError for unknown words and for elements that the model has not seen."""
    cutoff = model.config.cutoff
    most = config.max_neighbours or model.config.max_neighbours
    if config.kind == "random":
        space = RandomSpace(config.streams, config.per_stream, config.atoms)
        return RandomBoxes(space, cutoff=cutoff, max_neighbours=most)
    for name in config.filters:
        if name not in FILTERS:
            near = difflib.get_close_matches(name, FILTERS, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise InputError(f"filter {name!r}: there are {', '.join(FILTERS)}{hint}")
    crystals = CandidateSpace(prototypes(), elements_of(config.elements, model), config.volumes)
    return Crystals(crystals, config.filters, cutoff=cutoff, max_neighbours=most)


def elements_of(symbols: tuple[str, ...], model: FoundationModel) -> tuple[int, ...]:
    """Atomic numbers of these symbols, or of all elements that the model knows."""
    known = [z for z in range(1, HEAVIEST + 1) if bool(model.elements[z])]
    if not symbols:
        return tuple(known)
    for z in element_numbers(symbols):
        if z not in known:
            raise InputError(f"element {chemical_symbols[z]!r}: the model has not seen it")
    return element_numbers(symbols)
