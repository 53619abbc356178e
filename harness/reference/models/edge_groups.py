"""The edges and atoms of a batch grouped for the operators of harness.reference.ops.segment_sums."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from harness.reference.data.batch import Batch
from harness.reference.ops.segment_sums import Grouping, gather, group_rows


class EdgeGroups(NamedTuple):
    """The edges of a batch, grouped by the atoms at both ends.

    Attributes:
        receivers: The receiver of each edge.
        senders: The sender of each edge.
    """

    receivers: Grouping
    senders: Grouping


def group_edges(batch: Batch) -> EdgeGroups:
    """Group the edges by their receivers and by their senders."""
    n = batch.numbers.shape[0]
    return EdgeGroups(group_rows(batch.receiver, n), group_rows(batch.sender, n))


def group_atoms(batch: Batch) -> Grouping:
    """Group the atoms by their structure."""
    return group_rows(batch.graph, batch.composition.shape[0])


def compute_edge_vectors(batch: Batch, positions: Tensor, shift: Tensor) -> Tensor:
    """Return the vectors [e, 3] in angstrom from receivers to senders.

    Args:
        batch: The structures.
        positions: [n, 3] angstrom, which replace those of the batch.
        shift: [e, 3] angstrom, translation from each edge's sender to its periodic image.
    """
    groups = group_edges(batch)
    return gather(positions, groups.senders) + shift - gather(positions, groups.receivers)
