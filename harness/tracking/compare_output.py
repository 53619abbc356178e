"""A comparison as text and as a table."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterator, Sequence

from harness.protocol.text import count, sanitize_line
from harness.tracking.compare import FALSE_SHARE, Comparison, Row
from harness.tracking.selectors import Side

SHOWN = 40
HEADS = ("what", "metric", "A", "B", "B / A [95%]", "p", "n", "noise", "verdict")
COLUMNS = (
    "what", "metric", "unit", "better", "a_median", "b_median", "ratio", "low", "high", "coverage", "p", "paired",
    "n_a", "n_b", "a_spread", "b_spread", "verdict",
)  # fmt: skip
ORDER = {"worse": 0, "better": 1, "no difference seen": 2, "too noisy": 3, "too few samples": 4}


def lines(found: Comparison, sides: tuple[Side, Side], verbose: bool) -> Iterator[str]:
    """The rows, those with a difference first, and what they come to; without verbose the first so many."""
    rows = sorted(found.rows, key=lambda r: (ORDER[r.verdict], -abs(math.log(r.shift.estimate or 1.0))))
    shown = rows if verbose else rows[:SHOWN]
    yield sanitize_line(f"A: {sides[0].text}") + "   " + sanitize_line(f"B: {sides[1].text}")
    yield from aligned([HEADS, *(cells(row) for row in shown)])
    if len(rows) > len(shown):
        yield f"... and {len(rows) - len(shown)} more (-v shows all, --csv FILE keeps them)"
    counts = Counter[str](row.verdict for row in found.rows)
    yield f"{count(len(rows), 'metric')}: " + ", ".join(f"{counts[v]} {v}" for v in ORDER if counts[v])
    if found.only_a or found.only_b:
        yield f"only in A: {count(found.only_a, 'metric')}, only in B: {found.only_b}"
    yield (
        "Medians, and the Hodges-Lehmann ratio with its interval (* median of ratios of one round, where both took"
        f" turns); p of Mann-Whitney (* sign test), adjusted so that at most {FALSE_SHARE:.0%} of the differences"
        " called are none. Noise: half the middle half of the samples over the median, A / B."
    )


def cells(row: Row) -> tuple[str, ...]:
    """A row as text."""
    a, b = row.medians
    s = row.shift
    verdict: str = row.verdict
    if verdict in ("too noisy", "no difference seen") and math.isfinite(row.resolution):
        verdict += f", > {row.resolution:.1%} would show"
    return (
        sanitize_line(row.name), f"{row.metric.name} ({row.metric.unit})" if row.metric.unit else row.metric.name,
        f"{a:.4g}", f"{b:.4g}", f"{s.estimate:.3f}{'*' * row.paired} [{s.low:.3f}, {s.high:.3f}]",
        "-" if math.isnan(row.p) else f"{row.p:.2g}", f"{s.n_a}, {s.n_b}",
        " / ".join("-" if math.isnan(v) else f"{v:.1%}" for v in row.spread), verdict,
    )  # fmt: skip


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns under each other."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    yield from ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def table(found: Comparison) -> str:
    """All rows as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in found.rows:
        s = row.shift
        writer.writerow(
            [row.name, row.metric.name, row.metric.unit, row.metric.better, *row.medians, s.estimate, s.low, s.high,
             s.coverage, row.p, row.paired, s.n_a, s.n_b, *row.spread, row.verdict]
        )  # fmt: skip
    return text.getvalue()
