"""The examples, commands and links in the documentation work."""

from __future__ import annotations

import ast
import json
import re
import shlex
from pathlib import Path

import pytest

from harness.cli import main as cli
from harness.cli.main import main
from harness.reference.datasets import __main__ as data
from harness.reference.datasets.catalog import find_source
from tests.conftest import ROOT

PAGES = (
    "README.md",
    "GUIDE.md",
    "CONTRIBUTING.md",
    "suites/README.md",
    "systems/README.md",
    "reports/measured/README.md",
)


def read_example(page: str) -> str:
    """Return the YAML example of a page."""
    example = re.search(r"```yaml\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert example is not None
    return example[1]


def test_example_suite_has_every_key_and_expands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from harness.config.suite import Suite

    monkeypatch.chdir(tmp_path)
    (tmp_path / "example.yaml").write_text(read_example("suites/README.md"))
    assert main(["list", "example.yaml", "--system", "slurm"]) == 0
    names = capsys.readouterr().out.splitlines()
    assert len(names) == 2 * (3 * 2 * 2 - 2)
    assert main(["plan", "example.yaml"]) == 0
    text = read_example("suites/README.md")
    for key in set(Suite.model_fields) - {"description"} | {"overlays"}:
        assert re.search(rf"^{key}:", text, re.MULTILINE), f"the example does not show {key}"


def test_example_system_plans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "systems").mkdir()
    (tmp_path / "systems" / "mine.yaml").write_text(read_example("systems/README.md"))
    assert main(["plan", "scaling", "--system", "mine"]) == 0
    assert main(["run", "scaling", "--system", "mine"]) == 0
    assert "sbatch --account=ACCOUNT" in capsys.readouterr().out
    assert main(["run", "scaling", "--system", "mine", "--submit"]) == 2
    assert "needs the setting 'account'" in capsys.readouterr().err
    assert main(["run", "scaling", "--system", "mine", "-S", "account=abc"]) == 0


def test_example_of_a_pbs_site_writes_scripts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All cases of the scaling suite fit on its 16 nodes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "systems").mkdir()
    text = re.findall(r"```yaml\n(.*?)```", (ROOT / "systems" / "README.md").read_text(), re.DOTALL)[1]
    (tmp_path / "systems" / "ours.yaml").write_text(text)
    assert main(["run", "scaling", "--system", "ours"]) == 0
    assert "left out" not in capsys.readouterr().out
    scripts = list(tmp_path.rglob("jobs/*.sh"))
    assert scripts
    for script in scripts:
        assert re.search(r"^#PBS -l select=\d:ncpus=64:mpiprocs=4:ngpus=4$", script.read_text(), re.MULTILINE)


def test_first_cluster_example_is_run_by_ci() -> None:
    example = "python3 -m nox -s scaling -- --system aurora"
    [command] = re.findall(rf"`({example}[^`]*)`", (ROOT / "README.md").read_text())
    assert command == example
    assert example in (ROOT / ".ci" / "run").read_text().splitlines()


@pytest.mark.parametrize(
    ("scorecard", "row"),
    [
        ("reports/measured/scorecard.json", "the paper's stages, here"),
        ("reports/measured/laptop/scorecard.json", "the paper's stages, trained model of width 64 (the first command)"),
    ],
)
def test_speedups_in_the_readme_are_the_published_ones(scorecard: str, row: str) -> None:
    claims = {claim["id"]: claim for claim in json.loads((ROOT / scorecard).read_text())}
    cells = []
    for precision in ("fp64", "fp32"):
        claim = claims[f"ladder-speedup-{precision}"]
        value, low, high = (f"{claim[key]:.1f}" for key in ("measured_value", "ci_low", "ci_high"))
        cells.append(f"{value}x [{low}, {high}]")
    assert f"| {row} | {cells[0]} | {cells[1]} |" in (ROOT / "README.md").read_text().splitlines()


@pytest.mark.parametrize("page", PAGES)
def test_links_have_targets(page: str) -> None:
    """Linked files and headings exist."""
    links = re.findall(r"\]\((?!https?:)([^)\s]+)\)", (ROOT / page).read_text())
    for link in links:
        path, _, heading = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), f"{page}: {link}"
        if heading:
            titles = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in titles}, f"{page}: {link}"


def test_sessions_named_in_pages_exist() -> None:
    tree = ast.parse((ROOT / "noxfile.py").read_text())
    sessions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.decorator_list}
    mentioned = {name for page in PAGES for name in re.findall(r"nox -s (\w+)", (ROOT / page).read_text())}
    assert {"reproduce", "tests"} < mentioned <= sessions


def test_every_command_of_the_guide_is_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Commands that would run or submit jobs are only parsed and planned."""
    monkeypatch.chdir(tmp_path)
    lines = re.findall(r"^    harness (.*?)(?:\s+#.*)?$", (ROOT / "GUIDE.md").read_text(), re.MULTILINE)
    assert len(lines) >= 8
    for line in lines:
        argv = shlex.split(line)
        if argv[0] == "data":
            data.build_parser().parse_args(argv[1:])
            find_source(next((w for w in argv[2:] if w != "stores"), "ani1x"))
            continue
        if argv[0] == "run":
            argv = ["plan", *(w for w in argv[1:] if w not in ("--submit", "--wait"))]
        if argv[0] == "drill":
            argv.append("--list")
        if argv[0] in ("report", "check", "collect", "import", "promote", "compare", "artifact"):
            cli.build_parser()[0].parse_args(argv)
            continue
        assert main(argv) in (0, 3), line
    capsys.readouterr()


def test_each_part_of_the_quick_reproduction_has_cases() -> None:
    """`-n` selects by a part of a case's name, which changes when an axis gets another name."""
    tree = ast.parse((ROOT / "noxfile.py").read_text())
    (quick,) = (n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "QUICK")
    for name, *options in ast.literal_eval(quick):
        assert main(["plan", name, *options]) == 0, (name, options)
