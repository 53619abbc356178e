"""MACE: higher order equivariant message passing neural networks for fast and accurate force fields.

Batatia, Kovacs, Simm, Ortner, Csanyi, NeurIPS 2022 (arXiv 2206.07697). Equation numbers are that paper's. C is the
number of channels (hidden_dim), n atoms, e edges. A feature with degrees 0..L is [n, (L + 1)^2, C].

Tables of couplings and the spherical harmonics come from e3nn (Geiger, Smidt, arXiv 2207.09453). Two things differ from
mace-torch: products of features are summed over monomials, which are far fewer than index tuples, and the element
enters the self-connection as a factor per channel, so that 119 elements cost 119 C weights and not 119 C^2. The
products still have separate weights for each element: 119 k C weights for k couplings.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from ase.data import covalent_radii
from e3nn import o3
from torch import Tensor, nn
from torch.nn.functional import silu

from harness.reference.data.batch import Batch
from harness.reference.data.structure import MAX_ATOMIC_NUMBER
from harness.reference.errors import InputError
from harness.reference.models.basis import ExactBuffer
from harness.reference.models.clebsch_gordan import (
    compute_edge_couplings,
    compute_symmetric_couplings,
    factor_monomials,
    list_paths,
)
from harness.reference.models.conditioning import ChargeSpinEmbedding, FiLM
from harness.reference.models.config import DistanceTransform, ModelConfig, RadialType
from harness.reference.models.edge_groups import EdgeGroups, group_atoms, group_edges
from harness.reference.ops.couplings import couple_neighbours
from harness.reference.ops.segment_sums import Grouping, gather, gather_product, group_rows, product_sum

# Sums over neighbours are divided by this constant of the model: in the harness's paper (arXiv 2604.15380), atoms have
# at most 20 neighbours.
NEIGHBOURS = 20.0
RADIAL_HIDDEN = (64, 64, 64)
ENVELOPE_POWER = 5
# Gains of the initial weights, so that messages are about as large as features: SILU_GAIN = E[silu(z)^2]^(-1/2), for a
# normal z, restores the variance that silu removes, SUM_GAIN the variance that is lost when a sum of NEIGHBOURS terms
# of either sign is divided by their number.
SILU_GAIN = 1.68
SUM_GAIN = math.sqrt(NEIGHBOURS)


def make_linear(n_in: int, n_out: int, gain: float = 1.0) -> nn.Linear:
    """Return a linear layer without bias whose output starts with gain^2 times the variance of its input."""
    layer = nn.Linear(n_in, n_out, bias=False)
    nn.init.normal_(layer.weight, std=gain / math.sqrt(n_in))
    return layer


class Radial(nn.Module):
    """Functions of the distance, times a polynomial that vanishes at the cutoff with its first two derivatives.

    Each type is a family over 0 <= x <= r_cut of the transformed distance x: Bessel functions sqrt(2 / r_cut)
    sin(k pi x / r_cut) / x (eq. 7 of arXiv 2003.03123, with its envelope), Gaussians on a grid, Chebyshev polynomials.
    """

    orders: Tensor

    def __init__(self, cutoff: float, n_radial: int, kind: RadialType, transform: DistanceTransform) -> None:
        super().__init__()
        self.cutoff, self.kind, self.transform = cutoff, kind, transform
        self.radii = ExactBuffer(torch.from_numpy(covalent_radii[: MAX_ATOMIC_NUMBER + 1]))
        self.register_buffer("orders", torch.arange(1.0, n_radial + 1), persistent=False)

    def transform_distance(self, r: Tensor, radii: Tensor) -> Tensor:
        """Return the transformed distance x [e, 1] in angstrom.

        Agnesi (Witt et al., J. Chem. Phys. 159, 164101 (2023)) falls from r_cut at r = 0, fastest at about 0.4 of the
        bond length; constants are those of mace-torch. Soft tends to r above 4/3 of the bond length, and to 3/4 of the
        bond length for closer atoms.

        Args:
            r: [e, 1] distances in angstrom.
            radii: [e, 1] sum of the covalent radii of both atoms in angstrom.
        """
        if self.transform == "Agnesi":
            q, p, a = 0.9183, 4.5791, 1.0805
            reduced = r / (0.5 * radii)
            return self.cutoff / (1.0 + a * reduced**q / (1.0 + reduced ** (q - p)))
        if self.transform == "Soft":
            low, high = 0.75 * radii, (4.0 / 3.0) * radii
            rise = 0.5 * (1.0 + torch.tanh(4.0 * (r - 0.5 * (low + high)) / (high - low)))
            return low + (r - low) * rise
        return r

    def evaluate_functions(self, x: Tensor) -> Tensor:
        """Return the K functions, [e, K], of transformed distances x [e, 1] in angstrom."""
        if self.kind == "bessel":
            return math.sqrt(2.0 / self.cutoff) * torch.sin(x * (math.pi / self.cutoff) * self.orders) / x
        if self.kind == "gaussian":
            steps = max(len(self.orders) - 1, 1)
            return torch.exp(-0.5 * (x * (steps / self.cutoff) - (self.orders - 1.0)) ** 2)
        t = x * (2.0 / self.cutoff) - 1.0
        polynomials = [torch.ones_like(t), t]
        for _ in range(1, len(self.orders)):
            polynomials.append(2.0 * t * polynomials[-1] - polynomials[-2])
        return torch.cat(polynomials[1:], dim=-1)

    def forward(self, r: Tensor, numbers: Tensor, receiver: Tensor, sender: Tensor) -> Tensor:
        """Return the functions [e, K], zero from the cutoff on.

        Args:
            r: [e, 1] distances in angstrom.
            numbers: [n] atomic numbers.
            receiver: [e] index of the atom that receives the message.
            sender: [e] index of the atom that sends the message.
        """
        radii = self.radii(r.dtype)[numbers].unsqueeze(-1)
        x = self.transform_distance(r, radii[receiver] + radii[sender])
        p, u = ENVELOPE_POWER, r / self.cutoff
        envelope = 1.0 - u**p * ((p + 1) * (p + 2) / 2 - u * (p * (p + 2) - u * (p * (p + 1) / 2)))
        return self.evaluate_functions(x) * torch.where(u < 1.0, envelope, torch.zeros_like(envelope))


class ChannelMix(nn.Module):
    """Mix channels by one matrix [C, C] per degree, the same for all its components."""

    def __init__(self, max_ell: int, width: int) -> None:
        super().__init__()
        self.degrees = nn.ModuleList(make_linear(width, width) for _ in range(max_ell + 1))

    def forward(self, h: Tensor) -> Tensor:
        """Return the mixed features h [n, (L + 1)^2, C]."""
        return torch.cat([mix(h[:, d**2 : (d + 1) ** 2]) for d, mix in enumerate(self.degrees)], dim=1)


class SelfConnection(nn.Module):
    """The second term of the update (eq. 11): an atom's own features, mixed and scaled by its element."""

    def __init__(self, max_ell: int, width: int) -> None:
        super().__init__()
        self.mix = ChannelMix(max_ell, width)
        self.element = nn.Parameter(torch.ones(MAX_ATOMIC_NUMBER + 1, max_ell + 1, width))
        self.sizes = [2 * d + 1 for d in range(max_ell + 1)]

    def forward(self, h: Tensor, elements: Grouping) -> Tensor:
        """Return the term [n, (L + 1)^2, C] for h of the same shape and the elements of the atoms."""
        factor = gather(self.element, elements).unsqueeze(2)
        mixed = self.mix(h).split(self.sizes, dim=1)
        return torch.cat([x * factor[:, d] for d, x in enumerate(mixed)], dim=1)


