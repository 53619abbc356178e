"""A user's experiment is planned, run and reported; a mistake in it gives one line with its location."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.experiments.experiment import Experiment
from harness.protocol.errors import UsageError
from tests.conftest import Harness

EXAMPLE = Path(__file__).parent / "user_folder"


@pytest.fixture
def user_folder(tmp_path: Path) -> Path:
    """Copy the example into the current folder of the `harness` fixture."""
    shutil.copytree(EXAMPLE, tmp_path, dirs_exist_ok=True)
    return tmp_path


def replace_text(file: Path, before: str, after: str) -> None:
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after))


def test_users_experiment_is_planned_run_and_reported(user_folder: Path, harness: Harness) -> None:
    plan = harness("plan", "sorting")
    assert plan.returncode == 0, plan.stderr
    assert "2 cases" in plan.stdout
    run = harness("run", "sorting", "-q")
    assert run.returncode == 0, run.stderr
    table = pd.read_csv(user_folder / "results/tables/sorting.csv")
    assert table["size"].tolist() == [1000, 20000]
    assert (table["samples"] == 8).all()
    assert (table["per_s"] > 0).all()
    page = (user_folder / "results/sorting.html").read_text()
    assert "How fast numbers are sorted" in page
    assert 'href="tables/sorting.csv"' in page
    index = (user_folder / "results/index.html").read_text()
    assert 'href="sorting.html"' in index
    costs = pd.read_csv(user_folder / "results/tables/cost_cases.csv").set_index("case")
    assert sorted(costs["work_units"]) == [8000, 160000]
    assert set(costs["work_unit"]) == {"number"}
    compared = harness("compare", "results@size=1000", "results@size=20000")
    assert "sorting rate" in compared.stdout, compared.stdout + compared.stderr


def test_report_is_written_after_each_suite(user_folder: Path, harness: Harness) -> None:
    suites = user_folder / "suites"
    (suites / "later.yaml").write_text((suites / "sorting.yaml").read_text().replace("name: sorting", "name: later"))
    has_report = '(folder / "has_report").write_text(str((folder.parents[2] / "index.html").exists()))'
    replace_text(user_folder / "experiments/sorting/program.py", "del folder", has_report)
    result = harness("run", "sorting", "later", "-n", "size_1000", "-q")
    assert result.returncode == 0, result.stderr
    answers = {path.parents[1].name: path.read_text() for path in (user_folder / "results").rglob("has_report")}
    assert answers == {"sorting-local": "False", "later-local": "True"}
    assert result.stdout.count((user_folder / "results" / "index.html").as_uri()) == 1


@pytest.mark.parametrize(
    ("file", "before", "after", "message"),
    [
        ("metrics", "list_metric_samples", "sample_metrics",
         "the function 'sample_metrics' is now called 'list_metric_samples'"),
        ("metrics", "count_work", "count_works",
         "the harness does not call 'count_works' (did you mean 'count_work'? Otherwise begin its name with an"
         " underscore)"),
        ("page", "build_sections", "build_section",
         "the harness does not call 'build_section' (did you mean 'build_sections'? Otherwise begin its name with an"
         " underscore)"),
        ("metrics", "list_rates", "count_rates", ""),
    ],
)  # fmt: skip
def test_function_that_the_harness_would_not_call_is_refused(
    user_folder: Path, monkeypatch: pytest.MonkeyPatch, file: str, before: str, after: str, message: str
) -> None:
    package = f"lab_{after}"
    (user_folder / "experiments/sorting").rename(user_folder / package)
    replace_text(user_folder / package / f"{file}.py", before, after)
    monkeypatch.syspath_prepend(user_folder)
    experiment = Experiment(package=package, title="Sorting", programs=("sorting",))
    expected: Any = pytest.raises(UsageError, match=re.escape(f"{file}.py: {message}")) if message else nullcontext()
    with expected:
        _ = experiment.metrics if file == "metrics" else experiment.page_module


def test_job_script_exports_the_folder_of_experiments(user_folder: Path, harness: Harness) -> None:
    """The job finds the program wherever and whenever it runs."""
    result = harness("run", "sorting", "--system", "slurm", "-q")
    assert result.returncode in (0, 3), result.stderr
    (script, *_) = (user_folder / "results/runs/sorting-slurm/jobs").glob("*.sh")
    assert re.search(rf'^export GFM_HARNESS_EXPERIMENTS="?{re.escape(str(user_folder / "experiments"))}"?$',
                     script.read_text(), re.MULTILINE)  # fmt: skip


@pytest.mark.parametrize(
    ("file", "before", "after", "command", "message"),
    [
        ("metrics.py", '"samples": rate.n', '"smaples": rate.n', "report",
         "error: table sorting: no column 'smaples' (did you mean 'samples'?)"),
        ("program.py", "class Parameters(", "class Settings(", "plan",
         "program.py: no class Parameters derived from harness.protocol.parameters.Parameters"),
        ("program.py", "import random", "import randomness", "plan",
         "program.py: cannot be imported: ModuleNotFoundError: No module named 'randomness'"),
        ("__init__.py", 'title="Sorting"', 'title="Sorting", page="ladder"', "report",
         "__init__.py: the report already has a page named 'ladder'; choose another name"),
    ],
)  # fmt: skip
def test_mistake_in_experiment_is_an_error_of_one_line(
    user_folder: Path, harness: Harness, file: str, before: str, after: str, command: str, message: str
) -> None:
    if command == "report":
        assert harness("run", "sorting", "-q", "-n", "1000").returncode == 0
    replace_text(user_folder / "experiments/sorting" / file, before, after)
    result = harness(command, *(["sorting"] if command == "plan" else []))
    assert result.returncode == 2
    assert result.stderr.rstrip().endswith(message)
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("seconds=time.perf_counter() - start", "seconds=str(start)", "sample: seconds is"),
        ("seconds=time.perf_counter() - start", "second=start", "Unexpected keyword argument 'second' (program.py:"),
    ],
)
def test_event_that_does_not_fit_its_type_fails_the_case(
    user_folder: Path, harness: Harness, before: str, after: str, message: str
) -> None:
    replace_text(user_folder / "experiments/sorting/program.py", before, after)
    result = harness("run", "sorting", "-q", "-n", "1000")
    assert result.returncode == 3
    (log,) = user_folder.glob("results/runs/sorting-local/*/events.jsonl")
    assert message in log.read_text()


def test_log_that_does_not_fit_the_types_is_reported_with_its_line(user_folder: Path, harness: Harness) -> None:
    assert harness("run", "sorting", "-q", "-n", "1000").returncode == 0
    (log,) = user_folder.glob("results/runs/sorting-local/*/events.jsonl")
    log.write_text(log.read_text().replace('"seconds"', '"secnds"', 1))
    assert "events.jsonl:2: sample: unknown field 'secnds' (did you mean 'seconds'?)" in harness("report").stdout


def test_misspelt_column_is_shown_on_the_page(user_folder: Path, harness: Harness) -> None:
    replace_text(user_folder / "experiments/sorting/page.py", 'number_cell("size", ",")', 'number_cell("siez", ",")')
    result = harness("run", "sorting", "-q", "-n", "1000")
    assert result.returncode == 1
    assert re.search(r"error: results/sorting.html: .*no column 'siez'.*\(sorting/page.py:\d+\)", result.stderr)
    page = (user_folder / "results/sorting.html").read_text()
    assert "table sorting: no column &#39;siez&#39; (did you mean &#39;size&#39;?)" in page


def test_name_of_a_shipped_program_is_refused(user_folder: Path, harness: Harness) -> None:
    (user_folder / "experiments/sorting").rename(user_folder / "experiments/ladder")
    result = harness("plan", "ladder")
    assert result.returncode == 2
    assert "experiments/ladder: the harness has a program named 'ladder'; rename the folder" in result.stderr


def test_folder_without_experiment_is_not_imported(tmp_path: Path, harness: Harness) -> None:
    """A folder that happens to be called experiments is not executed."""
    (tmp_path / "experiments/other").mkdir(parents=True)
    (tmp_path / "experiments/other/__init__.py").write_text("raise SystemExit(7)\n")
    assert harness("plan", "ladder").returncode == 0


def test_planning_loads_neither_pandas_nor_matplotlib(user_folder: Path) -> None:
    script = (
        "import sys; from harness.cli.main import main; code = main(['plan', 'sorting']);"
        " sys.exit(code or bool({'pandas', 'matplotlib', 'torch'} & sys.modules.keys()))"
    )
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": ""}
    subprocess.run([sys.executable, "-c", script], cwd=user_folder, env=environment, check=True, capture_output=True)
