"""Models of other packages, configured like those of the harness: same weights, radial basis, cutoff and edges."""

from __future__ import annotations

import importlib.util
import math
import sys
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch_geometric.nn.models import SchNet, dimenet

from harness.reference.data.batch import Batch
from harness.reference.models.backbones.mace import MACE
from harness.reference.models.backbones.painn import Message, PaiNN, Update
from harness.reference.models.config import ModelConfig
from tests.reference.models import mace_torch


def import_schnetpack(module: str) -> Any:
    """Import a module of schnetpack without running the __init__ of the package.

    That __init__ imports data loaders and trainers, which need names that this version of torch no longer has.
    """
    if "schnetpack" not in sys.modules:
        spec = importlib.util.find_spec("schnetpack")
        assert spec is not None
        sys.modules["schnetpack"] = importlib.util.module_from_spec(spec)
    return importlib.import_module(f"schnetpack.{module}")


class SchNetPackPaiNN(nn.Module):
    """schnetpack's PaiNN behind the interface of the harness's backbones."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        layers, names = import_schnetpack("nn"), import_schnetpack("properties")
        self.names = (names.Z, names.Rij, names.idx_i, names.idx_j)
        radial = layers.BesselRBF(config.num_radial, config.cutoff)
        # schnetpack rounds its frequencies to single precision
        radial.freqs = torch.arange(1, radial.n_rbf + 1, dtype=torch.float64) * (math.pi / config.cutoff)
        self.net = import_schnetpack("representation").PaiNN(
            n_atom_basis=config.hidden_dim,
            n_interactions=config.num_conv_layers,
            radial_basis=radial,
            cutoff_fn=layers.CosineCutoff(config.cutoff),
            epsilon=config.norm_epsilon,
        )

    def forward(self, batch: Batch, vector: Tensor) -> Tensor:
        """Return scalar features [n, F] for vectors [e, 3] from receiver to sender."""
        inputs = dict(zip(self.names, (batch.numbers, vector, batch.receiver, batch.sender), strict=True))
        s: Tensor = self.net(inputs)["scalar_representation"]
        return s

    @torch.no_grad()
    def copy_weights(self, ours: PaiNN) -> None:
        """Copy the weights of the harness's backbone, except for elements that schnetpack's embedding lacks."""
        self.net.embedding.weight.copy_(ours.embedding.weight[: len(self.net.embedding.weight)])
        for k, (message, update) in enumerate(zip(ours.messages, ours.updates, strict=True)):
            assert isinstance(message, Message)
            assert isinstance(update, Update)
            context, mixing = self.net.interactions[k].interatomic_context_net, self.net.mixing[k]
            rows = slice(3 * ours.width * k, 3 * ours.width * (k + 1))
            self.net.filter_net.weight[rows] = message.filter.weight
            self.net.filter_net.bias[rows] = message.filter.bias
            context[0].load_state_dict(message.phi_hidden.state_dict())
            context[1].load_state_dict(message.phi.state_dict())
            mixing.mu_channel_mix.load_state_dict(update.mix.state_dict())
            mixing.intraatomic_context_net[0].load_state_dict(update.a_hidden.state_dict())
            mixing.intraatomic_context_net[1].load_state_dict(update.a.state_dict())


class TorchGeometricSchNet(nn.Module):
    """torch_geometric's SchNet, which returns energies [g] for prepared edges."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.num_gaussians is not None
        assert config.num_filters is not None
        self.net = SchNet(
            config.hidden_dim,
            config.num_filters,
            config.num_conv_layers,
            config.num_gaussians,
            config.cutoff,
            interaction_graph=self.edges,
        )
        self.pairs = torch.zeros(2, 0, dtype=torch.long)

    def edges(self, positions: Tensor, _graph: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pairs [2, e] and their distances [e]."""
        sender, receiver = self.pairs
        return self.pairs, (positions[sender] - positions[receiver]).norm(dim=-1)

    def forward(self, batch: Batch, positions: Tensor) -> Tensor:
        self.pairs = torch.stack([batch.sender, batch.receiver])
        energy: Tensor = self.net(batch.numbers, positions, batch.graph)
        return energy.squeeze(-1)


class TorchGeometricDimeNet(nn.Module):
    """torch_geometric's DimeNet++, which returns energies [g] for prepared edges and pairs of edges."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.net = dimenet.DimeNetPlusPlus(
            hidden_channels=config.hidden_dim,
            out_channels=1,
            num_blocks=config.num_conv_layers,
            int_emb_size=config.int_emb_size,
            basis_emb_size=config.basis_emb_size,
            out_emb_channels=config.out_emb_size,
            num_spherical=config.num_spherical,
            num_radial=config.num_radial,
            cutoff=config.cutoff,
            envelope_exponent=config.envelope_exponent,
            num_before_skip=config.num_before_skip,
            num_after_skip=config.num_after_skip,
            output_initializer="glorot_orthogonal",
        )

    def forward(self, batch: Batch, positions: Tensor) -> Tensor:
        i, j, kj, ji = batch.receiver, batch.sender, batch.incoming, batch.outgoing
        lists = (i, j, i[ji], j[ji], j[kj], kj, ji)
        # the functions that build these lists need libraries without a wheel for this torch
        with (
            patch.object(dimenet, "radius_graph", lambda *_args, **_options: None),
            patch.object(dimenet, "triplets", lambda *_args, **_options: lists),
        ):
            energy: Tensor = self.net(batch.numbers, positions, batch.graph)
        return energy.squeeze(-1)


class MaceTorch(nn.Module):
    """mace-torch's MACE with the weights of the harness's backbone, which returns energies [g] for prepared edges."""

    def __init__(self, config: ModelConfig, net: MACE, batch: Batch) -> None:
        super().__init__()
        elements = sorted(set(batch.numbers.tolist()))
        self.net = mace_torch.build_peer(config, net, elements)
        self.register_buffer("one_hot", (batch.numbers.unsqueeze(1) == torch.tensor(elements)).double())

    def forward(self, batch: Batch, positions: Tensor) -> Tensor:
        assert isinstance(self.one_hot, Tensor)
        ends = torch.tensor([0, *batch.n_atoms.long().cumsum(0).tolist()])
        pairs = torch.stack([batch.sender, batch.receiver])
        data = {
            "positions": positions, "node_attrs": self.one_hot, "edge_index": pairs, "shifts": batch.shift,
            "unit_shifts": torch.zeros_like(batch.shift), "cell": batch.cell.flatten(0, 1), "batch": batch.graph,
            "ptr": ends, "head": torch.zeros(len(batch.cell), dtype=torch.long),
        }  # fmt: skip
        energy: Tensor = self.net(data, training=True, compute_force=False)["energy"]
        return energy
