"""Comparison of two selections of runs by metric: ratio, interval, and whether noise can explain the difference."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from harness.experiments.tables import Metric
from harness.protocol.errors import UsageError
from harness.protocol.text import pluralize, sanitize_line
from harness.stats.intervals import compute_median_interval
from harness.stats.two_sample import TwoSampleEstimate, estimate_ratios
from harness.tracking.selectors import LOCATION_KEYS, Observation, RunSelector

Verdict = Literal["better", "worse", "no difference seen", "too noisy", "too few samples"]
Key = tuple[str, ...]
Samples = tuple[float, ...]
FALSE_DISCOVERY_RATE = 0.05  # largest expected share of false positives
MAX_DETECTABLE_CHANGE = 0.05  # a comparison that could miss a larger difference is too noisy
CONFIDENCE = 0.95
COVERAGE_TOLERANCE = 0.02  # an interval may miss the requested confidence by this much
MAX_ROWS = 40
HEADERS = ("case or part", "metric", "A", "B", "B / A [95%]", "p", "n", "noise", "verdict")
COLUMNS = (
    "name", "metric", "unit", "better", "a_median", "b_median", "ratio", "low", "high", "coverage", "p", "paired",
    "n_a", "n_b", "a_spread", "b_spread", "verdict",
)  # fmt: skip
# The verdicts from the most to the least important.
VERDICT_ORDER: tuple[Verdict, ...] = ("worse", "better", "no difference seen", "too noisy", "too few samples")


@dataclass(frozen=True, kw_only=True)
class MetricComparison:
    """The comparison of one metric of one case on both sides.

    Attributes:
        name: The properties that distinguish the case, or the part of it, from those of the other rows.
        a: Samples of side A.
        b: Samples of side B.
        is_paired: Whether samples are compared round by round, since both sides are parts of interleaved rounds.
        ratio: The ratio B / A with its interval.
        p: The p value, adjusted for the number of comparisons; NaN if there are too few samples.
    """

    name: str
    metric: Metric
    a: Samples
    b: Samples
    is_paired: bool
    ratio: TwoSampleEstimate[float]
    p: float

    @property
    def medians(self) -> tuple[float, float]:
        """The medians of A and of B."""
        return float(np.median(self.a)), float(np.median(self.b))

    @property
    def noise(self) -> tuple[float, float]:
        """Half the interquartile range divided by the median, for A and for B."""
        return _compute_relative_iqr(self.a) / 2, _compute_relative_iqr(self.b) / 2

    @property
    def min_detectable_change(self) -> float:
        """The smallest relative difference that the interval could show."""
        return max(self.ratio.high / self.ratio.estimate, self.ratio.estimate / self.ratio.low) - 1.0

    @property
    def has_enough_samples(self) -> bool:
        """Whether the interval has the requested confidence, within a tolerance."""
        return self.ratio.coverage >= CONFIDENCE - COVERAGE_TOLERANCE

    @property
    def verdict(self) -> Verdict:
        """Better, worse, or the reason why neither can be concluded."""
        if not self.has_enough_samples:
            return "too few samples"
        excludes_one = self.ratio.low > 1.0 or self.ratio.high < 1.0
        if self.p < FALSE_DISCOVERY_RATE and excludes_one:
            is_higher = self.ratio.estimate > 1.0
            return "better" if is_higher == (self.metric.better == "higher") else "worse"
        return "too noisy" if self.min_detectable_change > MAX_DETECTABLE_CHANGE else "no difference seen"


@dataclass(frozen=True)
class Comparison:
    """All compared metrics, and the numbers of metrics that only side A or only side B has."""

    rows: list[MetricComparison]
    only_a: int
    only_b: int


def compare(a: Sequence[Observation], b: Sequence[Observation], sides: tuple[RunSelector, RunSelector]) -> Comparison:
    """Compare every metric that both sides have.

    If the sides differ only in location, system, commit or part of a run, such as a stage, cases are matched by suite
    and name; if a condition names an axis, they are matched by suite and the values on all other axes.

    Args:
        a: The observations of side A.
        b: The observations of side B.
        sides: The selectors of A and B.

    Raises:
        UsageError: No metric is on both sides.
    """
    conditions = {k for selector in sides for k in selector.conditions}
    systems = [{o.record.case.get("system") for o in side} for side in (a, b)]
    is_per_system = "system" not in conditions and bool(systems[0] & systems[1])
    a_by_key, b_by_key = (_group_by_key(side, conditions, is_per_system=is_per_system) for side in (a, b))
    shared = [key for key in a_by_key if key in b_by_key]
    if not shared:
        raise UsageError(
            f"{sides[0].text} and {sides[1].text}: the two sides have no metric of the same case in common"
        )
    unpaired, paired = [], []
    for key, name in zip(shared, _find_distinguishing_names(shared), strict=True):
        metric = a_by_key[key][0].samples.metric
        pairs = _match_rounds(a_by_key[key], b_by_key[key])
        if pairs is None:
            samples = [tuple(v for o in side[key] for v in o.samples.values) for side in (a_by_key, b_by_key)]
            unpaired.append((name, metric, samples[0], samples[1]))
        else:
            paired.append(_compare_pairs(name, metric, pairs[0], pairs[1]))
    rows = _adjust_p_values([*_compare_unpaired(unpaired), *paired])
    return Comparison(rows, len(a_by_key) - len(shared), len(b_by_key) - len(shared))


def format_lines(comparison: Comparison, sides: tuple[RunSelector, RunSelector], verbose: bool) -> Iterator[str]:
    """Yield the lines of a text table, differences first, and a summary; `verbose` shows all rows."""
    rows = sorted(
        comparison.rows, key=lambda r: (VERDICT_ORDER.index(r.verdict), -abs(math.log(r.ratio.estimate or 1.0)))
    )
    selected = rows if verbose else rows[:MAX_ROWS]
    yield sanitize_line(f"A: {sides[0].text}") + "   " + sanitize_line(f"B: {sides[1].text}")
    yield from _align([HEADERS, *(_format_cells(row) for row in selected)])
    if len(rows) > len(selected):
        yield f"... and {len(rows) - len(selected)} more (-v shows all, --csv FILE writes them)"
    counts = Counter[str](row.verdict for row in rows)
    yield f"{pluralize(len(rows), 'metric')}: " + ", ".join(f"{counts[v]} {v}" for v in VERDICT_ORDER if counts[v])
    if comparison.only_a or comparison.only_b:
        yield f"only in A: {pluralize(comparison.only_a, 'metric')}, only in B: {comparison.only_b}"
    yield (
        "A and B are medians, B / A is the Hodges-Lehmann ratio with its interval, and p is from the Mann-Whitney U"
        " test. If both sides alternate (*), B / A is the median of the ratios within a round, and p is from the sign"
        f" test. p is adjusted so that at most {FALSE_DISCOVERY_RATE:.0%} of the reported differences are false. Noise"
        " is half the interquartile range divided by the median, and n the number of samples, of A and B."
    )


def to_csv(comparison: Comparison) -> str:
    """Return all rows as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in comparison.rows:
        s, metric = row.ratio, row.metric
        writer.writerow(
            [row.name, metric.name, metric.unit, metric.better, *row.medians, s.estimate, s.low, s.high, s.coverage,
             row.p, row.is_paired, s.n_a, s.n_b, *row.noise, row.verdict]
        )  # fmt: skip
    return text.getvalue()


