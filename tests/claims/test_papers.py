"""Files of claims: mistakes are reported with their locations; the worked example is judged."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from harness.claims.evaluate import judge_folder
from harness.claims.papers import load_papers
from harness.cli.main import main
from harness.protocol.errors import UsageError
from harness.report.render import write_report
from tests.conftest import ROOT
from tests.report.test_report import write_run

README = ROOT / "reports" / "claims" / "README.md"
SHIPPED = {path.stem for path in (ROOT / "reports" / "claims").glob("*.yaml")}


def read_example() -> str:
    example = re.search(r"```yaml\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert example is not None
    return example[1]


def write_claims(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def _working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_several_papers_are_shipped() -> None:
    papers = load_papers()
    assert set(papers) == SHIPPED
    assert len(SHIPPED) > 1
    for paper in papers.values():
        assert paper.source
        for claim in paper.claims:
            assert claim.statement
            assert claim.source
            assert claim.suites or claim.not_applicable


def test_all_mistakes_are_reported_with_their_locations(tmp_path: Path) -> None:
    text = read_example()
    mistakes = {
        "program: ladder": ("program: laddr", "unknown program 'laddr' (did you mean 'ladder'?)"),
        "[ladder]": ("[ladderr]", "unknown suite 'ladderr' (did you mean 'ladder'?)"),
        "workload: random": ("worklod: random", "unknown column 'worklod' (did you mean 'workload'?)"),
        "state: done": ("stat: done", "unknown column 'stat' (did you mean 'state'?)"),
        "largest: model": ("largest: modle", "unknown column 'modle' (did you mean 'model'?)"),
        "high: speedup_high": ("high: speedup_hihg", "unknown column 'speedup_hihg' (did you mean 'speedup_high'?)"),
        "{on_cpu: false}": ("{on_cpuu: false}", "unknown column 'on_cpuu' (did you mean 'on_cpu'?)"),
        "{device}": ("{devise}", "unknown column 'devise' (did you mean 'device'?)"),
    }
    for right, (wrong, _) in mistakes.items():
        assert right in text
        text = text.replace(right, wrong)
    path = write_claims(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        load_papers([path])
    error = str(caught.value)
    for wrong, message in mistakes.values():
        line = next(k for k, row in enumerate(text.splitlines(), start=1) if wrong in row)
        assert re.search(rf"mine\.yaml:{line}:\d+: {re.escape(message)}", error), (message, error)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["query"].update(table="lader"), "unknown table 'lader' (did you mean 'ladder'?)"),
        (lambda c: c["query"]["measure"].update(statistic="medain"), "did you mean 'median'?"),
        (lambda c: c["conditions"][0]["otherwise"].update(verdict="reprodced"), "did you mean 'reproduced'?"),
        (lambda c: c.update(querry={}), "unknown key 'querry' (did you mean 'query'?)"),
        (lambda c: c.pop("statement"), "is missing"),
        (lambda c: c.update(at_most=7), "expected one of `at_least`, `at_most` and `within`"),
        (lambda c: c.pop("query"), "expected either `query` or `not_applicable`"),
        (lambda c: c["query"].update(measure={"statistic": "max"}), "statistic 'max' needs a column"),
        (
            lambda c: c["query"].update(measure={"statistic": "ratio", "column": "speedup"}),
            "needs `matching`, the rows that it is about",
        ),
        (lambda c: c["query"]["pick"].update(smallest="model"), "expected either `largest` or `smallest`"),
        (lambda c: c["query"]["measure"].pop("high"), "`low` and `high` are given together"),
        (lambda c: c.update(value="six"), "expected a number"),
        (lambda c: c["query"]["where"].update(precision="> much"), "expected a number after >, got 'much'"),
        (lambda c: c.update(note="{threads:.3x}"), "unknown format '.3x'"),
        (
            lambda c: c.update(query={"table": "elements", "measure": {"column": "atoms"}}, conditions=[], note=""),
            "elements does not contain the folders of its runs",
        ),
    ],
)
def test_mistake_is_named_with_file_and_line(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    yaml = YAML(typ="safe")
    data = yaml.load(read_example())
    change(data["claims"][0])
    path = tmp_path / "mine.yaml"
    yaml.dump(data, path)
    with pytest.raises(UsageError) as caught:
        load_papers([path])
    first, *_ = str(caught.value).splitlines()
    assert re.match(rf"{re.escape(str(path))}:\d+:\d+: ", first)
    assert message in str(caught.value)


def test_duplicate_claim_id_is_refused(tmp_path: Path) -> None:
    text = read_example()
    claim = text[text.index("  - id:") :]
    with pytest.raises(UsageError) as caught:
        load_papers([write_claims(tmp_path, text + claim)])
    line = len(text.splitlines()) + 1
    assert f"mine.yaml:{line}:5: duplicate claim id 'skipping-branches'" in str(caught.value)


def test_worked_example_is_judged_from_a_folder_of_claims(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "out")
    write_claims(tmp_path / "claims", read_example())
    main(["check", "--out", "out"])
    printed = capsys.readouterr().out
    (line,) = [row for row in printed.splitlines() if row.startswith("skipping-branches: ")]
    assert line.startswith("skipping-branches: inconclusive: 4 x (paper: 6.2 x) (")
    assert "; the paper used a GPU" in line
    table = judge_folder(tmp_path / "out", load_papers()).results.tables()["ladder"]
    speedup = table[table["stage"] == "branch_skip"]["speedup"].iloc[0]
    (score,) = [s for s in judge_folder(tmp_path / "out", load_papers()).scores if s.paper == "mine"]
    assert score.measured_value == pytest.approx(speedup)
    assert score.ci_low is not None


def test_report_and_check_accept_files_of_claims(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "out")
    first = write_claims(tmp_path / "elsewhere", read_example(), "first.yaml")
    second = write_claims(tmp_path / "elsewhere", read_example().replace("skipping-branches", "another"), "second.yaml")
    args = ["--out", "out", "--claims", str(first), "--claims", str(second)]
    main(["check", *args])
    printed = capsys.readouterr().out
    assert "skipping-branches: " in printed
    assert "another: " in printed
    assert main(["report", *args]) == 0
    rows = json.loads((tmp_path / "out" / "scorecard.json").read_text())
    assert {row["paper"] for row in rows} == SHIPPED | {"first", "second"}
    page = (tmp_path / "out" / "index.html").read_text()
    assert "Claims of A. Author and B. Author, arXiv 2601.00001 (2026)" in page
    assert "Claims of Schütt, Unke and Gastegger" in page


def test_two_files_with_the_same_name_are_refused(tmp_path: Path) -> None:
    first = write_claims(tmp_path / "claims", read_example())
    load_papers([first])
    second = write_claims(tmp_path / "other", read_example())
    with pytest.raises(UsageError, match=r"other/mine\.yaml: claims/mine\.yaml has the same name"):
        load_papers([second])
    with pytest.raises(UsageError, match="has the same name"):
        load_papers([write_claims(tmp_path, read_example(), "painn-2021.yaml")])


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.yaml: No such file"):
        load_papers([tmp_path / "none.yaml"])


def test_claim_that_was_not_run_names_the_suite_to_run(tmp_path: Path) -> None:
    scores = {s.id: s for s in judge_folder(tmp_path, load_papers([write_claims(tmp_path, read_example())])).scores}
    assert scores["skipping-branches"].verdict == "not run"
    assert scores["skipping-branches"].reason.endswith("`harness run ladder` decides it")


def test_check_of_an_invalid_file_of_claims_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_claims(tmp_path, read_example().replace("table: ladder", "table: lader"))
    assert main(["check", "--out", "out", "--claims", str(path)]) == 2
    assert "unknown table 'lader' (did you mean 'ladder'?)" in capsys.readouterr().err


def list_files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_check_writes_nothing_and_draws_nothing(tmp_path: Path) -> None:
    write_run(tmp_path / "out")
    write_report(tmp_path / "out")
    before = list_files(tmp_path / "out")
    script = (
        "import sys; from harness.cli.main import main; code = main(['check', '--out', 'out']);"
        " assert code == 0, code; assert not {'matplotlib', 'jinja2', 'torch'} & set(sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert list_files(tmp_path / "out") == before


def test_check_needs_no_report(tmp_path: Path) -> None:
    write_run(tmp_path / "out", speedup=20.0)
    assert main(["check", "--out", "out"]) == 1
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["runs"]


def test_check_without_runs_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--out", "out"]) == 2
    assert "no run folders" in capsys.readouterr().err
