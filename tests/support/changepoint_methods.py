"""Compare change-point detectors on series with known noise: those of the harness, of asv and of Apache Otava.

`python -m tests.support.changepoint_methods` measures all detectors on many series, and writes
reports/measured/detection/README.md. Otava pins an older numpy, but the functions used here run with any version:
`pip install --no-deps apache-otava`.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np

from harness.stats import Floats
from harness.stats.changepoints.detect import detect_in_each
from harness.stats.changepoints.null_distribution import simulate_noise
from tests.conftest import ROOT

SEED = 1
SPREAD = 0.02  # standard deviation of the logarithm of each value, also in autocorrelated noise
MIN_DISTANCE_FROM_ENDS = 5  # values on either side of a step at a random index
PAGE_PATH = ROOT / "reports" / "measured" / "detection" / "README.md"


@dataclass(frozen=True)
class Case:
    """Series with one kind of noise and one shape of level; size is the relative height of its steps."""

    noise: str
    shape: str = "none"
    size: float = 0.0
    n: int = 60

    @property
    def title(self) -> str:
        return self.shape if self.shape == "none" else f"{self.shape}, {self.size:.0%}"

    def series(self, count: int) -> Floats:
        """Simulate series (count, n), the same in every call; steps go up, since asv reports no others."""
        seed = [SEED, *self.noise.encode(), *self.shape.encode(), round(1000 * self.size), self.n]
        rng = np.random.default_rng(seed)
        level = np.log1p(self.size) * SHAPES[self.shape](rng, count, self.n)
        return np.exp(level + NOISES[self.noise](rng, count, self.n))


NOISES: dict[str, Callable[[np.random.Generator, int, int], Floats]] = {
    "iid": lambda rng, m, n: SPREAD * rng.standard_normal((m, n)),
    "heavy tails": lambda rng, m, n: SPREAD / 2 * rng.standard_t(2, (m, n)),
    "spikes": lambda rng, m, n: SPREAD * rng.standard_normal((m, n)) + np.log(1.3) * (rng.random((m, n)) < 0.05),
    "AR(1) 0.3": lambda rng, m, n: SPREAD * simulate_noise(rng, m, n, 0.3),
    "AR(1) 0.5": lambda rng, m, n: SPREAD * simulate_noise(rng, m, n, 0.5),
    "AR(1) 0.7": lambda rng, m, n: SPREAD * simulate_noise(rng, m, n, 0.7),
    "AR(1) 0.85": lambda rng, m, n: SPREAD * simulate_noise(rng, m, n, 0.85),
    "counts": lambda rng, m, n: np.log1p(rng.poisson(2, (m, n))),
    "one odd value in ten": lambda rng, m, n: np.log(2) * (rng.random((m, n)) < 0.1),
}


def _step(rng: np.random.Generator, m: int, n: int) -> Floats:
    return (np.arange(n) >= rng.integers(MIN_DISTANCE_FROM_ENDS, n - MIN_DISTANCE_FROM_ENDS + 1, (m, 1))).astype(float)


def _step_amid(rng: np.random.Generator, m: int, n: int) -> Floats:
    return (np.arange(n) >= rng.integers(n // 3, n - n // 3 + 1, (m, 1))).astype(float)


def _thirds(*levels: float) -> Callable[[np.random.Generator, int, int], Floats]:
    return lambda rng, m, n: np.tile(np.repeat(levels, n // 3), (m, 1))


SHAPES: dict[str, Callable[[np.random.Generator, int, int], Floats]] = {
    "none": lambda rng, m, n: np.zeros((m, n)),
    "step": _step,
    "step amid": _step_amid,
    "up and back": _thirds(0, 1, 0),
    "two steps": _thirds(0, 1, 2),
}


def detect_ours(series: Floats) -> list[bool]:
    return [bool(changes) for changes in detect_in_each(series)]


def detect_asv(series: Floats) -> list[bool]:
    """Detect as asv's page of regressions does: no weights without intervals, and its default threshold of 5%."""
    from asv.step_detect import detect_regressions, detect_steps

    regressions = (detect_regressions(detect_steps(row, [None] * len(row)), 0.05) for row in series.tolist())
    return [latest is not None for latest, _, _ in regressions]


def detect_asv_steps(series: Floats) -> list[bool]:
    """Detect the steps that asv draws, of any height and in both directions."""
    from asv.step_detect import detect_steps

    return [len(detect_steps(row, [None] * len(row))) > 1 for row in series.tolist()]


def detect_otava(series: Floats) -> list[bool]:
    """Detect with Otava's defaults: windows of 50 values, p at most 0.001."""
    from otava.analysis import compute_change_points

    return [bool(compute_change_points(row)[0]) for row in series.tolist()]


PACKAGES = {"asv": "asv", "otava": "apache-otava"}
DETECTORS = {"ours": detect_ours, "asv": detect_asv, "asv, steps": detect_asv_steps, "otava": detect_otava}

