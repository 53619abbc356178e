"""An artifact describes what ran, proves what it says, and gives the same report as the run folders."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ruamel.yaml import YAML

from harness.artifact import crate, metadata
from harness.artifact.appendix import build_artifacts, escape_latex, format_minutes
from harness.artifact.checklist import load_checklist
from harness.cli.main import main
from harness.host.environment import ENVIRONMENT_FILE
from harness.results.bundles import verify_bundle
from harness.results.checksums import MANIFEST
from harness.results.runs import RunRecord
from tests.conftest import ROOT
from tests.support.published_results import OLDER, copy_case, stop_drawing, unpack_results

LADDER = "ladder-local/ladder-crystals-fp32-4ba82fe5bf"
TRANSFER = "transfer-local/transfer-qm9-199717ed4d"
AUTHOR = ("--author", "Ada Lovelace", "--organization", "Engines", "--url", "https://example.org/")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a results folder of three cases: one with an environment, one that failed, and one without either."""
    out = tmp_path_factory.mktemp("results")
    for name in (LADDER, TRANSFER):
        copy_case(OLDER, name, out / "runs" / Path(name).parent)
    environment = {"python_packages": {"numpy": "2"}, "cpu": {"governor": "performance"}}
    (out / "runs" / LADDER / ENVIRONMENT_FILE).write_text(json.dumps(environment))
    failed = out / "runs" / "transfer-local" / "transfer-failed"
    shutil.copytree(out / "runs" / TRANSFER, failed)
    (failed / "exit_code").write_text("3 12\n")
    return out


