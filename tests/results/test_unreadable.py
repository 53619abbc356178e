"""Unreadable records are reported and do not affect the others; nothing is written through a symbolic link."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.cli.main import main
from harness.document.blocks import EN_DASH, TableBlock, format_quantity
from harness.document.figures import make_file_name
from harness.execution.case_files import read_exit_code, read_last_progress, read_result
from harness.experiments.tables import build_results
from harness.host import provenance
from harness.host.files import append_below, write_below, write_text
from harness.protocol import events
from harness.protocol.errors import UsageError
from harness.protocol.events import VERSION, JsonLinesLog, read_last_run
from harness.protocol.text import pluralize
from harness.report.render import escape_markdown, write_report
from harness.results.runs import RunRecord, load_runs
from harness.tracking import git_commits
from tests.report.test_report import write_run
from tests.tracking.test_compare import write_ladder_run, write_scaling_run

CAMPAIGN = "runs/ladder-local"


def write_two_cases(out: Path) -> Path:
    """Write a valid case and one to damage; return the folder of the second."""
    write_run(out, precision="fp64")
    write_run(out, precision="fp32")
    return out / CAMPAIGN / "case-fp32"


def change_event(folder: Path, kind: str, **fields: Any) -> int:
    """Set fields of the first event of a kind, or remove those that are None; return its line."""
    lines = (folder / "events.jsonl").read_text().splitlines()
    number = next(k for k, line in enumerate(lines, start=1) if json.loads(line)["event"] == kind)
    event = json.loads(lines[number - 1]) | fields
    lines[number - 1] = json.dumps({k: v for k, v in event.items() if v is not None})
    (folder / "events.jsonl").write_text("\n".join(lines) + "\n")
    return number


def load_record(folder: Path) -> RunRecord:
    return next(r for r in load_runs(folder.parents[1]) if r.folder == folder)


def test_every_older_version_has_a_migration() -> None:
    assert sorted(events.MIGRATIONS) == list(range(1, VERSION))


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("sample", {"device_s": None}, "sample: device_s is missing"),
        ("sample", {"device_s": -3.0}, "sample: device_s is -3.0, expected a number above 0"),
        ("sample", {"device_s": 0}, "sample: device_s is 0, expected a number above 0"),
        ("sample", {"collation_s": 4e8}, "sample: collation_s is 400000000.0, expected at most 3.2e+08"),
        ("sample", {"structures": "16"}, "sample: structures is '16', expected a whole number"),
        ("warm_up", {"peak_bytes": -1}, "warm_up: peak_bytes is -1, expected a number of at least 0"),
        ("fact", {"name": None}, "fact: name is missing"),
        ("sample", {"event": "smaple"}, "unknown event 'smaple' of the program ladder (did you mean 'sample'?)"),
        ("start", {"version": VERSION + 1},
         f"written by a newer version ({VERSION + 1}; this harness reads up to {VERSION})"),
        ("start", {"version": "new"}, "version: 'new', expected a whole number of at least 1"),
        ("start", {"program": "train"}, "the log of another case: program is 'train', and case.json has 'ladder'"),
    ],
)  # fmt: skip
def test_invalid_event_makes_its_case_unreadable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, fields: dict[str, Any], message: str
) -> None:
    folder = write_two_cases(tmp_path)
    before = build_results([load_record(tmp_path / CAMPAIGN / "case-fp64")])["ladder"]
    line = change_event(folder, kind, **fields)
    record = load_record(folder)
    assert (record.state, record.error) == ("unreadable", f"events.jsonl:{line}: {message}")
    assert not record.samples
    assert not record.facts
    assert main(["report", "--out", str(tmp_path)]) == 0
    assert f"unreadable: {folder}: events.jsonl:{line}: {message}" in capsys.readouterr().out
    page = (tmp_path / "report.md").read_text()
    assert f"| case-fp32 | unreadable | {escape_markdown(f'events.jsonl:{line}: {message}')} |" in page
    after = build_results(load_runs(tmp_path / "runs"))["ladder"]
    assert after.drop(columns="setup").equals(before.drop(columns="setup"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("case.json", "{", "case.json:1: not JSON"),
        ("case.json", "[]", "case.json: expected a mapping"),
        ("case.json", '{"id": "1"}', "case.json: program is missing"),
        ("case.json", '{"program": "ladder", "parameters": {}}', "case.json: parameters.precision is missing"),
        ("case.json", None, "not a folder of a case: there is no case.json"),
        ("exit_code", "well", "exit_code: expected the exit code"),
        ("exit_code", "0 nan", "exit_code: expected the exit code"),
        ("exit_code", "0 -3", "exit_code: expected the exit code"),
    ],
)
def test_damaged_file_makes_case_unreadable(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    folder = write_two_cases(tmp_path)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    record = load_record(folder)
    assert record.state == "unreadable"
    assert message in str(record.error)
    assert [r.state for r in write_report(tmp_path).records] == ["unreadable", "done"]
    assert main(["check", "--out", str(tmp_path)]) == 1


def replace_with_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_with_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_with_looping_link(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def replace_with_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    "damage", [replace_with_pipe, replace_with_folder, replace_with_looping_link, replace_with_device]
)
@pytest.mark.parametrize("name", ["case.json", "events.jsonl", "exit_code", "provenance.json"])
def test_special_file_makes_case_unreadable(tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    folder = write_two_cases(tmp_path)
    damage(folder / name)
    record = load_record(folder)
    if name == "provenance.json":
        assert record.state == "done"
        assert record.provenance_error is not None
    else:
        assert record.state == "unreadable"
    assert load_record(tmp_path / CAMPAIGN / "case-fp64").state == "done"


def test_ladder_without_a_required_field_is_unreadable(tmp_path: Path) -> None:
    folder = write_two_cases(tmp_path)
    lines = (folder / "events.jsonl").read_text()
    with (folder / "events.jsonl").open("a") as log:
        log.write(json.dumps({"event": "fact", "time_s": 1.0, "name": "model", "value": {"trained": True}}) + "\n")
    line = lines.count("\n") + 1
    assert load_record(folder).error == f"events.jsonl:{line}: fact model: config is missing"
    assert main(["report", "--out", str(tmp_path)]) == 0
    assert "cannot be shown" not in (tmp_path / "report.md").read_text()


def test_negative_memory_growth_is_accepted() -> None:
    fact = {"event": "fact", "name": "reading", "value": [{"read_mode": "file", "ranks": 1, "rss_bytes": -15360}]}
    assert events.find_invalid_event("data", [fact]) is None


def test_invalid_provenance_is_reported_and_its_case_still_counts(tmp_path: Path) -> None:
    folder = write_two_cases(tmp_path)
    (folder / "provenance.json").write_text('{"time_s": "yesterday", "cores": 4}')
    assert load_record(folder).state == "done"
    write_report(tmp_path)
    assert "provenance.json: time_s is 'yesterday', expected a number" in (tmp_path / "report.md").read_text()


def test_case_without_the_facts_that_its_tables_need_is_unreadable(tmp_path: Path) -> None:
    write_scaling_run(tmp_path / "runs" / "scaling-here" / "without-facts", [1.0, 2.0])
    write_run(tmp_path)
    results = build_results(load_runs(tmp_path / "runs"))
    assert {r.folder.name: r.state for r in results.records} == {"without-facts": "unreadable", "case-fp64": "done"}
    assert "its events lack a value that the analysis needs" in str(results.records[1].error)
    assert len(results["ladder"]) == 4


def test_compare_names_unreadable_cases(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for precision in ("fp64", "fp32"):
        write_ladder_run(tmp_path / CAMPAIGN / f"sound-{precision}", {"a": lambda k: 1 + k / 100}, precision=precision)
    folder = write_ladder_run(tmp_path / CAMPAIGN / "worse", {"a": lambda k: 1 + k / 100}, precision="bf16")
    change_event(folder, "sample", device_s=-1.0)
    assert main(["compare", "precision=fp64", "precision=fp32", "--out", str(tmp_path)]) == 0
    assert f"not compared: {folder} is unreadable: events.jsonl:2: sample: device_s" in capsys.readouterr().out


def test_result_of_a_case_names_the_damaged_line(tmp_path: Path) -> None:
    folder = write_two_cases(tmp_path)
    change_event(folder, "sample", device_s=-1.0)
    result = read_result(folder)
    assert result is not None
    assert result.state == "failed"
    assert result.reason.startswith("unreadable: events.jsonl:")
    assert read_exit_code(folder) == (0, None)


def test_log_starts_at_the_last_run_and_ignores_an_earlier_truncated_line(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    JsonLinesLog(log).write("start")
    with log.open("a") as handle:
        handle.write('{"event": "sam')
    second = JsonLinesLog(log)
    second.write("start", version=VERSION)
    second.write("done")
    run = read_last_run(log)
    assert [e["event"] for e in run.events] == ["start", "done"]
    assert (list(run.lines), run.damaged_line) == ([3, 4], None)


def add_reference(folder: Path, exit_code: int) -> None:
    """Add a figure of merit and an exit code to a case."""
    case = json.loads((folder / "case.json").read_text())
    case["performance"] = [
        {"event": "sample", "where": {"stage": "torch_compile"}, "field": "device_s", "name": "call", "unit": "s",
         "reference": 0.3, "tolerance": 0.9, "direction": "lower_is_better"}
    ]  # fmt: skip
    (folder / "case.json").write_text(json.dumps(case))
    (folder / "exit_code").write_text(f"{exit_code}\n")


@pytest.mark.parametrize(("exit_code", "expected"), [(0, 0), (1, 1), (None, 1)])
def test_check_fails_for_a_figure_of_merit_that_was_not_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], exit_code: int | None, expected: int
) -> None:
    folder = write_two_cases(tmp_path)
    add_reference(folder, exit_code or 0)
    if exit_code is None:
        (folder / "exit_code").unlink()
        log = folder / "events.jsonl"
        log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))
    assert main(["check", "--out", str(tmp_path)]) == expected
    message = capsys.readouterr().out
    assert ("ladder-local/case-fp32: call is not measured: the case is" in message) == bool(expected)
    assert ("ladder-speedup-fp32: the claim is not measured" in message) == bool(expected)


def test_check_passes_for_a_case_that_has_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_two_cases(tmp_path)
    add_reference(folder, 0)
    for name in ("events.jsonl", "exit_code"):
        (folder / name).unlink()
    assert main(["check", "--out", str(tmp_path)]) == 0
    assert "1 case not run yet: not judged" in capsys.readouterr().out


def test_links_in_the_results_folder_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("mine")
    out = tmp_path / "out"
    for name in ("history.jsonl", "index.html.part", "index.html", "report.md", "scorecard.json", "ladder.csv.part"):
        shutil.rmtree(out, ignore_errors=True)
        write_run(out)
        folder = out / "tables" if name.startswith("ladder") else out
        folder.mkdir(exist_ok=True)
        (folder / name).symlink_to(outside / "precious")
        write_report(out)
        assert (outside / "precious").read_text() == "mine"
        assert name == "history.jsonl" or not (folder / name).is_symlink()


@pytest.mark.parametrize("name", ["tables", "figures"])
def test_linked_folder_is_refused_before_writing(tmp_path: Path, name: str) -> None:
    out, outside = tmp_path / "out", tmp_path / "outside"
    write_run(out)
    outside.mkdir()
    (outside / "training_runs.csv").write_text("mine")
    (out / name).symlink_to(outside)
    with pytest.raises(UsageError, match=f"{name}: is a symbolic link, and the harness does not write through links"):
        write_report(out)
    assert [p.name for p in outside.iterdir()] == ["training_runs.csv"]
    linked = tmp_path / "linked"
    linked.symlink_to(out)
    (out / name).unlink()
    write_report(linked)
    assert (out / "index.html").exists()


def test_files_are_not_written_or_appended_through_links(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("mine")
    for name in ("a", "a.part"):
        (tmp_path / name).symlink_to(target)
    write_text(tmp_path / "a", "new")
    assert ((tmp_path / "a").read_text(), target.read_text()) == ("new", "mine")
    (tmp_path / "log").symlink_to(target)
    with pytest.raises(UsageError, match="log: is a symbolic link"):
        append_below(tmp_path, "log", b"x")
    write_below(tmp_path, "new/deep/file", "\udce4")
    assert (tmp_path / "new" / "deep" / "file").read_text() == "?"


def test_text_of_records_is_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_two_cases(tmp_path)
    log = JsonLinesLog(folder / "events.jsonl")
    log.write("error", message="\x1b[31mred\x1b[0m\nerror: forged <script>alert(1)</script> | [x](javascript:alert(1))")
    add_reference(folder, 1)
    assert main(["check", "--out", str(tmp_path)]) == 1
    message = capsys.readouterr().out
    assert "\x1b" not in message
    assert "\nerror: forged" not in message
    write_report(tmp_path)
    page, text = ((tmp_path / name).read_text() for name in ("index.html", "report.md"))
    assert "<script>alert" not in page + text
    assert r"&lt;script>alert(1)&lt;/script> \| \[x\](javascript:alert(1))" in text
    log.write("progress", done=1, total=2, what="\x1b[2Jgone")
    event = read_last_progress(folder)
    assert event is not None
    assert event["activity"] == "?[2Jgone"
    log.write("progress", done="all")
    assert read_last_progress(folder) == event


@pytest.mark.parametrize("name", ["a b/../..", "$x^{$", "x" * 300, "<&>", "ä"])
def test_file_name_has_only_safe_characters(name: str) -> None:
    safe = make_file_name(name)
    assert safe.isascii()
    assert len(safe) < 200
    assert not set(safe) & set("/ <&>$")
    assert make_file_name("ladder-1.x") == "ladder-1.x"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1.0, "rank", "rank 1"), (12.0, "rank", "rank 12"),
        (1.0, "nodes", "1 node"), (2048.0, "nodes", "2,048 nodes"), (1_212_750.0, "s", "14 days"), (50.0, "s", "50 s"),
        (7200.0, "s", "2 hours"), (300.0, "s", "5 minutes"), (544e6, "structures", "544,000,000 structures"),
        (33.0, "x", "33 x"), (1.0, "x", "1 x"), (300.0, "structures/s", "300 structures/s"),
    ],
)  # fmt: skip
def test_format_quantity_writes_units(value: float, unit: str, text: str) -> None:
    assert format_quantity(value, unit) == text


def test_counts_are_formatted() -> None:
    assert [pluralize(1, "search", "searches"), pluralize(1200, "node")] == ["1 search", "1,200 nodes"]


def test_git_ignores_user_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo, home = tmp_path / "clone", tmp_path / "home"
    repo.mkdir()
    home.mkdir()
    settings = {
        "log.showSignature": "true", "i18n.logOutputEncoding": "UTF-16", "format.pretty": "fuller",
        "color.ui": "always", "core.pager": "false", "diff.external": "false", "log.mailmap": "true",
        "user.name": "A", "user.email": "a@b.c",
        "gpg.program": "false", "log.decorate": "full", "log.date": "relative", "core.quotePath": "true",
    }  # fmt: skip
    monkeypatch.setenv("HOME", str(home))
    for k, v in settings.items():
        subprocess.run(["git", "config", "--global", k, v], check=True)
    for key in ("GIT_DIR", "GIT_WORK_TREE"):
        monkeypatch.delenv(key, raising=False)
    subprocess.run(["git", "init", "-q", str(repo)], check=True)
    (repo / "file").write_text("x")
    subprocess.run(["git", "-C", str(repo), "add", "file"], check=True)
    for message in (b"caf\xe9 \x1b[31mred", b"second"):
        command = ["git", "-C", str(repo), "commit", "-q", "--allow-empty", "--cleanup=verbatim", "-F", "-"]
        subprocess.run(command, input=message, check=True, capture_output=True)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", "false")
    first, second = git_commits.list_commits(git_commits.find_repository(repo), "HEAD~1..HEAD")
    assert len(first.hash) == len(second.hash) == 40
    assert first.subject.startswith("caf")
    assert first.subject.endswith("?[31mred")
    assert second.subject == "second"
    assert git_commits.count_first_parents(repo, second.hash) == 2
    assert provenance.run_git(repo, "status", "--porcelain") == ""
    assert git_commits.describe_commit(repo, "f" * 40) is None


def test_missing_cell_is_shown_as_a_dash() -> None:
    block = TableBlock("t", ["a", "b"], [[None, "x"]])  # type: ignore[list-item]
    assert block.rows == [[EN_DASH, "x"]]
