"""The workload that the parameters of a case describe."""

from __future__ import annotations

from collections.abc import Sequence

from ase.data import chemical_symbols

from harness.protocol.programs.screening import Candidates
from harness.reference.errors import InputError
from harness.reference.models.foundation import FoundationModel
from harness.reference.programs.screening.candidates.prototype_space import CandidateSpace, parse_element_symbols
from harness.reference.programs.screening.candidates.prototype_workload import CrystalWorkload
from harness.reference.programs.screening.candidates.prototypes import load_prototypes
from harness.reference.programs.screening.candidates.random_workload import RandomSpace, RandomWorkload
from harness.reference.programs.screening.candidates.workload import Workload

HEAVIEST_ELEMENT = 94


def build_workload(config: Candidates, model: FoundationModel, head: int | None = None) -> Workload:
    """Return the candidates of a case.

    Args:
        config: The parameters of the candidates.
        model: The model.
        head: The head whose elements prototypes have if the parameters name none; None for those of all heads.

    Raises:
        InputError: The model was not trained on one of the elements that the parameters name.
    """
    spec = model.config.limit_neighbours(config.max_neighbours or model.config.max_neighbours)
    if config.kind == "random":
        space = RandomSpace(config.streams, config.per_stream, config.atoms)
        return RandomWorkload(space, spec)
    crystals = CandidateSpace(load_prototypes(), select_elements(config.elements, model, head), config.volumes)
    return CrystalWorkload(crystals, config.filters, spec)


def select_elements(symbols: Sequence[str], model: FoundationModel, head: int | None = None) -> tuple[int, ...]:
    """Return the atomic numbers of symbols; without symbols, those of all elements that the model or a head knows."""
    known = [z for z in range(1, HEAVIEST_ELEMENT + 1) if bool(model.elements[z])]
    if not symbols:
        return tuple(z for z in known if head is None or bool(model.known_elements[head, z]))
    for z in parse_element_symbols(symbols):
        if z not in known:
            raise InputError(f"element {chemical_symbols[z]!r}: the model was not trained on it")
    return parse_element_symbols(symbols)
