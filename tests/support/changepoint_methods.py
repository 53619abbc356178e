"""Change-point detectors on series whose noise is known: ours, asv's and Apache Otava's.

`python -m tests.support.changepoint_methods` measures all of them on many series, and writes
reports/measured/detection/README.md.
Otava pins a numpy older than ours; what of it is used here runs with any: `pip install --no-deps apache-otava`.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray

from harness.stats.changepoints.detect import change_points_of_many
from harness.stats.changepoints.null_distribution import noise as autoregressive
from tests.conftest import ROOT

Floats = NDArray[np.float64]
SEED = 1
SPREAD = 0.02  # standard deviation of the logarithm of a value; of autocorrelated noise, each value's own
FROM_ENDS = 5  # values that are left on both sides of a step at random
PLACE = ROOT / "reports" / "measured" / "detection" / "README.md"


@dataclass(frozen=True)
class Case:
    """Series of one kind of noise and one shape of level; size is the relative height of its steps."""

    noise: str
    shape: str = "none"
    size: float = 0.0
    n: int = 60

    @property
    def title(self) -> str:
        return self.shape if self.shape == "none" else f"{self.shape}, {self.size:.0%}"

    def series(self, count: int) -> Floats:
        """(count, n), the same in every call; steps go up, as asv reports no others."""
        words = [*self.noise.encode(), *self.shape.encode(), round(1000 * self.size), self.n]
        rng = np.random.default_rng([SEED, *words])
        level = np.log1p(self.size) * SHAPES[self.shape](rng, count, self.n)
        return np.exp(level + NOISES[self.noise](rng, count, self.n))


NOISES: dict[str, Callable[[np.random.Generator, int, int], Floats]] = {
    "iid": lambda rng, m, n: SPREAD * rng.standard_normal((m, n)),
    "heavy tails": lambda rng, m, n: SPREAD / 2 * rng.standard_t(2, (m, n)),
    "spikes": lambda rng, m, n: SPREAD * rng.standard_normal((m, n)) + np.log(1.3) * (rng.random((m, n)) < 0.05),
    "AR(1) 0.3": lambda rng, m, n: SPREAD * autoregressive(rng, m, n, 0.3),
    "AR(1) 0.5": lambda rng, m, n: SPREAD * autoregressive(rng, m, n, 0.5),
    "AR(1) 0.7": lambda rng, m, n: SPREAD * autoregressive(rng, m, n, 0.7),
    "AR(1) 0.85": lambda rng, m, n: SPREAD * autoregressive(rng, m, n, 0.85),
    "counts": lambda rng, m, n: np.log1p(rng.poisson(2, (m, n))),
    "one odd value in ten": lambda rng, m, n: np.log(2) * (rng.random((m, n)) < 0.1),
}


def _step(rng: np.random.Generator, m: int, n: int) -> Floats:
    return (np.arange(n) >= rng.integers(FROM_ENDS, n - FROM_ENDS + 1, (m, 1))).astype(float)


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


def ours(series: Floats) -> list[bool]:
    return [bool(found) for found in change_points_of_many(series)]


def asv(series: Floats) -> list[bool]:
    """As asv's page of regressions: no weights without intervals, and the threshold of 5% that it has by default."""
    from asv.step_detect import detect_regressions, detect_steps

    found = (detect_regressions(detect_steps(row, [None] * len(row)), 0.05) for row in series.tolist())
    return [latest is not None for latest, _, _ in found]


def asv_steps(series: Floats) -> list[bool]:
    """The steps that asv draws, of any height and in both directions."""
    from asv.step_detect import detect_steps

    return [len(detect_steps(row, [None] * len(row))) > 1 for row in series.tolist()]


def otava(series: Floats) -> list[bool]:
    """With its defaults: windows of 50 values, p at most 0.001."""
    from otava.analysis import compute_change_points

    return [bool(compute_change_points(row)[0]) for row in series.tolist()]


