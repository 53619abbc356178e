"""Scripts can be written while settings are missing, and read those in the job; submission requires all settings."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from harness.cli.main import main
from harness.config import system
from harness.protocol.programs.models import ModelDefinition
from tests.conftest import require_program
from tests.support.expected_errors import SUITE

SYSTEM = """\
name: site
extends: BASE
python: python3
modules: ["load {{ settings.tool }}"]
prepare: ["folder={{ settings.folder }}/x"]
stage_in: ["source '{{ settings.tool }}' \\"{{ settings.folder }}/bin\\""]
environment: {WHERE: "{{ settings.folder }}/y", SIZE: "{{ settings.count | int * 2 }}"}
directives: ["-A {{ settings.account }}", "{{ '-q ' ~ settings.queue if settings.queue == 'x' else '' }}", -k doe]
launch: ["run {{ settings.folder }} {{ case.ranks }}"]
install: ["make {{ settings.venv }}"]
telemetry: {collector: "{{ settings.collector }}", interval_s: "{{ settings.interval }}"}
chunk: {ncpus: "{{ settings.count }}", mpiprocs: 2}
settings:
  account: {help: who pays, default: null}
  queue: {help: where jobs go, NONE}
  folder: {help: "where it's `kept` for $5"}
  tool: {help: a module}
  count: {help: the number of cores}
  venv: {help: the environment}
  collector: {help: the telemetry collector}
  interval: {help: seconds between samples}
"""
NAMES = ("account", "queue", "folder", "tool", "count", "venv", "collector", "interval")


def write_files(folder: Path, base: str) -> None:
    directive = {"pbs": "-A {{", "slurm": "--account={{"}[base]
    text = SYSTEM.replace("BASE", base).replace("-A {{", directive)
    (folder / "site.yaml").write_text(text.replace(", NONE", ", default: null" if base == "pbs" else ""))
    (folder / "suite.yaml").write_text(SUITE)


def read_files(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (folder / "results" / "runs").rglob("*") if path.is_file()}


@pytest.fixture(autouse=True)
def _working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def test_run_without_settings_lists_the_missing_ones(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """`nox -s scaling -- --system aurora` runs the same command."""
    assert main(["run", "scaling", "--system", "aurora"]) == 0
    output = capsys.readouterr().out.splitlines()
    scripts = {name: text for name, text in read_files(tmp_path).items() if name.endswith(".sh")}
    assert len(scripts) == 8
    for text in scripts.values():
        assert not [line for line in text.splitlines() if line.startswith("#PBS -A")]
        assert "\n#PBS -q prod\n" in text
        assert "# To submit it by hand: `qsub -A ACCOUNT jobs/" in text
    user_file = tmp_path / "config" / "gfm-harness" / "settings.yaml"
    assert output == [
        "scaling-aurora: 16 not run",
        "before you submit, give these settings a value:",
        "  account (the project that is charged): -S account=..., HARNESS_ACCOUNT, or"
        f" `aurora: {{account: ...}}` in {user_file}",
        "to submit the jobs, and later to collect them, run the same command with -S account=... --submit",
        f"or by hand, one by one: qsub -A ACCOUNT {tmp_path}/results/runs/scaling-aurora/jobs/JOB.sh",
    ]


@pytest.mark.parametrize("base", ["pbs", "slurm"])
def test_scripts_with_missing_settings_pass_shellcheck(
    base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    require_program("shellcheck")
    write_files(tmp_path, base)
    assert main(["run", "suite.yaml", "--system", "site.yaml"]) == 0
    output = capsys.readouterr().out
    for name in NAMES:
        assert f"\n  {name} (" in output
    variables = ",".join(f"HARNESS_{name}={name}" for name in ("FOLDER", "TOOL", "COUNT", "COLLECTOR", "INTERVAL"))
    command = {"pbs": f"qsub -A ACCOUNT -v {variables}", "slurm": f"sbatch --account=ACCOUNT --export=ALL,{variables}"}[
        base
    ]
    assert f"or by hand, one by one: {command} {tmp_path}/results/runs/mine-site/jobs/JOB.sh" in output
    scripts = sorted((tmp_path / "results").rglob("jobs/*.sh"))
    assert len(scripts) == 2
    for script in scripts:
        lines = script.read_text().splitlines()
        directives = [line for line in lines if line.startswith(("#PBS", "#SBATCH"))]
        assert not [line for line in directives if "HARNESS" in line or "-q" in line or "ccount" in line]
        assert any(line.endswith("-k doe") for line in directives)
        assert any("mpiprocs=2" in line for line in directives) == (base == "pbs")
        assert "load ${HARNESS_TOOL}" in lines
        assert "folder=${HARNESS_FOLDER}/x" in lines
        assert 'export WHERE="${HARNESS_FOLDER}/y"' in lines
        assert 'export SIZE="${GFM_HARNESS_UNDECIDED:?write this script again with -S count=...}"' in lines
        assert lines.index("load ${HARNESS_TOOL}") > next(k for k, x in enumerate(lines) if "HARNESS_TOOL:?" in x)
        shellcheck = subprocess.run(
            ["shellcheck", "--shell=bash", "--exclude=SC2016,SC2086,SC2034,SC2154,SC1091,SC1090", str(script)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert shellcheck.returncode == 0, shellcheck.stdout


@pytest.mark.parametrize("args", [("plan",), ("run", "--dry-run"), ("list",)])
def test_planning_needs_no_settings(args: tuple[str, ...], tmp_path: Path) -> None:
    write_files(tmp_path, "pbs")
    assert main([args[0], "suite.yaml", *args[1:], "--system", "site.yaml"]) == 0
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("args", [("--submit",), ("--wait",)])
def test_submitting_requires_every_setting(
    args: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_files(tmp_path, "pbs")
    assert main(["run", "suite.yaml", "--system", "site.yaml", *args]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("'")[3] for line in lines] == list(NAMES)
    assert not (tmp_path / "results").exists()


def test_settings_that_do_not_affect_results_keep_the_names_of_cases(tmp_path: Path) -> None:
    write_files(tmp_path, "pbs")
    assert main(["run", "suite.yaml", "--system", "site.yaml"]) == 0
    before = read_files(tmp_path)
    options = [option for name in NAMES for option in ("-S", f"{name}=1")]
    options[options.index("collector=1")] = "collector=sampler"
    assert main(["run", "suite.yaml", "--system", "site.yaml", *options]) == 0
    after = read_files(tmp_path)
    assert before.keys() == after.keys()
    for name, text in after.items():
        assert not name.endswith(".sh") or ("#PBS -A 1\n" in text and ":ncpus=1:mpiprocs=2\n" in text)
        assert "HARNESS_FOLDER" not in text


def test_a_job_that_lacks_a_setting_ends_with_an_error_that_names_it(tmp_path: Path) -> None:
    write_files(tmp_path, "slurm")
    assert main(["run", "suite.yaml", "--system", "site.yaml"]) == 0
    script = next((tmp_path / "results").rglob("jobs/*.sh"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HARNESS_")}
    result = subprocess.run(
        ["bash", str(script)], env=environment | {"SLURM_JOB_ID": "7"}, capture_output=True, text=True, check=False
    )
    assert result.returncode != 0
    [line] = result.stderr.splitlines()
    assert line.endswith("HARNESS_FOLDER: is not set: export it with the value of the setting folder")


def test_setup_prints_commands_that_check_missing_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_files(tmp_path, "pbs")
    assert main(["setup", "--system", "site.yaml"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "make ${HARNESS_VENV}" in lines
    names = [line.split("HARNESS_")[1].split(":")[0] for line in lines if ":?" in line]
    assert names == ["TOOL", "VENV"]


def test_setup_names_the_papers_weights_and_a_definition_that_is_valid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_files(tmp_path, "pbs")
    assert main(["setup", "--system", "site.yaml"]) == 0
    text = capsys.readouterr().out
    assert "https://doi.org/10.13139/OLCF/2562660" in text
    definition = "\n".join(line[4:] for line in text.splitlines() if line.startswith("#   "))
    models = YAML(typ="safe").load(definition)
    assert ModelDefinition.model_validate(models["paper"]).hydragnn is not None


def test_a_suite_that_reads_a_missing_setting_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The parameters of a case must be known before its job runs."""
    write_files(tmp_path, "pbs")
    (tmp_path / "suite.yaml").write_text(SUITE + 'resources: {walltime_minutes: "{{ settings.count }}"}\n')
    assert main(["run", "suite.yaml", "--system", "site.yaml"]) == 2
    assert "the setting 'count' has no value (give -S count=...)" in capsys.readouterr().err


