"""Any checkpoint of the reference model as an ASE calculator.

atoms.calc = ReferenceCalculator("painn-64")                # the gate weighs the heads
atoms.calc = ReferenceCalculator("model.pt", head="MPTrj")  # one head alone
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.stress import full_3x3_to_voigt_6_stress
from torch import Tensor

from harness.reference import checkpoints
from harness.reference.batches import collate
from harness.reference.datasets.files import from_ase
from harness.reference.datasets.heads import HEADS
from harness.reference.errors import InputError
from harness.reference.graphs import neighbour_graph
from harness.reference.inference import batched_heads, stress
from harness.reference.models.foundation import FoundationModel
from harness.reference.precision import precision


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

    model: a checkpoint's path, the name of a shipped one, or a model. head: a dataset's name, or None for the gate's
    weighted sum of all. precision: "fp64" or "fp32". Charge and multiplicity are those of atoms.info ("charge",
    "multiplicity"; 0 where absent). Raises InputError for elements that the model has not seen and for a head that was
    never trained; the energies of different heads have zeros of their own.
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
        loaded = model if isinstance(model, FoundationModel) else checkpoints.named(str(model))[0]
        kind = precision(precision_name)
        self.model = kind.of(loaded).to(device).eval().requires_grad_(False)
        self.device, self.dtype = device, kind.dtype
        self.head = None if head is None else head_named(head)
        if self.head is not None and not bool(self.model.trained[self.head]):
            raise InputError(f"head {HEADS[self.head]!r} of this model was never trained")

    def weights(self, composition: Tensor) -> Tensor:
        """composition [g, 119] -> what each head counts, [g, heads]."""
        if self.head is None:
            return self.model.gate(composition)
        one = torch.zeros(self.model.config.heads, dtype=composition.dtype, device=composition.device)
        one[self.head] = 1.0
        return one.expand(len(composition), -1)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """As ASE asks; the neighbour list is made anew."""
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None
        structure = from_ase(self.atoms, "atoms")
        self.model.check_elements(structure)
        limits = self.model.config.cutoff, self.model.config.max_neighbours
        graph = neighbour_graph(structure, cutoff=limits[0], max_neighbours=limits[1])
        batch = collate([graph], with_triplets=self.model.config.needs_triplets).to(self.device, self.dtype)
        weights = self.weights(batch.composition)
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