# tests/benchmarks measures CASES; the page also has PAGE_CASES.
CASES = (
    Case("iid"),
    Case("iid", "step", 0.03),
    Case("spikes"),
    Case("spikes", "step", 0.03),
    Case("AR(1) 0.5"),
    Case("AR(1) 0.5", "step", 0.03),
    Case("AR(1) 0.5", "step", 0.06),
    Case("iid", "up and back", 0.06),
    Case("iid", "two steps", 0.03),
)
PAGE_CASES = (
    Case("iid", "step amid", 0.03),
    Case("AR(1) 0.5", "step amid", 0.03),
    Case("AR(1) 0.5", "step amid", 0.06),
    Case("iid", "step", 0.02),
    Case("iid", "step", 0.06),
    Case("heavy tails"),
    Case("heavy tails", "step", 0.03),
    Case("AR(1) 0.3"),
    Case("AR(1) 0.7"),
    Case("AR(1) 0.85"),
    Case("AR(1) 0.7", "step", 0.06),
    Case("AR(1) 0.5", "up and back", 0.06),
    Case("counts"),
    Case("one odd value in ten"),
    Case("iid", n=24),
    Case("iid", "step", 0.03, n=24),
    Case("iid", "step", 0.06, n=24),
    Case("AR(1) 0.5", n=24),
    Case("AR(1) 0.5", "step", 0.06, n=24),
    Case("iid", n=240),
    Case("iid", "step", 0.03, n=240),
    Case("AR(1) 0.5", n=240),
    Case("AR(1) 0.5", "step", 0.03, n=240),
)


def find_installed_detectors() -> dict[str, Callable[[Floats], list[bool]]]:
    """Return the detectors that are installed."""
    return {
        name: detect
        for name, detect in DETECTORS.items()
        if name == "ours" or importlib.util.find_spec(name.split(",", maxsplit=1)[0]) is not None
    }


def measure_detection_rates(case: Case, count: int, count_of_others: int) -> dict[str, float]:
    """Return the share of series in which each detector finds a change.

    Ours analyses `count` series, and the others analyse `count_of_others`.
    """
    series = {True: case.series(count), False: case.series(count_of_others)}
    return {name: float(np.mean(detect(series[name == "ours"]))) for name, detect in find_installed_detectors().items()}


def format_table(rows: dict[Case, dict[str, float]]) -> str:
    """Format rates as Markdown; the column of a detector that is not installed has dashes."""
    header = f"| values | noise | level | {' | '.join(DETECTORS)} |\n|---|---|---|{'---|' * len(DETECTORS)}\n"
    return header + "".join(
        f"| {case.n} | {case.noise} | {case.title} | "
        + " | ".join(f"{rates[name]:.3f}" if name in rates else "–" for name in DETECTORS)
        + " |\n"
        for case, rates in rows.items()
    )


PAGE = """\
# How often a change is detected

The table shows the share of series in which a detector reports any change of level. Ours analysed {count:,} series of
each kind, and the others {count_of_others:,}. Where the level is "none", every detection is a false alarm; elsewhere,
higher is better.

{table}
Values are log-normal with a standard deviation of 2%, also those of autocorrelated noise; spikes multiply 5% of values
by 1.3; heavy tails are Student's t with two degrees of freedom, half as wide; counts are Poisson with mean 2. Steps go
up. A "step" is at a random index with at least {ends} values on either side, and a "step amid" has at least a third of
the series on either side. In "up and back" and "two steps" (both up), the level changes after each third of the series.
The seed is {seed}.

- **ours**: `harness.stats.changepoints.detect.detect_in_each`, alpha 0.01.
- **asv**: the regressions that asv reports with its default threshold of 5%, without weights; **asv, steps**: the steps
  that asv draws, of any height.
- **otava**: `otava.analysis.compute_change_points` with its defaults (windows of 50 values, p at most 0.001).

This page was written by `python -m tests.support.changepoint_methods` in {seconds:.0f} CPU seconds with {versions}.

## Our method and its limits

The ranks of the values are scanned for one step with a regression with autoregressive errors, and for two steps at once
with the test of Kruskal and Wallis; four fifths of alpha go to the first. The statistic is divided by the value that
noise of the estimated correlation would reach, and p is that of a permutation test: where values are exchangeable,
false alarms are at most alpha whatever their distribution. Segments between changes are scanned again, and in the end
every change must be significant between its two neighbours.

The correlation is estimated from the same few values. With 60 of them, a lag-1 correlation of 0.5 makes false alarms
two to three times as frequent as alpha, and the correction hides many steps of 3%; with 24, it makes them five times as
frequent. A series of many changes resembles correlated noise too: of eight random changes by 5% in 240 values, two
thirds are detected, and of four, 95%. For all of these detectors, a slow drift is a change of level. Interleaved
rounds, which measure all commits in turn, have none of these problems.
"""


def render_page(count: int, count_of_others: int) -> str:
    """Measure all cases and render the page."""
    started = time.process_time()
    rates = {
        case: measure_detection_rates(case, count, count_of_others)
        for case in sorted((*CASES, *PAGE_CASES), key=lambda c: c.n != 60)
    }
    seconds = time.process_time() - started
    packages = ["numpy", *(PACKAGES[name] for name in find_installed_detectors() if name in PACKAGES)]
    return PAGE.format(
        table=format_table(rates),
        count=count,
        count_of_others=count_of_others,
        ends=MIN_DISTANCE_FROM_ENDS,
        seed=SEED,
        seconds=seconds,
        versions=", ".join(f"{package} {version(package)}" for package in packages),
    )


if __name__ == "__main__":
    PAGE_PATH.parent.mkdir(parents=True, exist_ok=True)
    PAGE_PATH.write_text(render_page(4000, 1000))