def test_ranks_per_node_requires_its_setting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "suite.yaml").write_text(SUITE)
    (tmp_path / "site.yaml").write_text(
        "name: site\nextends: slurm\nsettings: {ranks_per_node: null, each: {help: ranks}}\n"
        'node: {ranks_per_node: "{{ settings.each }}"}\n'
    )
    assert main(["run", "suite.yaml", "--system", "site.yaml"]) == 2
    assert "node.ranks_per_node: system 'site' needs the setting 'each' (ranks)" in capsys.readouterr().err


def test_chunk_is_rendered_for_pbs(tmp_path: Path) -> None:
    write_files(tmp_path, "pbs")
    path = tmp_path / "gpu.yaml"
    path.write_text("name: gpu\nextends: pbs\nchunk: {ngpus: 4, gpu_model: a100, mem: 64gb}\n")
    settings = {"ranks_per_node": "4", "threads": "2"}
    assert system.load_system(path, settings).chunk == ":ncpus=8:mpiprocs=4:ngpus=4:gpu_model=a100:mem=64gb"
    assert main(["run", "suite.yaml", "--system", "gpu.yaml", "-S", "ranks_per_node=4"]) == 0
    text = next((tmp_path / "results").rglob("jobs/*.sh")).read_text()
    assert "\n#PBS -l select=1:ncpus=4:mpiprocs=4:ngpus=4:gpu_model=a100:mem=64gb\n#PBS -l place=scatter:excl\n" in text


@pytest.mark.parametrize("base", ["pbs", "slurm", "frontier", "perlmutter", "aurora"])
def test_nodes_are_exclusive_unless_the_system_says_otherwise(base: str, tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(SUITE)
    for exclusive in ("true", "false"):
        (tmp_path / "site.yaml").write_text(f"name: site\nextends: {base}\nexclusive: {exclusive}\n")
        assert main(["run", "suite.yaml", "--system", "site.yaml", "--out", exclusive]) == 0
        scripts = list((tmp_path / exclusive).rglob("jobs/*.sh"))
        assert scripts
        for script in scripts:
            lines = script.read_text().splitlines()
            directives = [line for line in lines if line in ("#SBATCH --exclusive", "#PBS -l place=scatter:excl")]
            assert len(directives) == (exclusive == "true")
