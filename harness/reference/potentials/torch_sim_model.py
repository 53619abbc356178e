"""The reference model behind the model interface of torch-sim, for its batched optimisers and integrators.

Example:
    model = ReferenceModel("painn-64", dtype=torch.float64)
    final = torch_sim.optimize(system=atoms, model=model, optimizer=torch_sim.unit_cell_fire)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_sim.models.interface import ModelInterface

from harness.reference.data.batch import build_batch
from harness.reference.data.structure import Structure
from harness.reference.inference.prediction import batched_heads, predict_with_stress
from harness.reference.models import checkpoints
from harness.reference.models.coverage import check_elements
from harness.reference.models.foundation import FoundationModel


class ReferenceModel(ModelInterface):  # type: ignore[misc]
    """A reference model, whose heads the gate weights, as a model of torch-sim.

    Args:
        model: A model, the path of a checkpoint, or the name of a shipped checkpoint.
        device: The device, or its torch name.
        dtype: torch.float64 or torch.float32.
        compute_stress: Whether the model also computes the stress.
    """

    def __init__(
        self,
        model: FoundationModel | Path | str,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float64,
        compute_stress: bool = True,
    ) -> None:
        super().__init__()
        loaded = model if isinstance(model, FoundationModel) else checkpoints.load_named(str(model))[0]
        self._device, self._dtype = torch.device(device), dtype
        self._compute_stress, self._compute_forces = compute_stress, True
        self.model = loaded.to(self._device, dtype).eval().requires_grad_(False)

    def forward(self, state: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Return energy [g] (eV), forces [n, 3] (eV/angstrom) and stress [g, 3, 3] (eV/angstrom^3) of g systems.

        Raises:
            InputError: The model was not trained on an element of a system.
        """
        del kwargs
        config = self.model.config
        structures = split_state(state)
        for structure in structures:
            check_elements(self.model, structure)
        graphs = [config.neighbour_spec.build_list(s) for s in structures]
        batch = build_batch(graphs, with_triplets=config.needs_triplets).to(self._device, self._dtype)
        weights = self.model.gate_weights(batch.composition)
        if not self._compute_stress:
            prediction = batched_heads(self.model, batch, weights)
            return {"energy": prediction.energy, "forces": prediction.forces}
        prediction, stress = predict_with_stress(self.model, batch, weights)
        return {"energy": prediction.energy, "forces": prediction.forces, "stress": stress}


def split_state(state: Any) -> list[Structure]:
    """Return the systems of a torch-sim state as structures; the columns of a state's cells are the lattice vectors."""
    system_of_atom = state.system_idx.cpu().numpy()
    numbers, positions = state.atomic_numbers.cpu().numpy(), state.positions.detach().double().cpu().numpy()
    cells = state.cell.detach().double().transpose(1, 2).cpu().numpy()
    pbc = torch.as_tensor(state.pbc).expand(3).tolist()
    return [
        Structure(
            name=f"system {k}",
            numbers=numbers[system_of_atom == k].astype("int64"),
            positions=positions[system_of_atom == k],
            cell=cells[k],
            periodic=(bool(pbc[0]), bool(pbc[1]), bool(pbc[2])),
        )
        for k in range(len(cells))
    ]