def _group_by_key(
    side: Iterable[Observation], conditions: set[str], *, is_per_system: bool
) -> dict[Key, list[Observation]]:
    """Group samples by the properties that must be equal on both sides; the last item of a key is the metric."""
    groups: dict[Key, list[Observation]] = {}
    for observation in side:
        case, samples = observation.record.case, observation.samples
        key = [str(case.get("suite"))]
        if all(k in LOCATION_KEYS or k in samples.part for k in conditions):
            key.append(str(case.get("name")))
        else:
            axes = {"precision": case.get("parameters", {}).get("precision"), **case.get("axis_values", {})}
            key += [f"{k} {v}" for k, v in sorted(axes.items()) if k not in conditions and v is not None]
        if is_per_system:
            key.append(f"on {case.get('system')}")
        part = [f"{k} {v}" for k, v in samples.part.items() if k not in conditions]
        groups.setdefault((*key, *part, samples.metric.name), []).append(observation)
    return groups


def _find_distinguishing_names(keys: Sequence[Key]) -> list[str]:
    """Return the items of each key that distinguish the rows, without the metric, which has a separate column."""
    if len(keys) == 1:
        return [keys[0][1]]
    indices = range(min(map(len, keys)) - 1)
    shared = {k for k in indices if len({key[k] for key in keys}) == 1}
    return [", ".join(item for k, item in enumerate(key[:-1]) if k not in shared) or "all" for key in keys]


