"""Detection of change points in ten series of sixty values."""

from __future__ import annotations

from .sampling import Benchmark, find_first, skip_if_missing


class Changes(Benchmark):
    def setup(self) -> None:
        with skip_if_missing():
            import numpy as np

            change_points = find_first(
                "harness.stats.changepoints.detect.detect_change_points",
                "harness.stats.changepoints.detect.change_points",
                "harness.analysis.statistics.changes.change_points",
            )
        self.change_points = change_points
        self.series = np.random.default_rng(0).lognormal(sigma=0.02, size=(10, 60))
        self.change_points(self.series[0])

    def time_change_points(self) -> None:
        for values in self.series:
            self.change_points(values)
