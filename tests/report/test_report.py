"""Raw events become tables and pages: numbers match a calculation by hand, and wrong speed-ups are withheld."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from harness.claims.evaluate import judge_papers
from harness.claims.papers import find_table, load_papers
from harness.cli.main import main
from harness.experiments.ladder.metrics import build_ladder_table
from harness.experiments.tables import build_results
from harness.protocol.events import JsonLinesLog
from harness.protocol.parameters import RESULT_DTYPES
from harness.report.render import write_report
from harness.results.runs import load_runs
from tests.conftest import read_pages

FLOPS = [{"operation": "nodes", "dtype": "float64", "flops": 4e9}]
STAGES = ["baseline", "branch_skip", "batched_heads", "torch_compile"]


def write_run(
    out: Path, *, precision: str = "fp64", speedup: float = 40.0, error: float = 1e-12, **config: object
) -> None:
    """Write a finished case of six rounds, whose last stage has this speedup and this relative error of forces."""
    folder = out / "runs" / "ladder-local" / "-".join(["case", precision, *config])
    folder.mkdir(parents=True)
    parameters = {"workload": "random", "precision": precision, "stages": STAGES}
    case = {"id": folder.name, "name": folder.name, "suite": "ladder", "program": "ladder", "parameters": parameters}
    (folder / "case.json").write_text(json.dumps(case))
    (folder / "provenance.json").write_text(json.dumps({"cpu": "A <CPU> & co", "time_s": 0.0, "commit": "c" * 40}))
    log = JsonLinesLog(folder / "events.jsonl")
    log.write("start")
    log.write_fact(
        "model",
        {
            "config": {"backbone": "painn", "hidden_dim": 64, "readout": "sum", "cutoff": 5.0} | config,
            "trained": False,
            "parameters": 9,
            "untrained_heads": [],
        },
    )
    log.write_fact(
        "ceilings", {"copy_gb_per_s": 10.0, "squares": [{"dtype": "float64", "gflop_per_s": 50.0}], "products": []}
    )
    for stage in STAGES:
        log.write("warm_up", stage=stage, first_call_s=1.0, flops=FLOPS, peak_bytes=2**20)
    for number in range(6):
        for stage, factor in zip(STAGES, (1.0, 4.0, 10.0, speedup), strict=True):
            relative_error = {"baseline": 0.0, "branch_skip": 0.3, "batched_heads": 1e-15, "torch_compile": error}[
                stage
            ]
            log.write(
                "sample", stage=stage, round=number, batch=0, structures=16, device_s=(8.0 + number) / factor,
                energy_dtype=RESULT_DTYPES[precision], force_dtype=RESULT_DTYPES[precision], finite=True,
                neighbour_lists_s=0.1, collation_s=0.05, transfer_s=0.05, load_1min=0.5,
                force_error_ev_per_angstrom=relative_error * 20.0, force_scale_ev_per_angstrom=20.0,
                energy_error_ev_per_atom=relative_error * 3.0, energy_scale_ev_per_atom=3.0,
            )  # fmt: skip
    log.write("done")
    (folder / "exit_code").write_text("0\n")


def test_ladder_table_follows_from_samples(tmp_path: Path) -> None:
    write_run(tmp_path)
    table = build_ladder_table(load_runs(tmp_path / "runs")).set_index("stage")
    last = table.loc["torch_compile"]
    assert last["structures_per_s"] == pytest.approx((16 * 40 / 10 + 16 * 40 / 11) / 2)
    assert (last["structures_per_s_low"], last["structures_per_s_high"]) == pytest.approx((16 * 40 / 13, 16 * 40 / 8))
    assert last["speedup"] == last["speedup_low"] == pytest.approx(40)
    assert table.loc["baseline", "end_to_end_structures_per_s"] == pytest.approx((16 / 10.2 + 16 / 11.2) / 2)
    assert last["max_force_error_ev_per_angstrom"] == pytest.approx(2e-11)
    assert last["matrix_gflop_per_s"] == pytest.approx(4 / (10.5 / 40))
    assert last["matrix_peak_fraction"] == pytest.approx(4 / (10.5 / 40) / 50)
    assert table["verdict"].to_dict() == {
        "baseline": "ok", "branch_skip": "approximate", "batched_heads": "ok", "torch_compile": "ok",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("precision", "error", "is_valid"), [("fp64", 2e-9, False), ("fp32", 2e-9, True), ("fp32", 2e-4, False)]
)
def test_stage_with_wrong_results_has_no_speedup(tmp_path: Path, precision: str, error: float, is_valid: bool) -> None:
    write_run(tmp_path, precision=precision, error=error)
    last = build_ladder_table(load_runs(tmp_path / "runs")).set_index("stage").loc["torch_compile"]
    assert (last["verdict"] == "ok") == is_valid
    assert (not pd.isna(last["speedup"])) == is_valid
    scores = {s.id: s for s in judge_papers(load_papers(), build_results(load_runs(tmp_path / "runs")), tmp_path)}
    assert scores[f"ladder-speedup-{precision}"].verdict == ("reproduced" if is_valid else "incorrect")


@pytest.mark.parametrize(("speedup", "verdict"), [(40.0, "reproduced"), (28.0, "reproduced"), (20.0, "deviates")])
def test_verdict_follows_from_the_interval(tmp_path: Path, speedup: float, verdict: str) -> None:
    write_run(tmp_path, speedup=speedup)
    scores = {s.id: s for s in write_report(tmp_path).scores}
    assert scores["ladder-speedup-fp64"].verdict == verdict
    assert scores["ladder-speedup-fp64"].measured_value == pytest.approx(speedup)
    assert scores["ladder-speedup-fp32"].verdict == "not run"
    rows = json.loads((tmp_path / "scorecard.json").read_text())
    keys = [
        "id",
        "statement",
        "paper_value",
        "unit",
        "measured_value",
        "ci_low",
        "ci_high",
        "verdict",
        "basis",
        "evidence",
    ]
    assert all(set(keys) <= set(row) for row in rows)
    (evidence,) = [row["evidence"] for row in rows if row["id"] == "ladder-speedup-fp64"]
    assert (tmp_path / evidence[0]).is_file()


def test_ladder_claims_are_about_hydragnn_where_it_was_measured(tmp_path: Path) -> None:
    write_run(tmp_path, speedup=40.0, hidden_dim=337)
    write_run(tmp_path, speedup=20.0, hidden_dim=64, hydragnn={"vector_bias": True})
    records = load_runs(tmp_path / "runs")
    assert set(build_ladder_table(records)["architecture"]) == {"PaiNN", "HydraGNN's PaiNN"}
    score = next(s for s in judge_papers(load_papers(), build_results(records), tmp_path) if s.id.endswith("p-fp64"))
    assert score.verdict == "deviates"
    assert score.measured_value == pytest.approx(20)
    assert "measured with HydraGNN's PaiNN, width 64" in score.reason


@pytest.mark.parametrize(("speedup", "error", "code"), [(40.0, 1e-12, 0), (20.0, 1e-12, 1), (40.0, 1e-3, 1)])
def test_check_fails_for_a_deviation_or_a_wrong_stage(tmp_path: Path, speedup: float, error: float, code: int) -> None:
    write_run(tmp_path, speedup=speedup, error=error)
    assert main(["check", "--out", str(tmp_path)]) == code


class FetchedFiles(HTMLParser):
    """A parser that lists the files that a browser would fetch to show a page."""

    def __init__(self) -> None:
        super().__init__()
        self.files: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = ("src", "srcset", "data", "poster", *(["href"] if tag == "link" else []))
        self.files += [value or "" for name, value in attrs if name in names]


def test_page_fetches_only_its_figures_and_escapes_text(tmp_path: Path) -> None:
    write_run(tmp_path)
    write_report(tmp_path)
    page = read_pages(tmp_path)
    fetched = FetchedFiles()
    fetched.feed(page)
    assert fetched.files
    for name in fetched.files:
        assert name.startswith("figures/")
        assert (tmp_path / name).is_file()
    assert "url(" not in page
    assert "@import" not in page
    assert "A &lt;CPU&gt; &amp; co" in page
    assert "A <CPU>" not in page
    drawings = "".join(path.read_text() for path in (tmp_path / "figures").rglob("*.svg"))
    assert "10¹" in drawings
    assert "mathdefault" not in drawings
    text = (tmp_path / "report.md").read_text()
    assert "A &lt;CPU> &amp; co" in text
    images = text.split("](")[1:]
    assert images
    for image in images:
        assert (tmp_path / image.split(")")[0]).is_file()


def test_printed_speedups_of_the_paper_follow_from_its_printed_rates() -> None:
    """Speed-ups agree with the ratios of rates up to rounding, which a typing error in either would violate."""
    _, table = find_table(load_papers(), "table_xv")
    for k, printed in enumerate(table.printed_speedup):
        assert table.rows["torch_compile"][k] / table.rows["baseline"][k] == pytest.approx(printed, abs=1.0)


@pytest.mark.parametrize(
    ("field", "value"), [("finite", False), ("energy_dtype", "torch.float32"), ("force_dtype", "torch.float32")]
)
def test_one_bad_sample_makes_the_stage_incorrect(tmp_path: Path, field: str, value: object) -> None:
    """The sample is not finite, or was computed in a lower precision than requested."""
    write_run(tmp_path)
    log = tmp_path / "runs" / "ladder-local" / "case-fp64" / "events.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    sample = next(e for e in lines if e.get("stage") == "batched_heads" and e.get("round") == 3)
    sample[field] = value
    log.write_text("".join(json.dumps(e) + "\n" for e in lines))
    table = build_ladder_table(load_runs(tmp_path / "runs")).set_index("stage")
    assert table.loc["batched_heads", "verdict"] == "incorrect"
    assert pd.isna(table.loc["batched_heads", "speedup"])
    assert not table.loc["batched_heads", "is_valid"]
    assert table.loc["torch_compile", "is_valid"]


def test_case_that_was_repeated_by_hand_counts_once(tmp_path: Path) -> None:
    write_run(tmp_path)
    log = tmp_path / "runs" / "ladder-local" / "case-fp64" / "events.jsonl"
    log.write_bytes(2 * log.read_bytes())
    assert (build_ladder_table(load_runs(tmp_path / "runs"))["samples"] == 6).all()


def get_verdict(claim: str, out: Path) -> str:
    return next(s.verdict for s in write_report(out).scores if s.id == claim)


def test_too_few_rounds_or_an_unfinished_case_leave_the_claim_not_run(tmp_path: Path) -> None:
    write_run(tmp_path)
    folder = tmp_path / "runs" / "ladder-local" / "case-fp64"
    (folder / "exit_code").write_text("1\n")
    assert get_verdict("ladder-speedup-fp64", tmp_path) == "not run"
    (folder / "exit_code").write_text("0\n")
    assert get_verdict("ladder-speedup-fp64", tmp_path) == "reproduced"
    lines = (folder / "events.jsonl").read_text().splitlines(keepends=True)
    (folder / "events.jsonl").write_text("".join(x for x in lines if '"round": 5' not in x))
    assert get_verdict("ladder-speedup-fp64", tmp_path) == "not run"


def test_truncated_last_line_is_ignored(tmp_path: Path) -> None:
    write_run(tmp_path)
    log = tmp_path / "runs" / "ladder-local" / "case-fp64" / "events.jsonl"
    before = len(load_runs(tmp_path / "runs")[0].samples)
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:-2]) + lines[-2][:25])
    (record,) = load_runs(tmp_path / "runs")
    assert (record.state, record.error) == ("failed", "exit code 0 without a `done` event")
    assert len(record.samples) == before - 1


def test_damaged_line_makes_the_case_unreadable(tmp_path: Path) -> None:
    write_run(tmp_path)
    log = tmp_path / "runs" / "ladder-local" / "case-fp64" / "events.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:9]) + b"\xff\xfe not json\n" + b"".join(lines[9:]))
    (record,) = load_runs(tmp_path / "runs")
    assert (record.state, record.samples, record.stages) == ("unreadable", [], {})
    assert record.error == "events.jsonl:10: not an event; expected a JSON object with `event`"
    JsonLinesLog(log).write("start")  # the case is run again
    assert load_runs(tmp_path / "runs")[0].state == "failed"