def _match_rounds(a: Sequence[Observation], b: Sequence[Observation]) -> tuple[Samples, Samples] | None:
    """Return the samples of common rounds if both sides are alternating parts of the same runs, else None."""
    by_run = {str(o.record.folder): dict(zip(o.samples.rounds, o.samples.values, strict=False)) for o in b}
    pairs = [
        (value, other[number])
        for o in a
        if o.samples.rounds and (other := by_run.get(str(o.record.folder)))
        for number, value in zip(o.samples.rounds, o.samples.values, strict=True)
        if number in other
    ]
    if not pairs:
        return None
    a_samples, b_samples = zip(*pairs, strict=True)
    return a_samples, b_samples


def _compare_pairs(name: str, metric: Metric, a: Samples, b: Samples) -> MetricComparison:
    """Compare samples in pairs: the median of their ratios, its order-statistic interval, and the p of the sign test.

    Source: Conover, Practical Nonparametric Statistics, 3rd ed. (1999), section 3.4.
    """
    from scipy.stats import binomtest  # type: ignore[import-untyped]  # importing it takes most of a second

    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.array(b) / np.array(a)
    interval = compute_median_interval(ratios.tolist(), CONFIDENCE)
    above, below = int((ratios > 1).sum()), int((ratios < 1).sum())
    p = float(binomtest(above, above + below).pvalue) if above + below else 1.0
    ratio = TwoSampleEstimate(
        estimate=interval.value, low=interval.low, high=interval.high, p=p, coverage=interval.coverage,
        n_a=len(a), n_b=len(b),
    )  # fmt: skip
    return MetricComparison(name=name, metric=metric, a=a, b=b, is_paired=True, ratio=ratio, p=p)


def _compare_unpaired(rows: Sequence[tuple[str, Metric, Samples, Samples]]) -> Iterator[MetricComparison]:
    """Compare samples by the Hodges-Lehmann ratio and the Mann-Whitney U test, all rows of equal sizes at once."""
    by_size: dict[tuple[int, int], list[tuple[str, Metric, Samples, Samples]]] = {}
    for row in rows:
        by_size.setdefault((len(row[2]), len(row[3])), []).append(row)
    for group in by_size.values():
        estimates = estimate_ratios([a for _, _, a, _ in group], [b for *_, b in group], CONFIDENCE)
        for i, (name, metric, a, b) in enumerate(group):
            ratio = estimates.row(i)
            yield MetricComparison(name=name, metric=metric, a=a, b=b, is_paired=False, ratio=ratio, p=ratio.p)


def _adjust_p_values(rows: Sequence[MetricComparison]) -> list[MetricComparison]:
    """Adjust p values for the number of comparisons; rows with too few samples get NaN.

    Source: Benjamini and Hochberg, J. R. Statist. Soc. B 57, 289 (1995).
    """
    from scipy.stats import false_discovery_control

    p = np.array([row.p if row.has_enough_samples else math.nan for row in rows])
    is_tested = ~np.isnan(p)
    if is_tested.any():
        p[is_tested] = false_discovery_control(p[is_tested])
    return [replace(row, p=float(value)) for row, value in zip(rows, p, strict=True)]


def _format_cells(row: MetricComparison) -> tuple[str, ...]:
    a, b = row.medians
    s = row.ratio
    verdict: str = row.verdict
    if verdict in ("too noisy", "no difference seen") and math.isfinite(row.min_detectable_change):
        verdict += f", > {row.min_detectable_change:.1%} would show"
    return (
        sanitize_line(row.name), f"{row.metric.name} ({row.metric.unit})" if row.metric.unit else row.metric.name,
        f"{a:.4g}", f"{b:.4g}", f"{s.estimate:.3f}{'*' * row.is_paired} [{s.low:.3f}, {s.high:.3f}]",
        "-" if math.isnan(row.p) else f"{row.p:.2g}", f"{s.n_a}, {s.n_b}",
        " / ".join("-" if math.isnan(v) else f"{v:.1%}" for v in row.noise), verdict,
    )  # fmt: skip


def _align(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    yield from ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _compute_relative_iqr(values: Sequence[float]) -> float:
    """Return the interquartile range divided by the median; NaN for fewer than four values."""
    if len(values) < 4:
        return math.nan
    ordered = sorted(values)
    quarter = len(ordered) // 4
    middle = ordered[len(ordered) // 2]
    return (ordered[-1 - quarter] - ordered[quarter]) / abs(middle) if middle else math.nan