class FixedRows(nn.Module):
    """A grouping of rows that is a constant of the model."""

    group: Tensor
    order: Tensor
    start: Tensor

    def __init__(self, group: Tensor, groups: int) -> None:
        super().__init__()
        for name, value in group_rows(group, groups)._asdict().items():
            self.register_buffer(name, value, persistent=False)

    @property
    def grouping(self) -> Grouping:
        """The rows and their groups, in the form that segment sums take."""
        return Grouping(self.group, self.order, self.start)


class Interaction(nn.Module):
    """The atomic basis A: features of neighbours times radial functions and spherical harmonics, summed and mixed."""

    paths: Tensor

    def __init__(self, l_in: int, l_edge: int, width: int, n_radial: int) -> None:
        super().__init__()
        self.width = width
        self.counts = [len(list_paths(l_in, l_edge, l3)) for l3 in range(l_edge + 1)]
        self.up = ChannelMix(l_in, width)
        self.hidden = nn.ModuleList(make_linear(a, b, SILU_GAIN) for a, b in pairwise((n_radial, *RADIAL_HIDDEN)))
        self.radial = make_linear(RADIAL_HIDDEN[-1], sum(self.counts) * width, SILU_GAIN)
        self.couplings = ExactBuffer(compute_edge_couplings(l_in, l_edge))
        paths = [list(range(sum(self.counts[:l3]), sum(self.counts[: l3 + 1]))) for l3 in range(l_edge + 1)]
        rows = torch.tensor([path for l3, group in enumerate(paths) for _ in range(2 * l3 + 1) for path in group])
        self.register_buffer("paths", rows, persistent=False)
        self.down = nn.ModuleList(make_linear(count * width, width, SUM_GAIN) for count in self.counts)

    def forward(self, h: Tensor, edges: EdgeGroups, harmonics: Tensor, radial: Tensor) -> Tensor:
        """Return A [n, (l_edge + 1)^2, C].

        Args:
            h: [n, (l_in + 1)^2, C] features.
            edges: The edges.
            harmonics: [e, (l_edge + 1)^2] spherical harmonics of the directions of the edges.
            radial: [e, K] functions of the distances.
        """
        for layer in self.hidden:
            radial = silu(layer(radial))
        weights = self.radial(radial).view(-1, sum(self.counts), self.width).to(harmonics.dtype)
        table = self.couplings(harmonics.dtype)
        coupling = (harmonics @ table.flatten(1)).view(-1, table.shape[1], table.shape[2]).to(harmonics.dtype)
        features = self.up(h).to(harmonics.dtype)
        received = couple_neighbours(coupling, features, weights, self.paths, edges.senders, edges.receivers)
        rows = received.split([(2 * l3 + 1) * count for l3, count in enumerate(self.counts)], dim=1)
        sums = [
            down(x.reshape(len(h), 2 * l3 + 1, -1)) for l3, (x, down) in enumerate(zip(rows, self.down, strict=True))
        ]
        return torch.cat(sums, dim=1) / NEIGHBOURS


