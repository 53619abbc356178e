"""What telemetry says of the job itself: annotations, and the collector's version."""

from __future__ import annotations

from harness.telemetry.metrics import ABOUT, ANNOTATION
from harness.telemetry.timeseries import Source

# Sampling follows an annotation within so many seconds.
LATE_S = 3600.0


def markers(source: Source) -> list[tuple[str, float, float]]:
    """Annotations: marker, and the times of its first and last sample that stood (0 says that it was stopped)."""
    found: dict[str, tuple[float, float]] = {}
    for one in source.job_series():
        if one.labels.get("__name__") != ANNOTATION:
            continue
        standing = one.times[one.values > 0]
        if len(standing):
            # A value is the time at which the annotation began, not long before it was first sampled.
            began = one.values[(one.values > standing.min() - LATE_S) & (one.values <= standing.min())]
            first, last = float(began.min() if len(began) else standing.min()), float(one.times.max())
            low, high = found.get(one.labels.get("marker", ""), (first, last))
            found[one.labels.get("marker", "")] = (min(low, first), max(high, last))
    return [(marker, *span) for marker, span in sorted(found.items(), key=lambda item: item[1])]


def version_of(source: Source) -> str:
    """The collector's version, where it says."""
    said = {one.labels.get("version", "") for one in source.job_series() if one.labels.get("__name__") == ABOUT}
    return ", ".join(sorted(said - {""}))
