"""Any checkpoint of the reference model as an ASE calculator.

atoms.calc = ReferenceCalculator("painn-64")                # the gate weighs the heads
atoms.calc = ReferenceCalculator("model.safetensors", head="MPTrj")  # one head alone
"""

from __future__ import annotations

import copy
import difflib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.stress import full_3x3_to_voigt_6_stress
from torch import Tensor

from harness.reference.data.batch import collate
from harness.reference.data.electronic_state import electronic_state
from harness.reference.data.neighbours import Graph, neighbour_graph
from harness.reference.datasets.heads import HEADS
from harness.reference.datasets.user_files import from_ase
from harness.reference.errors import InputError
from harness.reference.inference.precision import precision
from harness.reference.inference.prediction import batched_heads, stress
from harness.reference.models import checkpoints
from harness.reference.models.coverage import check_distances, check_elements
from harness.reference.models.foundation import FoundationModel

DEVICES = ("cpu", "cuda", "xpu", "mps")


def head_named(name: str) -> int:
    """The branch of a dataset, whatever the case of its name; raises InputError with the nearest name."""
    lower = {known.lower(): k for k, known in enumerate(HEADS)}
    if name.lower() in lower:
        return lower[name.lower()]
    near = difflib.get_close_matches(name.lower(), lower, n=1)
    hint = f"did you mean {HEADS[lower[near[0]]]!r}?" if near else f"there are: {', '.join(HEADS)}"
    raise InputError(f"no head {name!r} ({hint})")


class ReferenceCalculator(Calculator):
    """Energy (eV), forces (eV/angstrom) and stress (eV/angstrom^3, ASE's sign) of one model.

    Charge and multiplicity come from `atoms.info`: `charge` or `total_charge`; `multiplicity`, `spin_multiplicity` or,
    as in OMol25, `spin`, all of them 2S + 1. A change of them is a change of the atoms. The energies of different heads
    have zeros of their own.

    Args:
        model: A checkpoint's path, the name of a shipped one, or a model.
        head: A dataset's name; None for the gate's weighted sum of the heads that know all elements of the atoms.
        precision_name: "fp64" or "fp32".
        device: As torch names it.
        words: As of ASE's Calculator.

    Raises:
        InputError: The model, head or device does not exist, or the head was never trained. Of `calculate`: charge or
            multiplicity make no sense, or the atoms are outside what the model was trained on (OutsideTraining):
            elements that the head, or every single head, lacks, or atoms closer than any in training.

    Warns:
        UserWarning: Once, where atoms have more neighbours than the model takes, so that the energy has jumps.
    """

    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012

    def __init__(
        self,
        model: FoundationModel | Path | str,
        *,
        head: str | None = None,
        precision_name: str = "fp64",
        device: str = "cpu",
        **words: Any,
    ) -> None:
        super().__init__(**words)
        kind = precision(precision_name)
        place = find_device(device, kind.dtype)
        # a copy: another calculator of the same model may want another precision
        loaded = copy.deepcopy(model) if isinstance(model, FoundationModel) else checkpoints.named(str(model))[0]
        self.model = kind.of(loaded).to(place).eval().requires_grad_(False)
        self.device, self.dtype = place, kind.dtype
        self.head = None if head is None else head_named(head)
        if self.head is not None and not bool(self.model.trained[self.head : self.head + 1].any()):
            raise InputError(f"head {HEADS[self.head]!r} of this model was never trained")
        self.state = (0, 0)
        self.has_warned = False

    def weights(self, composition: Tensor) -> Tensor:
        """composition [g, 119] -> what each head counts, [g, heads]."""
        if self.head is None:
            return self.model.gate_weights(composition)
        one = torch.zeros(self.model.config.heads, dtype=composition.dtype, device=composition.device)
        one[self.head] = 1.0
        return one.expand(len(composition), -1)

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """Return what has changed since the last calculation, charge and multiplicity included."""
        changes: list[str] = super().check_state(atoms, tol=tol)
        return changes if self.state == electronic_state(atoms.info) else [*changes, "info"]

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Calculate everything anew, as ASE asks, the neighbour list included."""
        self.results = {}  # nothing of other atoms outlives an error
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None
        structure = from_ase(self.atoms, "atoms").check()
        check_elements(self.model, structure, self.head)
        limits = self.model.config.cutoff, self.model.config.max_neighbours
        graph = neighbour_graph(structure, cutoff=limits[0], max_neighbours=limits[1])
        batch = collate([graph], with_triplets=self.model.config.needs_triplets).to(self.device, self.dtype)
        weights = self.weights(batch.composition)
        check_distances(self.model, graph, weights[0])
        if graph.dropped and not self.has_warned:
            self.has_warned = True
            warnings.warn(jump_warning(graph, *limits), UserWarning, stacklevel=2)
        if properties is not None and "stress" in properties:
            if not all(structure.periodic):
                raise PropertyNotImplementedError("stress needs a cell that is periodic along all three vectors")
            found, tension = stress(self.model, batch, weights)
            voigt = full_3x3_to_voigt_6_stress(tension[0].double().cpu().numpy())
            self.results["stress"] = np.asarray(voigt)
        else:
            found = batched_heads(self.model, batch, weights)
        energy = float(found.energy[0])
        forces = found.forces.double().cpu().numpy()
        self.results |= {"energy": energy, "free_energy": energy, "forces": forces}
        self.state = structure.charge, structure.multiplicity


def jump_warning(graph: Graph, cutoff: float, max_neighbours: int | None) -> str:
    """Return what to say of a structure whose atoms have more neighbours than the model takes."""
    return (
        f"the model takes the {max_neighbours} nearest neighbours of an atom, and {graph.dropped} further ones within"
        f" {cutoff:g} angstrom are left out of these {len(graph.structure)} atoms: where the order of distances"
        " changes, the energy jumps, so that a relaxation may not converge and dynamics do not conserve energy"
    )


def find_device(name: str, dtype: torch.dtype) -> torch.device:
    """Return the device of that name; raises InputError if it is unknown, absent, or lacks the type."""
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        near = difflib.get_close_matches(str(name).lower(), DEVICES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are, for example, {', '.join(DEVICES)}"
        raise InputError(f"no device {name!r} ({hint})") from None
    try:
        torch.zeros(1, dtype=dtype, device=device).item()
    except Exception as error:  # each kind of device is absent in its own way
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise InputError(f"device {str(device)!r} cannot be used here ({reason})") from None
    return device
