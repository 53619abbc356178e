"""mace-torch's MACE with the weights of ours, to compare them. It pins e3nn 0.4.4, so install it separately:

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


def build_peer(config: ModelConfig, ours: MACE, elements: list[int]) -> Any:
    """Return mace-torch's model for these elements, in double precision."""
    from e3nn import o3
    from mace import modules

    assert config.node_max_ell is not None
    kind = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
    degrees = range(config.node_max_ell + 1)
    with double_by_default():
        theirs = modules.ScaleShiftMACE(
            r_max=config.cutoff, num_bessel=config.num_radial, num_polynomial_cutoff=ENVELOPE_POWER,
            max_ell=config.max_ell, interaction_cls=kind, interaction_cls_first=kind,
            num_interactions=config.num_conv_layers, num_elements=len(elements),
            hidden_irreps=o3.Irreps([(config.hidden_dim, (d, (-1) ** d)) for d in degrees]),
            MLP_irreps=o3.Irreps("4x0e"), gate=nn.functional.silu, atomic_energies=np.zeros(len(elements)),
            avg_num_neighbors=NEIGHBOURS, atomic_numbers=elements, correlation=config.correlation,
            radial_type=config.radial_type, distance_transform=config.distance_transform,
            radial_MLP=list(RADIAL_HIDDEN), atomic_inter_scale=1.0, atomic_inter_shift=0.0,
        )  # fmt: skip
        with torch.no_grad():
            copy_weights(theirs, ours, elements)
    return theirs


def flatten_linear(layers: nn.ModuleList) -> Tensor:
    """Return the matrices as e3nn stores them: [in, out] times sqrt(in), concatenated."""
    return torch.cat([(m.weight.T * math.sqrt(m.weight.shape[1])).flatten() for m in layers])


def copy_weights(theirs: Any, ours: MACE, elements: list[int]) -> None:
    from e3nn.math import normalize2mom

    count, width = len(elements), ours.embedding.weight.shape[1]
    silu_norm = normalize2mom(nn.functional.silu).cst
    theirs.node_embedding.linear.weight.copy_((ours.embedding.weight[elements] * math.sqrt(count)).flatten())
    parts = (theirs.interactions, theirs.products, ours.interactions, ours.products, ours.kept)
    for block, their_product, interaction, product, self_connection in zip(*parts, strict=True):
        block.linear_up.weight.copy_(flatten_linear(interaction.up.degrees))
        nets = zip([*interaction.hidden, interaction.radial], block.conv_tp_weights.children(), strict=True)
        for k, (mine, other) in enumerate(nets):
            norm = silu_norm if k else 1.0
            other.weight.copy_(mine.weight.T * math.sqrt(mine.weight.shape[1]) / norm)
        block.linear.weight.copy_(flatten_linear(interaction.down))
        mixes = zip(self_connection.mix.degrees, self_connection.element[elements].unbind(1), strict=True)
        skip = [torch.einsum("wu,zw->uzw", m.weight, factor).flatten() for m, factor in mixes]
        block.skip_tp.weight.copy_(torch.cat(skip) * math.sqrt(width * count))
        their_product.linear.weight.copy_(flatten_linear(product.mix.degrees))
        for degree, contraction in enumerate(their_product.symmetric_contractions.contractions):
            copy_product_weights(contraction, product, degree, elements)


def copy_product_weights(contraction: Any, product: Product, degree: int, elements: list[int]) -> None:
    """Set weights of their redundant couplings that give the same polynomials as ours."""
    first = 0
    for order, module in enumerate(product.tables, start=1):
        table = module(torch.float64)
        rows = torch.arange(first, first + len(table))
        first += len(table)
        rows = rows[(product.component[rows] >= degree**2) & (product.component[rows] < (degree + 1) ** 2)]
        couplings = product.coupling[rows].unique()
        theirs = polynomials(getattr(contraction, f"U_matrix_{order}"), degree, order)
        mine = table[rows - (first - len(table))].view(len(couplings), -1).T
        their_of_ours = torch.linalg.lstsq(theirs, mine, driver="gelsd").solution
        assert torch.allclose(theirs @ their_of_ours, mine, atol=1e-12)
        assert torch.linalg.matrix_rank(theirs) == len(couplings)
        highest = len(product.tables)
        target = contraction.weights_max if order == highest else contraction.weights[highest - 1 - order]
        target.copy_(torch.einsum("kq,zqc->zkc", their_of_ours, product.weight[elements][:, couplings]))


def polynomials(u: Tensor, degree: int, order: int) -> Tensor:
    """Return their couplings as [component x monomial, coupling]."""
    u = u.reshape(2 * degree + 1, -1, u.shape[-1])
    variables = round(u.shape[1] ** (1 / order))
    index = {m: i for i, m in enumerate(list_monomials(variables, order))}
    into = torch.tensor([index[tuple(sorted(m))] for m in np.ndindex(*[variables] * order)])
    return u.new_zeros(len(u), len(index), u.shape[-1]).index_add(1, into, u).flatten(0, 1)


def scalars(theirs: Any, config: ModelConfig, elements: list[int], batch: Batch, positions: Tensor) -> list[Tensor]:
    """Return their invariant features [n, C] after every layer."""
    graphs = len(batch.cell)
    one_hot = (batch.numbers.unsqueeze(1) == torch.tensor(elements)).to(positions.dtype)
    data = {
        "positions": positions, "node_attrs": one_hot, "edge_index": torch.stack([batch.sender, batch.receiver]),
        "shifts": -batch.shift, "unit_shifts": torch.zeros_like(batch.shift), "cell": batch.cell.flatten(0, 1),
        "batch": batch.graph, "ptr": torch.tensor([0, *batch.n_atoms.long().cumsum(0).tolist()]),
        "head": torch.zeros(graphs, dtype=torch.long),
    }  # fmt: skip
    with double_by_default():
        features = theirs(data, training=True, compute_force=False)["node_feats"]
    assert config.node_max_ell is not None
    sizes = [config.hidden_dim * (config.node_max_ell + 1) ** 2] * (config.num_conv_layers - 1) + [config.hidden_dim]
    return [x[:, : config.hidden_dim] for x in features.split(sizes, dim=1)]