class Product(nn.Module):
    """The message of eqs. 10 and 11: products of up to `correlation` factors A, weighted by element, then mixed."""

    def __init__(self, max_ell: int, l_out: int, correlation: int, width: int) -> None:
        super().__init__()
        self.size = (l_out + 1) ** 2
        orders = range(1, correlation + 1)
        couplings = [compute_symmetric_couplings(max_ell, order, l_out) for order in orders]
        self.tables = nn.ModuleList(
            ExactBuffer(torch.cat([table.flatten(0, 1) for table in tables])) for tables in couplings
        )
        components = (max_ell + 1) ** 2
        pairs = [factor_monomials(components, order) for order in orders[1:]]
        counts = [math.comb(components + order - 2, order - 1) for order in orders[1:]]
        self.variables = nn.ModuleList(FixedRows(variable, components) for variable, _ in pairs)
        self.lower = nn.ModuleList(FixedRows(lower, count) for (_, lower), count in zip(pairs, counts, strict=True))
        # for each row of the tables, the index of its coupling and of the component of the result to which it adds
        degrees = [d for tables in couplings for d, table in enumerate(tables) for _ in table]
        coupling = [k for k, d in enumerate(degrees) for _ in range(2 * d + 1)]
        component = [c for d in degrees for c in range(d**2, (d + 1) ** 2)]
        self.coupling = FixedRows(torch.tensor(coupling), len(degrees))
        self.component = FixedRows(torch.tensor(component), self.size)
        std = torch.tensor([degrees.count(d) for d in degrees]).rsqrt().unsqueeze(-1)
        self.weight = nn.Parameter(torch.randn(MAX_ATOMIC_NUMBER + 1, len(degrees), width) * std)
        self.mix = ChannelMix(l_out, width)

    def forward(self, a: Tensor, elements: Grouping) -> Tensor:
        """Return the message [n, (l_out + 1)^2, C].

        Args:
            a: [n, (max_ell + 1)^2, C] the atomic basis A.
            elements: The elements of the atoms.
        """
        monomial, rows = a, [self.tables[0](a.dtype) @ a]
        factors = [[x.grouping for x in rows if isinstance(x, FixedRows)] for rows in (self.variables, self.lower)]
        for table, variable, lower in zip(self.tables[1:], *factors, strict=True):
            monomial = gather_product(a, monomial, variable, lower, 1)
            rows.append(table(a.dtype) @ monomial)
        weight, polynomials = gather(self.weight, elements), torch.cat(rows, dim=1)
        return self.mix(product_sum(weight, polynomials, self.coupling.grouping, self.component.grouping, 1))


