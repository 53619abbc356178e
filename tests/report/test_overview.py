"""The overview: axes of claims, the cost of what would decide them, texts with code, and what ran."""

from __future__ import annotations

import math
import re
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import pytest

from harness.claims.evaluate import judge_papers
from harness.claims.papers import load_papers
from harness.claims.scorecard import Score
from harness.cli.main import main
from harness.experiments.tables import build_results
from harness.report.claim_axis import build_axis
from harness.report.decisions import plan_open_claims
from harness.report.render import escape_markdown, format_prose, write_report
from harness.results.runs import load_runs
from tests.report.test_report import write_run

VALUES = st.floats(1e-9, 1e12)


def make_score(**changes: object) -> Score:
    fields: dict[str, object] = {
        "id": "x", "paper": "p", "citation": "c", "statement": "s", "source": "t", "measurement": "m", "unit": "x",
        "paper_value": 1.0, "measured_value": None, "ci_low": None, "ci_high": None, "verdict": "not run",
        "basis": None, "reason": "r", "evidence": [], "program": "ladder", "suites": [],
    } | changes  # fmt: skip
    return Score(**fields)  # type: ignore[arg-type]


@hypothesis.given(VALUES, VALUES, st.floats(0, 0.9), st.booleans())
def test_axis_contains_all_values_in_their_order(paper: float, value: float, spread: float, negative: bool) -> None:
    sign = -1 if negative else 1
    ends = sorted((sign * value * (1 - spread), sign * value * (1 + spread)))
    axis = build_axis(make_score(paper_value=paper, measured_value=sign * value, ci_low=ends[0], ci_high=ends[1]))
    assert axis is not None
    places = {ends[0]: axis.interval[0], sign * value: axis.measured, ends[1]: axis.interval[1], paper: axis.paper}
    assert all(0 <= place <= 100 for place in places.values())
    ordered = [places[value] for value in sorted(places)]
    assert ordered == sorted(ordered)
    assert [x for x, _ in axis.ticks] == [0, 100]
    assert axis.is_log == (not negative and max(places) / min(places) > 20)


@pytest.mark.parametrize("value", [None, math.inf, math.nan])
def test_axis_needs_finite_values(value: float | None) -> None:
    assert build_axis(make_score(measured_value=value)) is None


def test_equal_values_are_at_the_same_place() -> None:
    axis = build_axis(make_score(paper_value=16.0, measured_value=16.0))
    assert axis is not None
    assert axis.paper == axis.measured == axis.interval[0]


def test_open_claims_have_the_cost_of_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    papers = load_papers()
    scores = judge_papers(papers, build_results(load_runs(tmp_path)), tmp_path)
    runs = plan_open_claims(scores, papers)
    (run,) = runs["lupo-pasini-2026", "hpo-campaigns"]
    assert run.command == "harness run hpo --system frontier -S account=ACCOUNT --submit"
    assert main(["plan", "hpo", "--system", "frontier"]) == 0
    plan = capsys.readouterr().out
    match = re.search(r"in (\d+) jobs; at most (\S+) node-hours, expected (\S+)", plan)
    assert match
    assert run.jobs.startswith(f"{match[1]} jobs")
    for text, printed in ((run.limit, match[2]), (run.expected, match[3])):
        assert float(text.split()[0].replace(",", "")) == pytest.approx(float(printed), rel=1e-3)
    assert len(runs["lupo-pasini-2026", "machines"]) == 3
    assert all(not r.jobs.startswith("no plan") for planned in runs.values() for r in planned)


def test_measured_verdicts_need_no_further_run() -> None:
    papers = load_papers()
    decided, limited = (
        make_score(id="hpo-campaigns", paper="lupo-pasini-2026", verdict="reproduced", basis=basis)
        for basis in ("measured", "stand-in")
    )
    assert not plan_open_claims([decided], papers)
    assert plan_open_claims([limited], papers)


@pytest.mark.parametrize(
    ("text", "page", "markdown"),
    [
        ("run `a x_y`, not <b>", "run <code>a x_y</code>, not &lt;b&gt;", "run `a x_y`, not &lt;b>"),
        ("`a|b`", "<code>a|b</code>", r"`a\|b`"),
        ("one ` alone", "one ` alone", r"one \` alone"),
        ("`<script>`", "<code>&lt;script&gt;</code>", "`<script>`"),
    ],
)  # fmt: skip
def test_code_between_backticks(text: str, page: str, markdown: str) -> None:
    assert format_prose(text) == page
    assert escape_markdown(text) == markdown


def test_overview_shows_every_verdict_and_what_ran(tmp_path: Path) -> None:
    write_run(tmp_path, speedup=40.0)
    scores = write_report(tmp_path).scores
    text = (tmp_path / "index.html").read_text()
    counts = {name: int(n) for n, name in re.findall(r"</svg>(\d+)</span> ([\w ]+)\n?</li>", text)}
    assert counts == {verdict: [s.verdict for s in scores].count(verdict) for verdict in {s.verdict for s in scores}}
    assert text.count('<tr>\n<td><span class="verdict') == len(scores)
    assert text.count('class="measured"') == sum(s.measured_value is not None for s in scores)
    assert "1 of 1 case done in 1 campaign; A &lt;CPU&gt; &amp; co, " in text
    assert "commit cccccccccccc" in text
    assert "`" not in re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert '<a class="card" href="ladder.html">' in text
    page = (tmp_path / "ladder.html").read_text()
    assert re.search(r"<h2>40\.0 times faster in FP64 with torch compile</h2>", page)
