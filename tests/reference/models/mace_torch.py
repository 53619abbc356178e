"""mace-torch's MACE with the weights of this package's MACE. mace-torch pins e3nn 0.4.4: install it separately.

pip install --target DIR mace-torch && rm -r DIR/tests
TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 PYTHONPATH=DIR pytest tests/reference/models/test_mace.py -k mace_torch
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from harness.reference.data.batch import Batch
from harness.reference.models.backbones.mace import ENVELOPE_POWER, MACE, NEIGHBOURS, RADIAL_HIDDEN, Product
from harness.reference.models.clebsch_gordan import list_monomials
from harness.reference.models.config import ModelConfig


@contextmanager
def double_by_default() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def build_peer(config: ModelConfig, net: MACE, elements: list[int]) -> Any:
    """Return mace-torch's model for these elements, in double precision and with the weights of `net`."""
    from e3nn import o3
    from mace import modules

    assert config.node_max_ell is not None
    interaction_class = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
    degrees = range(config.node_max_ell + 1)
    with double_by_default():
        peer = modules.ScaleShiftMACE(
            r_max=config.cutoff, num_bessel=config.num_radial, num_polynomial_cutoff=ENVELOPE_POWER,
            max_ell=config.max_ell, interaction_cls=interaction_class, interaction_cls_first=interaction_class,
            num_interactions=config.num_conv_layers, num_elements=len(elements),
            hidden_irreps=o3.Irreps([(config.hidden_dim, (d, (-1) ** d)) for d in degrees]),
            MLP_irreps=o3.Irreps("4x0e"), gate=nn.functional.silu, atomic_energies=np.zeros(len(elements)),
            avg_num_neighbors=NEIGHBOURS, atomic_numbers=elements, correlation=config.correlation,
            radial_type=config.radial_type, distance_transform=config.distance_transform,
            radial_MLP=list(RADIAL_HIDDEN), atomic_inter_scale=1.0, atomic_inter_shift=0.0,
        )  # fmt: skip
        with torch.no_grad():
            copy_weights(peer, net, elements)
    return peer


def flatten_linear(layers: nn.ModuleList) -> Tensor:
    """Return the matrices as e3nn stores them: [in, out] times sqrt(in), concatenated."""
    return torch.cat([(m.weight.T * math.sqrt(m.weight.shape[1])).flatten() for m in layers])


def copy_weights(peer: Any, net: MACE, elements: list[int]) -> None:
    from e3nn.math import normalize2mom

    count, width = len(elements), net.embedding.weight.shape[1]
    silu_norm = normalize2mom(nn.functional.silu).cst
    peer.node_embedding.linear.weight.copy_((net.embedding.weight[elements] * math.sqrt(count)).flatten())
    parts = (peer.interactions, peer.products, net.interactions, net.products, net.kept)
    for block, peer_product, interaction, product, self_connection in zip(*parts, strict=True):
        block.linear_up.weight.copy_(flatten_linear(interaction.up.degrees))
        nets = zip([*interaction.hidden, interaction.radial], block.conv_tp_weights.children(), strict=True)
        for k, (layer, peer_layer) in enumerate(nets):
            norm = silu_norm if k else 1.0
            peer_layer.weight.copy_(layer.weight.T * math.sqrt(layer.weight.shape[1]) / norm)
        block.linear.weight.copy_(flatten_linear(interaction.down))
        mixes = zip(self_connection.mix.degrees, self_connection.element[elements].unbind(1), strict=True)
        skip = [torch.einsum("wu,zw->uzw", m.weight, factor).flatten() for m, factor in mixes]
        block.skip_tp.weight.copy_(torch.cat(skip) * math.sqrt(width * count))
        peer_product.linear.weight.copy_(flatten_linear(product.mix.degrees))
        for degree, contraction in enumerate(peer_product.symmetric_contractions.contractions):
            copy_product_weights(contraction, product, degree, elements)


def copy_product_weights(contraction: Any, product: Product, degree: int, elements: list[int]) -> None:
    """Set weights of mace-torch's redundant couplings that give the polynomials of `product`."""
    first = 0
    for order, module in enumerate(product.tables, start=1):
        table = module(torch.float64)
        rows = torch.arange(first, first + len(table))
        first += len(table)
        component = product.component.group[rows]
        rows = rows[(component >= degree**2) & (component < (degree + 1) ** 2)]
        couplings = product.coupling.group[rows].unique()
        peer_polynomials = convert_to_polynomials(getattr(contraction, f"U_matrix_{order}"), degree, order)
        own_polynomials = table[rows - (first - len(table))].view(len(couplings), -1).T
        transformation = torch.linalg.lstsq(peer_polynomials, own_polynomials, driver="gelsd").solution
        assert torch.allclose(peer_polynomials @ transformation, own_polynomials, atol=1e-12)
        assert torch.linalg.matrix_rank(peer_polynomials) == len(couplings)
        highest = len(product.tables)
        target = contraction.weights_max if order == highest else contraction.weights[highest - 1 - order]
        target.copy_(torch.einsum("kq,zqc->zkc", transformation, product.weight[elements][:, couplings]))


def convert_to_polynomials(u_matrix: Tensor, degree: int, order: int) -> Tensor:
    """Return mace-torch's couplings as polynomials: [component x monomial, coupling]."""
    u_matrix = u_matrix.reshape(2 * degree + 1, -1, u_matrix.shape[-1])
    variables = round(u_matrix.shape[1] ** (1 / order))
    index = {m: i for i, m in enumerate(list_monomials(variables, order))}
    monomial_of_entry = torch.tensor([index[tuple(sorted(m))] for m in np.ndindex(*[variables] * order)])
    return (
        u_matrix.new_zeros(len(u_matrix), len(index), u_matrix.shape[-1])
        .index_add(1, monomial_of_entry, u_matrix)
        .flatten(0, 1)
    )


def compute_scalars(
    peer: Any, config: ModelConfig, elements: list[int], batch: Batch, positions: Tensor
) -> list[Tensor]:
    """Return mace-torch's invariant features [n, C] after every layer."""
    graphs = len(batch.cell)
    one_hot = (batch.numbers.unsqueeze(1) == torch.tensor(elements)).to(positions.dtype)
    data = {
        "positions": positions, "node_attrs": one_hot, "edge_index": torch.stack([batch.sender, batch.receiver]),
        "shifts": -batch.shift, "unit_shifts": torch.zeros_like(batch.shift), "cell": batch.cell.flatten(0, 1),
        "batch": batch.graph, "ptr": torch.tensor([0, *batch.n_atoms.long().cumsum(0).tolist()]),
        "head": torch.zeros(graphs, dtype=torch.long),
    }  # fmt: skip
    with double_by_default():
        features = peer(data, training=True, compute_force=False)["node_feats"]
    assert config.node_max_ell is not None
    sizes = [config.hidden_dim * (config.node_max_ell + 1) ** 2] * (config.num_conv_layers - 1) + [config.hidden_dim]
    return [x[:, : config.hidden_dim] for x in features.split(sizes, dim=1)]