class MACE(nn.Module):
    """Encode atoms and edges as scalar features of atoms, a linear mixture of the scalars of every layer.

    Raises:
        InputError: No product of features has the degree node_max_ell.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        ell, degree, correlation = config.max_ell, config.node_max_ell, config.correlation
        assert ell is not None
        assert degree is not None
        assert correlation is not None
        assert config.num_radial is not None
        assert config.radial_type is not None
        assert config.distance_transform is not None
        if degree > ell * correlation:
            raise InputError(f"node_max_ell is {degree}, more than max_ell x correlation = {ell * correlation}")
        width, layers = config.hidden_dim, config.num_conv_layers
        degrees = [0] + [degree] * (layers - 1) + [0]  # the input and the last layer's output are scalars
        self.embedding = nn.Embedding(MAX_ATOMIC_NUMBER + 1, width, padding_idx=0)
        self.radial = Radial(config.cutoff, config.num_radial, config.radial_type, config.distance_transform)
        self.harmonics = o3.SphericalHarmonics(list(range(ell + 1)), normalize=True, normalization="component")
        self.interactions = nn.ModuleList(Interaction(d, ell, width, config.num_radial) for d in degrees[:-1])
        self.products = nn.ModuleList(Product(ell, d, correlation, width) for d in degrees[1:])
        self.kept = nn.ModuleList(SelfConnection(min(pair), width) for pair in pairwise(degrees))
        self.state = ChargeSpinEmbedding()
        self.conditions = nn.ModuleList(FiLM(width) for _ in range(layers))
        self.readout = make_linear(layers * width, width)

    def forward(self, batch: Batch, vector: Tensor) -> Tensor:
        """Return the features [n, C] for vector [e, 3] from receiver to sender in angstrom."""
        numbers, graphs = batch.numbers, group_atoms(batch)
        edges, elements = group_edges(batch), group_rows(numbers, self.embedding.num_embeddings)
        r = torch.linalg.vector_norm(vector, dim=-1, keepdim=True)
        radial = self.radial(r, numbers, batch.receiver, batch.sender)
        harmonics = self.harmonics(vector)
        state = self.state(batch.charge, batch.multiplicity)
        h = self.embedding(numbers).unsqueeze(1)
        scalars = []
        layers = zip(self.interactions, self.products, self.kept, self.conditions, strict=True)
        for interaction, product, self_connection, condition in layers:
            message = product(interaction(h, edges, harmonics, radial), elements)
            shared = min(h.shape[1], message.shape[1])  # components that features and message have
            connection = self_connection(h[:, :shared], elements)
            h = torch.cat([message[:, :shared] + connection, message[:, shared:]], dim=1)
            scalars.append(condition(h[:, 0], state, graphs))
            h = torch.cat([scalars[-1].unsqueeze(1), h[:, 1:]], dim=1)
        return self.readout(torch.cat(scalars, dim=-1))
