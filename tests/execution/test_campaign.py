"""Campaigns of real jobs on this machine: failures, resumption, a killed harness, two harnesses, an interruption."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest

from harness.execution.journal import Journal
from harness.execution.schedulers.local import LocalScheduler
from harness.protocol import events
from tests.conftest import ROOT, Harness, read_pages

EAGER_STAGES = "[baseline, encoder_reuse, branch_skip, fused_gradient, batched_heads]"
TINY = f"""\
name: tiny
title: A tiny ladder
program: ladder
parameters:
  model: {{hidden_dim: 8, num_conv_layers: 2, num_sharedlayers: 0, dim_headlayers: 4}}
  stages: {EAGER_STAGES}
  batch_size: 2
  batches: 2
  rounds: 6
  atoms: [2, 6]
matrix:
  workload: [random, crystals]
  precision: [fp64]
resources: {{walltime_minutes: 5}}
"""


def write_suite(folder: Path, text: str = TINY) -> None:
    (folder / "tiny.yaml").write_text(text)


# Background processes of a shell ignore interrupts, which the harness under test must receive.
INTERRUPTIBLE = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from harness.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def start_harness(folder: Path, *argv: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, *argv],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


def wait_for(path: Path, word: str, times: int = 1) -> None:
    deadline = time.monotonic() + 300
    while read_text(path).count(word) < times:
        assert time.monotonic() < deadline, f"{path} does not contain {word} {times} times"
        time.sleep(0.05)


def read_text(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


@pytest.mark.slow
def test_run_reports_and_does_not_rerun_done_cases(harness: Harness, tmp_path: Path) -> None:
    write_suite(tmp_path)
    result = harness("run", "tiny.yaml", "--out", "out")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("report so far"), "the first report follows the first case"
    out = tmp_path / "out"
    for name in ("index.html", "report.md", "tables/ladder.csv", "tables/samples.csv", "scorecard.json"):
        assert (out / name).stat().st_size > 0
    table = pd.read_csv(out / "tables" / "ladder.csv")
    assert set(table["workload"]) == {"random", "crystals"}
    assert all((out / folder / "case.json").exists() for folder in table["folder"])
    assert set(table.loc[table["stage"] != "branch_skip", "verdict"]) == {"ok"}
    assert (table["samples"] == 6).all()
    assert (table["structures_per_s_low"] <= table["structures_per_s"]).all()
    assert (table["end_to_end_structures_per_s"] < table["structures_per_s"]).all()
    assert (table["peak_bytes"] > 0).all()
    assert (table["matrix_gflop"] > 0).all()
    figures = {path.name.split("-")[0] for path in (out / "figures").glob("*.png")}
    costs = pd.read_csv(out / "tables" / "cost_cases.csv")
    measured = costs["busy_cores"].notna()
    assert (
        costs.loc[~measured, "unavailable_reason"].notna().all()
    )  # a busy machine takes too few samples, which the table states
    assert figures == ({"tiny", "cost"} if measured.any() else {"tiny"})
    assert len(list((out / "figures").glob("tiny*.svg"))) == len(list((out / "figures").glob("tiny*.png"))) == 4

    folders = sorted((out / "runs").glob("*/*/case.json"))
    before = [(f.parent / "events.jsonl").read_bytes() for f in folders]
    rerun = harness("run", "tiny.yaml", "--out", "out")
    assert rerun.returncode == 0
    assert rerun.stderr.count("done before") == 2
    assert before == [(f.parent / "events.jsonl").read_bytes() for f in folders]


@pytest.mark.slow
def test_moved_campaign_runs_by_hand(harness: Harness, tmp_path: Path) -> None:
    write_suite(tmp_path)
    harness("run", "tiny.yaml", "--out", "out", "-n", "random")
    campaign = (tmp_path / "out" / "runs" / "tiny-local").rename(tmp_path / "elsewhere")
    folder = next(campaign.glob("tiny-random*"))
    (folder / "events.jsonl").unlink()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "GFM_HARNESS_CAMPAIGN": str(campaign)}
    command = ["bash", str(folder / "job.sh")]
    skipped = subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
    assert "has ended before" in skipped.stdout
    assert not (folder / "events.jsonl").exists()
    subprocess.run([*command, "again"], check=True, env=environment)
    assert [e["event"] for e in events.read(folder / "events.jsonl")][-1] == "done"
    assert (folder / "exit_code").read_text().startswith("0\n")


@pytest.mark.slow
def test_failed_case_is_reported_and_is_the_only_one_that_is_retried(harness: Harness, tmp_path: Path) -> None:
    model = "  model: {hidden_dim: 8, num_conv_layers: 2, num_sharedlayers: 0, dim_headlayers: 4}\n"
    broken = tmp_path / "broken.safetensors"
    broken.write_text("not a checkpoint")
    text = TINY.replace(model, "").replace("  precision", f"  checkpoint: [painn-64, {broken}]\n  precision")
    write_suite(tmp_path, text.replace("workload: [random, crystals]", "workload: [random]"))
    result = harness("run", "tiny.yaml", "--out", "out")
    assert result.returncode == 3
    assert "failed with exit code 2" in result.stderr
    assert f"error: {broken}: not a readable checkpoint" in result.stderr
    assert "Traceback" not in result.stderr
    page = read_pages(tmp_path / "out")
    assert "Incomplete cases" in page
    assert "not a readable checkpoint" in page
    assert harness("status", "tiny.yaml", "--out", "out").returncode == 3

    broken.write_bytes((ROOT / "harness" / "reference" / "models" / "shipped" / "painn-64.safetensors").read_bytes())
    second = harness("run", "tiny.yaml", "--out", "out")
    assert second.returncode == 3
    assert "--retry" in second.stderr
    rerun = harness("run", "tiny.yaml", "--out", "out", "--retry")
    assert rerun.returncode == 0, rerun.stderr
    assert rerun.stderr.count("done before") == 1
    assert len(list((tmp_path / "out" / "runs").glob("*/*/attempt-1/stderr"))) == 1


@pytest.mark.slow
def test_next_harness_joins_the_job_of_a_killed_one(harness: Harness, tmp_path: Path) -> None:
    write_suite(tmp_path, TINY.replace("rounds: 6", "rounds: 150").replace("[random, crystals]", "[random]"))
    first = start_harness(tmp_path, "run", "tiny.yaml", "--out", "out")
    journal = tmp_path / "out" / "runs" / "tiny-local" / "journal.jsonl"
    wait_for(journal, "submitted")
    log = next(journal.parent.glob("tiny-*")) / "events.jsonl"
    wait_for(log, "sample")
    first.kill()
    first.wait()
    result = harness("run", "tiny.yaml", "--out", "out")
    assert result.returncode == 0, result.stderr
    lines = list(events.read(log))
    assert sum(e["event"] == "start" for e in lines) == 1
    assert sum(e["event"] == "sample" for e in lines) == 150 * 5 * 2
    assert journal.read_text().count('"submitted"') == 1
    assert not Journal(journal.parent).active_jobs


@pytest.mark.slow
def test_killed_job_is_incomplete_and_its_samples_remain(harness: Harness, tmp_path: Path) -> None:
    write_suite(tmp_path, TINY.replace("rounds: 6", "rounds: 5000").replace("[random, crystals]", "[random]"))
    first = start_harness(tmp_path, "run", "tiny.yaml", "--out", "out")
    journal = tmp_path / "out" / "runs" / "tiny-local" / "journal.jsonl"
    wait_for(journal, "submitted")
    folder = next(journal.parent.glob("tiny-*"))
    for attempt in (1, 2):
        wait_for(journal, '"submitted"', attempt)
        wait_for(folder / "events.jsonl", "sample")
        LocalScheduler(journal.parent).cancel(list(Journal(journal.parent).active_jobs), force=True)
        if attempt == 1:
            wait_for(folder / "attempt-1" / "events.jsonl", "sample")
    assert first.wait(300) == 3
    assert first.stderr is not None
    assert "lost (its job has disappeared, and there is no exit code; tried 2 times)" in first.stderr.read()
    table = pd.read_csv(tmp_path / "out" / "tables" / "ladder.csv")
    assert set(table["state"]) == {"lost"}
    assert (table["samples"] > 0).all()
    assert (folder / "attempt-1" / "events.jsonl").stat().st_size > 0


@pytest.mark.slow
def test_program_that_outlives_its_shell_is_not_rerun(harness: Harness, tmp_path: Path) -> None:
    """The exit code is never written; the last event of the program shows that it finished."""
    write_suite(tmp_path, TINY.replace("rounds: 6", "rounds: 60").replace("[random, crystals]", "[random]"))
    first = start_harness(tmp_path, "run", "tiny.yaml", "--out", "out")
    journal = tmp_path / "out" / "runs" / "tiny-local" / "journal.jsonl"
    wait_for(journal, '"submitted"')
    folder = next(journal.parent.glob("tiny-*"))
    wait_for(folder / "events.jsonl", "sample")
    [shell] = [child for child in psutil.Process(first.pid).children() if child.name() == "bash"]
    shell.kill()
    _, errors = first.communicate(timeout=300)
    assert first.returncode == 0, errors
    assert not (folder / "exit_code").exists(), "this test needs a case without an exit code"
    lines = list(events.read(folder / "events.jsonl"))
    assert sum(e["event"] == "start" for e in lines) == 1
    assert not list(folder.glob("attempt-*"))
    assert journal.read_text().count('"submitted"') == journal.read_text().count('"ended"') == 1
    assert harness("status", "tiny.yaml", "--out", "out").stdout.endswith("1 done\n")
    assert set(pd.read_csv(tmp_path / "out" / "tables" / "ladder.csv")["state"]) == {"done"}


def test_program_that_dies_after_its_shell_is_rerun(harness: Harness, tmp_path: Path) -> None:
    write_suite(tmp_path, TINY.replace("rounds: 6", "rounds: 300").replace("[random, crystals]", "[random]"))
    first = start_harness(tmp_path, "run", "tiny.yaml", "--out", "out")
    journal = tmp_path / "out" / "runs" / "tiny-local" / "journal.jsonl"
    wait_for(journal, '"submitted"')
    folder = next(journal.parent.glob("tiny-*"))
    wait_for(folder / "events.jsonl", "sample")
    [shell] = [child for child in psutil.Process(first.pid).children() if child.name() == "bash"]
    program = events.read_last_events(folder / "events.jsonl")[0]["pid"]
    shell.kill()
    os.kill(program, signal.SIGKILL)
    wait_for(journal, '"submitted"', 2)
    first.send_signal(signal.SIGINT)
    assert first.wait(300) == 130
    assert (folder / "attempt-1" / "events.jsonl").stat().st_size > 0


def test_second_harness_on_one_campaign_is_refused(harness: Harness, tmp_path: Path) -> None:
    write_suite(tmp_path, TINY.replace("rounds: 6", "rounds: 5000").replace("[random, crystals]", "[random]"))
    first = start_harness(tmp_path, "run", "tiny.yaml", "--out", "out")
    journal = tmp_path / "out" / "runs" / "tiny-local" / "journal.jsonl"
    wait_for(journal, "submitted")
    wait_for(next(journal.parent.glob("tiny-*")) / "events.jsonl", "start")
    second = harness("run", "tiny.yaml", "--out", "out")
    assert second.returncode == 2
    assert "another harness process is working in this folder" in second.stderr
    assert "running" in harness("status", "tiny.yaml", "--out", "out").stdout
    first.send_signal(signal.SIGINT)
    assert first.wait(300) == 130
    assert "lost" in harness("status", "tiny.yaml", "--out", "out").stdout
    log = next(journal.parent.glob("tiny-*")) / "events.jsonl"
    size = log.stat().st_size
    time.sleep(1.0)
    assert log.stat().st_size == size, "the interrupted job still runs"


@pytest.mark.slow
def test_stage_that_cannot_run_is_shown_as_unavailable(
    harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch.compile and the fused operators need a C++ compiler."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty-cache"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "empty-cache"))
    text = TINY.replace("batched_heads]", "batched_heads, torch_compile, fused_messages]")
    text = text.replace("[random, crystals]", "[random]")
    write_suite(tmp_path, text)
    result = harness("run", "tiny.yaml", "--out", "out")
    assert result.returncode == 0, result.stderr
    table = pd.read_csv(tmp_path / "out" / "tables" / "ladder.csv").set_index("stage")
    assert table.loc["torch_compile", "verdict"].startswith("unavailable: ")
    assert table.loc["fused_messages", "verdict"] == "unavailable: no C++ compiler 'no-such-compiler'"
    assert table.loc["batched_heads", "verdict"] == "ok"
    scores = json.loads((tmp_path / "out" / "scorecard.json").read_text())
    (score,) = [s for s in scores if s["id"] == "ladder-speedup-fp64"]
    assert score["verdict"] == "not run"
    assert "unavailable" in score["reason"]


def test_run_over_the_node_hour_limit_starts_no_job(harness: Harness, tmp_path: Path) -> None:
    write_suite(tmp_path)
    result = harness("run", "tiny.yaml", "--out", "out", "--max-node-hours", "0.16")
    assert result.returncode == 2
    assert result.stderr.startswith(
        "error: up to 0.1667 node-hours, and --max-node-hours is 0.16; nothing was submitted"
    )
    assert not (tmp_path / "out").exists()
    assert harness("plan", "tiny.yaml", "--max-node-hours", "0.16").returncode == 2
    assert harness("plan", "tiny.yaml", "--max-node-hours", "0.17").returncode == 0


@pytest.mark.slow
def test_run_of_one_case_keeps_the_results_of_others(harness: Harness, tmp_path: Path) -> None:
    """After a killed run of both cases, a run of one case must not count the result of the other as lost."""
    write_suite(tmp_path, TINY.replace("rounds: 6", "rounds: 100"))
    first = start_harness(tmp_path, "run", "tiny.yaml", "--out", "out")
    journal = tmp_path / "out" / "runs" / "tiny-local" / "journal.jsonl"
    wait_for(journal, "submitted")
    first.kill()
    first.wait()
    log = next(journal.parent.glob("tiny-random-*")) / "events.jsonl"
    wait_for(log, '"done"')
    assert harness("run", "tiny.yaml", "--out", "out", "-n", "crystals").returncode == 0
    assert '"lost"' not in journal.read_text()
    assert harness("status", "tiny.yaml", "--out", "out").stdout.endswith("2 done\n")


@pytest.mark.slow
def test_sanity_checks_and_figures_of_merit_judge_a_case(harness: Harness, tmp_path: Path) -> None:
    checks = """\
sanity:
  - {event: sample, min_events: 12}
  - {event: sample, field: device_s, at_least: LIMIT}
performance:
  - {name: time, event: sample, field: device_s, reference: 1.0e-9, tolerance: 0.5, direction: lower_is_better, unit: s}
"""
    write_suite(tmp_path, TINY.replace("[random, crystals]", "[random]") + checks.replace("LIMIT", "1000"))
    failed = harness("run", "tiny.yaml", "--out", "out")
    assert failed.returncode == 3
    assert "failed (sanity: sample: device_s is" in failed.stderr
    write_suite(tmp_path, TINY.replace("[random, crystals]", "[random]") + checks.replace("LIMIT", "0"))
    assert harness("run", "tiny.yaml", "--out", "out", "--retry").returncode == 0
    checked = harness("check", "--out", "out")
    assert checked.returncode == 1
    assert "tiny-random-fp64 time: worse" in checked.stdout
    assert "Figures of merit" in read_pages(tmp_path / "out")