PACKAGES = {"asv": "asv", "otava": "apache-otava"}
DETECTORS = {"ours": ours, "asv": asv, "asv, steps": asv_steps, "otava": otava}

# what the test measures; the page adds MORE
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
MORE = (
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


def present() -> dict[str, Callable[[Floats], list[bool]]]:
    """The detectors that are installed."""
    return {
        name: detect
        for name, detect in DETECTORS.items()
        if name == "ours" or importlib.util.find_spec(name.split(",", maxsplit=1)[0]) is not None
    }


def rates(case: Case, count: int, of_others: int) -> dict[str, float]:
    """Share of `count` series in which ours finds any change, and of `of_others` series in which the others do."""
    series = {True: case.series(count), False: case.series(of_others)}
    return {name: float(np.mean(detect(series[name == "ours"]))) for name, detect in present().items()}


def table(rows: dict[Case, dict[str, float]]) -> str:
    """Markdown; a detector that was not there has a dash."""
    head = f"| values | noise | level | {' | '.join(DETECTORS)} |\n|---|---|---|{'---|' * len(DETECTORS)}\n"
    return head + "".join(
        f"| {case.n} | {case.noise} | {case.title} | "
        + " | ".join(f"{found[name]:.3f}" if name in found else "–" for name in DETECTORS)
        + " |\n"
        for case, found in rows.items()
    )


PAGE = """\
# How often a change is found

Share of series in which a detector finds any change of level: of {count:,} series of each kind for ours, {of_others:,}
for the others. Where the level is "none", every one found is a false alarm; elsewhere, the more the better.

{table}
Values are log-normal with a spread of 2%, each of autocorrelated noise too; spikes multiply 5% of values by 1.3; heavy
tails are Student's t with two degrees of freedom, half as wide; counts are Poisson with mean 2. A step goes up, at a
place drawn at random among those that leave {ends} values on both sides or, "amid", a third of them; "up and back" and
"two steps" (up both times) are thirds of a series. Seed {seed}.

- **ours**: `harness.stats.changepoints.detect.change_points_of_many`, alpha 0.01.
- **asv**: its page of regressions, with its default threshold of 5%, without weights; **asv, steps**: the steps that it
  draws, whatever their height.
- **otava**: `otava.analysis.compute_change_points` with its defaults (windows of 50 values, p at most 0.001).

Made by `python -m tests.support.changepoint_methods` in {seconds:.0f} CPU seconds with {versions}.

## What ours does, and where it ends

The ranks of the values are scanned for one step, as a regression with autoregressive errors, and for two at once, as
Kruskal and Wallis's test; four fifths of alpha go to the first. The statistic is measured by what noise of the
correlation found would reach, and p is that of a permutation test: where values are exchangeable, false alarms are at
most alpha whatever their distribution. Parts between changes are scanned again, and in the end every change must stand
between its two neighbours.

Correlation has to be learnt from the same few values. With 60 of them, lag-1 correlation of 0.5 makes false alarms two
to three times alpha, and much of what steps of 3% would show is given up for that; with 24, it makes them five times
alpha. A series of many changes looks like correlated noise too: of eight in 240 values, at random, up or down by 5%,
two thirds are found, of four 95%. A slow drift is a change of level to any of these detectors. Interleaved rounds,
which measure commits side by side, have none of these problems.
"""


def page(count: int, of_others: int) -> str:
    """All cases, as the page that is kept."""
    began = time.process_time()
    found = {case: rates(case, count, of_others) for case in sorted((*CASES, *MORE), key=lambda c: c.n != 60)}
    spent = time.process_time() - began
    packages = ["numpy", *(PACKAGES[name] for name in present() if name in PACKAGES)]
    return PAGE.format(
        table=table(found),
        count=count,
        of_others=of_others,
        ends=FROM_ENDS,
        seed=SEED,
        seconds=spent,
        versions=", ".join(f"{package} {version(package)}" for package in packages),
    )


if __name__ == "__main__":
    PLACE.parent.mkdir(parents=True, exist_ok=True)
    PLACE.write_text(page(4000, 1000))