@pytest.fixture(scope="module")
def bundle(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an artifact of these results."""
    path = tmp_path_factory.mktemp("artifact") / "bundle"
    assert main(["artifact", str(path), "--out", str(results), "--license", "CC0-1.0", *AUTHOR]) == 0
    return path


def read_graph(bundle: Path) -> list[dict[str, Any]]:
    return list(json.loads((bundle / "ro-crate-metadata.json").read_text())["@graph"])


def test_crate_has_an_action_for_each_case(bundle: Path) -> None:
    graph = read_graph(bundle)
    entities = {entity["@id"]: entity for entity in graph}
    assert len(entities) == len(graph)
    actions = {entity["@id"]: entity for entity in graph if entity["@type"] == "CreateAction"}
    assert len(actions) == 3
    done, failed = actions[f"#{LADDER}"], actions["#transfer-local/transfer-failed"]
    assert done["actionStatus"].endswith("/CompletedActionStatus")
    assert "error" not in done
    assert failed["actionStatus"].endswith("/FailedActionStatus")
    assert failed["error"] == "exit code 3"
    assert done["startTime"] < done["endTime"]
    assert done["object"] == {"@id": f"runs/{LADDER}/case.json"}
    assert {"@id": f"runs/{LADDER}/events.jsonl"} in done["result"]
    assert {"@id": f"runs/{LADDER}/{ENVIRONMENT_FILE}"} in done["result"]
    commit = json.loads((bundle / "runs" / LADDER / "provenance.json").read_text())["commit"]
    assert entities[done["instrument"]["@id"]]["identifier"] == f"swh:1:rev:{commit}"
    assert entities[done["agent"]["@id"]]["name"] == "Ada Lovelace"
    files = {str(p.relative_to(bundle)) for p in bundle.rglob("*") if p.is_file()}
    described = {entity["@id"] for entity in graph if entity["@type"] == "File"}
    assert described == files - {"ro-crate-metadata.json", MANIFEST, "line-checksums.txt"}
    for entity in graph:
        for reference in re.findall(r"'@id': '([^']+)'", str({k: v for k, v in entity.items() if k != "@id"})):
            assert reference in entities or reference.startswith("https://w3id.org/"), reference


def test_citation_names_author_licence_and_commit(bundle: Path) -> None:
    citation = YAML(typ="safe").load((bundle / "CITATION.cff").read_text())
    assert citation["authors"] == [{"name": "Ada Lovelace"}]
    assert (citation["cff-version"], citation["type"], citation["license"]) == ("1.2.0", "dataset", "CC0-1.0")
    codemeta = json.loads((bundle / "codemeta.json").read_text())
    assert codemeta["identifier"] == [row["value"] for row in citation["identifiers"]]


def test_appendix_has_measured_times_and_says_what_is_not_recorded(bundle: Path) -> None:
    text = (bundle / "appendix.md").read_text()
    ladder, transfer = text.split("### A1: ")[1], text.split("### A2: ")[1]
    seconds = float((bundle / "runs" / LADDER / "exit_code").read_text().split()[1])
    assert f"| artifact execution | {format_minutes(seconds / 60)} for 1 of 1 cases" in ladder
    assert f"`runs/{LADDER}/{ENVIRONMENT_FILE}`" in ladder
    assert "2 cases, 1 of them done" in transfer
    assert "processor flags and affinity were not recorded" in transfer
    scores = json.loads((bundle / "scorecard.json").read_text())
    statements = [s["statement"] for s in scores if s["evidence"]]
    assert statements
    rows = re.findall(r"^\| C\d+ \| (.*?) \|", text, re.MULTILINE)
    assert rows == statements
    sections = [
        "Relation To Contributions", "Expected Results", "Expected Reproduction Time (in Minutes)",
        "Artifact Setup (incl.\\ Inputs)", "Artifact Execution", "Artifact Analysis (incl.\\ Outputs)",
    ]  # fmt: skip
    latex = (bundle / "appendix.tex").read_text()
    for section in sections:
        assert latex.count(section) >= 2, section


def test_answers_of_the_checklist_are_the_lines_that_they_name(bundle: Path) -> None:
    text = (bundle / "checklist.md").read_text()
    rows = re.findall(r"^\| \d+\. .* \| (yes|no) \| (.*) \|$", text, re.MULTILINE)
    n_items = sum(len(section.items) for section in load_checklist().sections)
    assert len(rows) == n_items == 51
    proven = [row for answer, row in rows if answer == "yes"]
    assert text.count("## ") == 9
    assert f"{len(proven)} of 51 items have evidence" in text
    assert len(proven) >= 40
    patterns = [p for section in load_checklist().sections for item in section.items for p in item.evidence.values()]
    for row in proven:
        name, line = re.fullmatch(r"\[.*?:(\d+)\]\((.*)\)", row).group(2, 1)  # type: ignore[union-attr]
        proof = (bundle / name).read_text().splitlines()[int(line) - 1]
        assert any(re.search(pattern, proof) for pattern in patterns if pattern), row


def test_item_without_evidence_is_answered_with_no(results: Path, tmp_path: Path) -> None:
    """Without the environment of its only case that has one, the firmware's settings are not proven."""
    out = tmp_path / "results"
    shutil.copytree(results, out)
    (out / "runs" / LADDER / ENVIRONMENT_FILE).unlink()
    assert main(["artifact", str(tmp_path / "bundle"), "--out", str(out), *AUTHOR]) == 0
    row = "| 4. settings of firmware and power that affect results | no | no job recorded them"
    assert row in (tmp_path / "bundle" / "checklist.md").read_text()


def test_report_of_a_bundle_equals_that_of_its_run_folders(
    results: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_drawing(monkeypatch)
    original, copy = tmp_path / "original", tmp_path / "copy"
    shutil.copytree(results / "runs", original / "runs")
    assert main(["report", "--out", str(original)]) == 0
    assert main(["report", str(bundle), "--out", str(copy)]) == 0
    names = {str(p.relative_to(original)) for p in original.rglob("*") if p.is_file()}
    assert names == {str(p.relative_to(copy)) for p in copy.rglob("*") if p.is_file()}
    differing = 0
    for name in names - {"history.jsonl"}:
        lines = [(folder / name).read_text().replace(str(folder), "OUT").splitlines() for folder in (original, copy)]
        pairs = [(a, b) for a, b in zip(*lines, strict=True) if a != b]
        differing += len(pairs)
        for a, b in pairs:
            assert re.sub(r", unpacked from bundle", "", b) == re.sub(r"\d\d:\d\d UTC", b[b.index(" UTC") - 5 :][:9], a)
    assert differing == 2  # in index.html and report.md


def test_equal_results_give_equal_bundles(results: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert main(["artifact", str(tmp_path / f"{name}.tar.xz"), "--out", str(results), *AUTHOR]) == 0
    assert (tmp_path / "one.tar.xz").read_bytes() == (tmp_path / "two.tar.xz").read_bytes()
    assert verify_bundle(tmp_path / "one.tar.xz").problems == []


def test_bad_input_gives_one_line(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.artifact.build.read_git_archive", lambda folder, commit: None)
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    for arguments, message in (
        ((str(tmp_path / "b"), "--out", str(tmp_path / "none")), "no run folders to pack"),
        ((str(tmp_path / "file"), "--out", str(results)), "is a file; expected a new folder"),
        ((str(tmp_path / "full"), "--out", str(results)), "the folder is not empty"),
        ((str(tmp_path / "b"), "--out", str(results), "--source"), "is not a clone that contains the commit"),
    ):
        assert main(["artifact", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


WITHOUT_TORCH = """\
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError(name)

sys.meta_path.insert(0, Blocker())
from harness.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_artifact_needs_no_torch(bundle: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, "artifact", str(tmp_path / "b"), "--out", str(bundle), *AUTHOR]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


def test_repository_is_named_without_the_token_of_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """CI clones with addresses that contain a token, and a bundle is public."""
    for remote, url in (
        ("https://oauth2:SECRET@example.org:8443/gfm.git", "https://example.org:8443/gfm"),
        ("git@example.org:gfm.git", "https://archive.softwareheritage.org/swh:1:rev:abc"),
    ):
        monkeypatch.setattr(metadata, "run_git", lambda *_, remote=remote: remote)
        assert metadata.find_repository_url.__wrapped__("abc") == url


def test_commits_of_one_version_are_separate_applications(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crate, "find_repository_url", lambda commit: "https://example.org/gfm")
    records = [SimpleNamespace(provenance={"harness": "1.0", "commit": commit}) for commit in ("abc", "def")]
    applications = [crate.build_application(cast(RunRecord, record)) for record in records]
    assert len({application["@id"] for application in applications}) == 2


def test_name_of_a_file_becomes_a_uri() -> None:
    assert crate.build_file("runs/a b/\N{GREEK SMALL LETTER MU}.json", 1)["@id"] == "runs/a%20b/%CE%BC.json"


def test_minutes_are_rounded_up() -> None:
    assert [format_minutes(m) for m in (None, 1.1, 1.11, 9.99, 10.2)] == ["not recorded", "1.1", "1.2", "10.0", "11"]


@pytest.mark.parametrize("text", ['50% & $x_1$ #2 {a} \\b ~ ^ <c> | "q"', "\\input{/etc/passwd}", "\N{SNOWMAN} Å ü"])
def test_latex_reads_no_command_in_text(text: str) -> None:
    escaped = escape_latex(text)
    for command in re.findall(r"\\[A-Za-z]+", escaped):
        assert command in {
            "\\textbackslash", "\\textasciitilde", "\\textasciicircum", "\\textless", "\\textgreater", "\\textbar",
            "\\textquotedbl", "\\allowbreak",
        }  # fmt: skip
    assert not re.search(r"(?<!\\)[%&$#_]", escaped)


LETTERS = "\u0218tefan M\u00fcller \u2014 \u201cx\u201d \u22125 \u2264 \u03c3 \u039b e\u0301 \u1ec7 \u2603 \u03d1"
IN_LATEX = "\\textcommabelow{S}tefan M\u00fcller --- ``x'' $-$5 $\\le$ $\\sigma$ $\\Lambda$ \u00e9 \\^{\\d{e}} ? ?"


def test_artifact_of_two_programs_has_the_pages_of_both(tmp_path: Path) -> None:
    records = [
        RunRecord(str(tmp_path / "a" / name), {"program": name}, "done") for name in ("train", "transfer", "train")
    ]
    (artifact,) = build_artifacts(records, tmp_path)
    assert [file for file, _ in artifact.pages] == ["training.html", "transfer.html"]


def test_latex_has_the_letters_of_names_and_the_signs_of_titles() -> None:
    assert escape_latex(LETTERS).replace(r"\allowbreak{}", "") == IN_LATEX


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_of_a_published_result_compiles(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    author = ("--author", LETTERS, *AUTHOR[2:])
    assert main(["artifact", str(bundle), "--out", str(unpack_results(OLDER)), *author]) == 0
    options = ("-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", f"-output-directory={tmp_path}")
    log = subprocess.run(
        ["pdflatex", *options, str(bundle / "appendix.tex")], check=False, capture_output=True, text=True, cwd=tmp_path
    ).stdout
    assert "Output written on" in log, log[-2000:]
    assert "Overfull" not in log


@pytest.mark.slow
def test_validator_finds_no_required_or_recommended_issue(bundle: Path, tmp_path: Path) -> None:
    target = tmp_path / "packages"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(target), "roc-validator==0.13.0"],
        check=True,
    )
    script = ROOT / "tests" / "artifact" / "validate_crate.py"
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(target)}

    def validate() -> list[str]:
        command = [sys.executable, str(script), str(bundle)]
        output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
        return output.strip().splitlines()

    *issues, checks = validate()
    assert issues == []
    assert int(checks.split()[0]) >= 100
    metadata = bundle / "ro-crate-metadata.json"
    original = metadata.read_text()
    metadata.write_text(original.replace('"instrument"', '"unknown"'))
    try:
        assert any("MUST have an instrument" in issue for issue in validate())
    finally:
        metadata.write_text(original)
