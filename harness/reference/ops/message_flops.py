"""Floating-point operations of the message operators of inference, as the loops of painn/kernels.h have them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

# Per edge and feature, beside the products with the columns of radial; the second number only where there is v.
FORWARD = (9, 7)  # s: 2, along the direction: 1 + 3 x 2; of v: 1 + 3 x 2
BACKWARD = (14, 6)  # by unit: 7, along: 5, by filter: 2; by the filter of v: 6
BACKWARD_NODES = (4, 6)
FILTER = (7, 6)


def _per_edge_and_feature(v: Tensor | None, *counts: tuple[int, int]) -> int:
    return sum(always + (of_v if v is not None else 0) for always, of_v in counts)


def _parts(v: Tensor | None) -> int:
    return 2 if v is None else 3


def messages(phi: Tensor, v: Tensor | None, radial: Tensor, *_: Any) -> int:
    """Of gfm_harness::messages."""
    edges, columns = radial.shape
    each = 2 * columns * _parts(v) + _per_edge_and_feature(v, FORWARD)
    return edges * (phi.shape[1] // _parts(v)) * each


def messages_backward(to_s: Tensor, to_v: Tensor, phi: Tensor, v: Tensor | None, radial: Tensor, *rest: Any) -> int:
    """Of gfm_harness::messages_backward; for positions alone it makes one filter, for atoms all."""
    edges, columns = radial.shape
    nodes = bool(rest[-1])
    filters = _parts(v) if nodes else 1
    counts = (BACKWARD, BACKWARD_NODES) if nodes else (BACKWARD,)
    each = 2 * columns * (filters + _parts(v)) + _per_edge_and_feature(v, *counts)
    return edges * to_s.shape[1] * each


def filter_backward(to_s: Tensor, to_v: Tensor, phi: Tensor, v: Tensor | None, radial: Tensor, *_: Any) -> int:
    """Of gfm_harness::filter_backward."""
    edges, columns = radial.shape
    return edges * to_s.shape[1] * (2 * columns * _parts(v) + _per_edge_and_feature(v, FILTER))


FLOPS: dict[str, Callable[..., int]] = {
    "messages": messages,
    "messages_backward": messages_backward,
    "filter_backward": filter_backward,
}
