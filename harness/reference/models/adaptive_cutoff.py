"""The cutoff of each atom, which adapts to the density around it, differentiable twice in the positions."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.reference.data.neighbours import ADAPTIVE_POWER, WEIGHT_PER_NEIGHBOUR
from harness.reference.ops.adaptive_scales import solve_scales
from harness.reference.ops.segment_sums import Grouping, gather, segment_sum

# Steps of Newton's method before the differentiable step. They give ten correct digits at 1,000 times the density of
# solids if the edges are those of `NeighbourSpec.build_list`, and at the density of solids if they are all edges within
# r_cut.
ITERATIONS = 7


def compute_adaptive_scales(cubes: Tensor, receivers: Grouping, adaptive: float, *, fused: bool = False) -> Tensor:
    """Return (r_cut / R)^3 of each atom, [n]; harness.reference.data.neighbours contains the equation for R.

    The equation is convex in this unknown s, so that Newton's method converges from s = 1. A step of Chebyshev's method
    from the solution has the first and second derivatives of the solution, although its start is treated as constant.

    Args:
        cubes: [e] third powers of distances divided by r_cut; edges beyond R have no effect.
        receivers: The atom of each edge.
        adaptive: Number of neighbours at uniform density.
        fused: Whether the operators of harness.reference.ops are loaded; on CPUs, one of them solves the equation then.
    """
    total, power = WEIGHT_PER_NEIGHBOUR * adaptive, ADAPTIVE_POWER
    if fused and cubes.device.type == "cpu":
        return solve_scales(cubes, receivers.group, total, power, receivers.start.shape[0] - 1)

    def evaluate(cubes: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return 1 - (r / R)^3 of the edges, and the step of Newton's method with its denominator."""
        rest = (1.0 - cubes * gather(scale, receivers)).clamp(min=0.0)
        square = rest * rest
        slope = 3.0 * segment_sum(cubes * square, receivers) + (total * power) * scale ** (-power - 1)
        step = (segment_sum(rest * square, receivers) + total * (scale**-power - 1.0)) / slope
        return rest, step, slope

    with torch.no_grad():
        scale = cubes.new_ones(receivers.start.shape[0] - 1)
        for _ in range(ITERATIONS):
            scale = scale + evaluate(cubes, scale)[1]
    rest, step, slope = evaluate(cubes, scale)
    with torch.no_grad():
        curvature = 6.0 * segment_sum(cubes * cubes * rest, receivers)
        curvature = curvature + (total * power * (power + 1)) * scale ** (-power - 2)
        half = 0.5 * curvature / slope
    return scale + step * (1.0 + half * step)
