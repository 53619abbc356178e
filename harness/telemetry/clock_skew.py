"""Nodes whose clocks disagree with those of the others, from when their samples begin and end."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from harness.telemetry.timeseries import Faults

# Collectors start and stop within so many seconds of each other on nodes whose clocks agree.
TOGETHER_S = 60.0
# Of fewer nodes than this none is right because it is like the others.
LEAST_NODES = 3


def offsets_of(spans: Mapping[str, tuple[float, float]], faults: Faults) -> dict[str, float]:
    """Seconds by which a node's clock is ahead of the majority's; nodes that agree are left out.

    A node that began and ended equally early (or late) has a wrong clock; one that only began late joined late.
    """
    if len(spans) < LEAST_NODES:
        return {}
    ends = np.array(list(spans.values()))
    off = ends - np.median(ends, axis=0)
    found = {}
    for host, (first, last) in zip(spans, off, strict=True):
        if abs(first - last) < TOGETHER_S and min(abs(first), abs(last)) > TOGETHER_S:
            found[host] = float((first + last) / 2)
            faults.add("clocks that disagree, set right", f"{host}, {found[host]:+.0f} s")
        elif first > TOGETHER_S:
            faults.add("nodes that began late", f"{host}, {first:.0f} s")
        elif last < -TOGETHER_S:
            faults.add("nodes that ended early", f"{host}, {-last:.0f} s")
    return found
