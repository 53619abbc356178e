"""The page and the history of preflights show what passed, what failed and what nobody checked."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import matplotlib.pyplot as plt
import pytest

from harness.cli import campaigns
from harness.experiments.preflight import page
from harness.experiments.preflight.metrics import build_tables
from harness.protocol.events import JsonLinesLog
from harness.report.render import write_report
from harness.results.preflights import describe_preflights, find_preflights
from harness.results.runs import load_runs
from tests.conftest import read_pages

CALCULATION = {
    "calculation": "messages, backward", "formulation": "fused", "precision": "fp32", "width": 64, "error": 1e-6,
    "tolerance": 1e-4, "duration_s": 0.001, "plain_s": 0.004, "peak_bytes": 2**20,
}  # fmt: skip


def write_case(
    out: Path,
    verdicts: Sequence[str],
    *,
    campaign: str = "preflight-frontier",
    case: str = "preflight",
    end: bool = True,
    parameters: Any = None,
    device_name: str | None = "MI250X",
) -> None:
    """Write a run of a preflight of frontier, with an item per verdict, and one more that it announces."""
    folder = out / "runs" / campaign / case
    folder.mkdir(parents=True)
    content = {"id": case, "name": case, "suite": "preflight", "program": "preflight", "system": "frontier"}
    (folder / "case.json").write_text(json.dumps(content | {"parameters": parameters or {}}))
    log = JsonLinesLog(folder / "events.jsonl")
    log.write("start")
    items = ["ranks", "devices", "kernels", "disk"][: len(verdicts)]
    log.write_fact("items", [*items, *(() if end else ("mpi",))])
    log.write_fact("device", "cuda" if device_name else "cpu")
    if device_name:
        log.write_fact("device_name", device_name)
    for item, verdict in zip(items, verdicts, strict=True):
        advice = {} if verdict == "ok" else {"advice": "Do this."}
        fields = {"verdict": verdict, "expected": "a", "observed": f"observed {item}", "duration_s": 1.0}
        log.write("preflight_item", item=item, **fields, **advice)
    log.write("preflight_calculation", item="kernels", rank=0, result=CALCULATION)
    if end:
        has_failed = "failed" in verdicts
        if has_failed:
            log.write("error", message="1 item failed")
        else:
            log.write("done")
        (folder / "exit_code").write_text(f"{2 * has_failed}\n")


def test_page_shows_each_verdict_with_what_to_do(tmp_path: Path) -> None:
    write_case(tmp_path, ["ok", "failed", "not checked", "ok"])
    write_report(tmp_path)
    text = read_pages(tmp_path)
    assert '<td class="bad">failed</td>' in text
    assert '<td class="unknown">not checked</td>' in text
    assert "2 of 3 checked items of frontier ok; 1 not checked; failed: devices" in text
    assert "Do this." in text
    assert "Calculations on MI250X" in text
    assert "An unknown number of ranks on unknown nodes" in text, "the log ended before these facts"
    assert (tmp_path / "tables" / "preflight_items.csv").exists()


def test_cases_of_one_name_have_separate_figures(tmp_path: Path) -> None:
    for case in ("first", "second"):
        write_case(tmp_path, ["ok"], case=case)
        path = tmp_path / "runs" / "preflight-frontier" / case / "case.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"name": "preflight"}))
    write_report(tmp_path)
    write_case(tmp_path, ["ok"], campaign="preflight", case="frontier.first")
    write_report(tmp_path)
    assert len(list((tmp_path / "figures").glob("*preflight*-items.png"))) == 3


def test_the_device_of_a_case_is_not_that_of_another_case(tmp_path: Path) -> None:
    write_case(tmp_path, ["ok"], case="first")
    write_case(tmp_path, ["ok"], case="second", device_name=None)
    tables = build_tables(load_runs(tmp_path / "runs"))
    by_folder = tables["preflight_calculations"].groupby("folder")
    titles = {page.build_calculations_block(rows).title for _, rows in by_folder}
    assert titles == {"Calculations on MI250X", "Calculations on cpu"}


def test_items_of_unknown_duration_have_no_marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_case(tmp_path, ["ok", "failed"], end=False)
    items = build_tables(load_runs(tmp_path / "runs"))["preflight_items"]
    points: list[tuple[float, float]] = []

    def record_points(figure: Any, *_: Any, **__: Any) -> None:
        points.extend((x, y) for line in figure.axes[0].lines for x, y in line.get_xydata())
        plt.close(figure)

    monkeypatch.setattr(page, "save_figure", record_points)
    page.draw_items(items, tmp_path, "items")
    assert sorted(points) == [(1.0, 0.0), (1.0, 1.0)]


def test_item_that_a_run_did_not_reach_is_not_checked(tmp_path: Path) -> None:
    write_case(tmp_path, ["ok", "ok"], end=False)
    rows = build_tables(load_runs(tmp_path / "runs"))["preflight_items"]
    assert rows[["item", "verdict"]].to_numpy().tolist()[-1] == ["mpi", "not checked"]
    assert "mpi" in page.describe_case(rows)[-1]


def test_speed_up_compares_with_the_plain_formulation(tmp_path: Path) -> None:
    write_case(tmp_path, ["ok"])
    (row,) = build_tables(load_runs(tmp_path / "runs"))["preflight_calculations"].to_dict("records")
    assert row["speedup"] == pytest.approx(4.0)


def test_history_knows_the_last_pass_and_the_last_failure(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    text = describe_preflights(find_preflights(runs, "frontier"), "frontier")
    assert text.startswith("warning: there is no preflight of frontier")
    write_case(tmp_path, ["ok", "not checked"], case="first")
    history = find_preflights(runs, "frontier")
    assert history.is_passed
    assert "it last passed on 20" in describe_preflights(history, "frontier")
    assert find_preflights(runs, "aurora").passed_s is None
    time.sleep(0.01)
    write_case(tmp_path, ["failed"], case="second")
    history = find_preflights(runs, "frontier")
    assert not history.is_passed
    text = describe_preflights(history, "frontier")
    assert text.startswith("warning: the preflight of frontier failed on 20")
    assert "it last passed on 20" in text


def test_check_of_an_accelerator_alone_is_no_preflight(tmp_path: Path) -> None:
    write_case(tmp_path, ["ok"], parameters={"items": "gpu"})
    assert find_preflights(tmp_path / "runs", "frontier").passed_s is None


@pytest.mark.parametrize(("program", "detached", "warns"), [
    ("train", True, True), ("train", False, False), ("preflight", True, False),
])  # fmt: skip
def test_campaign_on_another_machine_warns_without_a_preflight(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], program: str, detached: bool, warns: bool
) -> None:
    system = SimpleNamespace(definition=SimpleNamespace(name="frontier"))
    plan = SimpleNamespace(suite=SimpleNamespace(program=program), system=system)
    campaign = SimpleNamespace(plan=plan, scheduler=SimpleNamespace(is_detached=detached))
    campaigns.report_preflight(cast(Any, SimpleNamespace(out=tmp_path)), cast(Any, [campaign]))
    assert capsys.readouterr().err.count("\n") == int(warns)
