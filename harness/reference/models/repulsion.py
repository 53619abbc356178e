"""Model short distances with a pair repulsion, and switch learnt interactions on as the distance grows.

Relative distances are in units of the sum of the covalent radii of the two atoms.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from harness.reference.data.batch import Batch
from harness.reference.datasets.parsing.constants import COVALENT_RADII
from harness.reference.models.basis import ExactBuffer, tricube
from harness.reference.ops.pair_repulsion import repel_pairs

COULOMB_EV_ANGSTROM = 14.399645478425668  # e^2 / (4 pi epsilon_0), CODATA 2018
# The screening function of the source below: sum of A exp(-d r / a) with a = 0.8854 a_0 / (Z_1^0.23 + Z_2^0.23).
SCREENING_LENGTH_ANGSTROM = 0.8854 * 0.529177210903
SCREENING_POWER = 0.23
AMPLITUDES = (0.18175, 0.50986, 0.28022, 0.02817)
DECAYS = (3.19980, 0.94229, 0.40290, 0.20162)


class Repulsion(nn.Module):
    """The universal repulsive potential of nuclei screened by electrons, up to a relative distance.

    Source: Ziegler, Biersack, Littmark, The Stopping and Range of Ions in Solids, Pergamon (1985). An envelope like
    that of MACE (Batatia et al., arXiv 2206.07697) ends it where learnt interactions are complete: at bonds of usual
    lengths, it would be a large force that the network has to cancel.

    Args:
        core: The relative distance up to which learnt interactions are zero.
        end: The relative distance where the repulsion ends and learnt interactions are complete.
    """

    def __init__(self, core: float, end: float) -> None:
        super().__init__()
        self.core, self.end = core, end
        numbers = np.arange(len(COVALENT_RADII), dtype=float)
        strength = numbers * (0.5 * COULOMB_EV_ANGSTROM) ** 0.5
        # by atomic number: covalent radius, factor of half the energy, term of the inverse screening length
        table = np.stack([COVALENT_RADII, strength, numbers**SCREENING_POWER / SCREENING_LENGTH_ANGSTROM], axis=1)
        self.table = ExactBuffer(torch.from_numpy(table))

    def forward(self, r: Tensor, batch: Batch, *, fused: bool = False) -> tuple[Tensor, Tensor]:
        """Return half the repulsion energy of each edge in eV, and the switch of learnt interactions, [e, 1] each.

        Each pair of atoms has two edges. The switch is the factor of learnt interactions, from 0 to 1.

        Args:
            r: [e, 1] distances in angstrom.
            batch: The structures.
            fused: Whether the operators of harness.reference.ops are loaded; on CPUs, one of them is used then.
        """
        if fused and r.device.type == "cpu":
            atoms, bounds = self.table(torch.float64)[batch.numbers], (self.core, self.end)
            return repel_pairs(r, atoms, batch.receiver, batch.sender, bounds, (AMPLITUDES, DECAYS))
        atoms = self.table(r.dtype)[batch.numbers]
        sender, receiver = atoms[batch.sender], atoms[batch.receiver]
        relative = r / (sender[:, :1] + receiver[:, :1])
        reduced = r * (sender[:, 2:] + receiver[:, 2:])
        screening = torch.zeros_like(reduced)
        for amplitude, decay in zip(AMPLITUDES, DECAYS, strict=True):  # an axis of four is too short for SIMD
            screening = screening + amplitude * torch.exp(-decay * reduced)
        coulomb = sender[:, 1:2] * receiver[:, 1:2] / r
        switch_distance = ((self.end - relative) / (self.end - self.core)).clamp(min=0.0)
        return coulomb * screening * tricube((relative / self.end) ** 3), tricube(switch_distance**3)
