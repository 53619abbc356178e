"""Change points of ten series over sixty commits."""

from __future__ import annotations

from .given import Sampled, as_far_as_it_exists, find


class Changes(Sampled):
    def setup(self) -> None:
        with as_far_as_it_exists():
            import numpy as np

            change_points = find(
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
