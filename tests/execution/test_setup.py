"""`harness setup --run` creates an environment step by step, and continues after a failure."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.execution.setup_script import changes_shell, split_steps
from harness.protocol.errors import UsageError
from tests.conftest import ROOT

INSTALL = """\
  - python3 -m venv --without-pip "{folder}/env"
  - source "{folder}/env/bin/activate"
  - echo first >> {folder}/log
  - if [ -e {folder}/network ]; then
  - '    echo second >> {folder}/log'
  - else
  - '    exit 7'
  - fi
  - echo third >> {folder}/log
"""


@pytest.fixture
def system(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(f"name: mine\nextends: local\ntitle: Mine\ninstall:\n{INSTALL.format(folder=tmp_path)}")
    return path


def run_setup(system: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "harness", "setup", "--run", "--system", str(system)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_failing_step_is_named_and_the_next_run_continues_with_it(system: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    failed = run_setup(system)
    assert failed.returncode == 1
    assert failed.stderr == (
        f"error: step 4 of 5 failed with exit code 7: if [ -e {tmp_path}/network ]; then ...; run the command"
        " again to continue\n"
    )
    assert log.read_text() == "first\n"
    (tmp_path / "network").touch()
    done = run_setup(system)
    assert (done.returncode, done.stderr) == (0, "")
    assert "step 3 of 5 was completed earlier: echo first" in done.stdout
    assert log.read_text() == "first\nsecond\nthird\n"
    assert run_setup(system).stdout.count("was completed earlier") == 3
    assert log.read_text() == "first\nsecond\nthird\n"


def test_changed_step_and_all_later_ones_run_again(system: Path, tmp_path: Path) -> None:
    (tmp_path / "network").touch()
    assert run_setup(system).returncode == 0
    system.write_text(system.read_text().replace("echo second", "echo 2nd"))
    assert run_setup(system).returncode == 0
    assert (tmp_path / "log").read_text() == "first\nsecond\nthird\n2nd\nthird\n"


@pytest.mark.parametrize("change", ["removed", "moved", "of the shell"])
def test_steps_after_a_change_run_again(change: str, system: Path, tmp_path: Path) -> None:
    (tmp_path / "network").touch()
    first, third = f"  - echo first >> {tmp_path}/log\n", f"  - echo third >> {tmp_path}/log\n"
    original = system.read_text().replace(first, f"  - export LEVEL=1\n{first}")
    system.write_text(original)
    assert run_setup(system).returncode == 0
    changed = {
        "removed": original.replace(first, ""),
        "moved": original.replace(first, third).removesuffix(third) + first,
        "of the shell": original.replace("LEVEL=1", "LEVEL=2"),
    }[change]
    system.write_text(changed)
    assert run_setup(system).returncode == 0
    steps = [name for name in ("first", "second", "third") if f"echo {name}" in changed]
    expected = ["third", "second", "first"] if change == "moved" else steps
    assert (tmp_path / "log").read_text().split() == ["first", "second", "third", *expected]


def test_equal_steps_are_completed_separately(system: Path, tmp_path: Path) -> None:
    test = f"test -e {tmp_path}/network"
    text = system.read_text().replace(f"  - echo first >> {tmp_path}/log\n", f"  - {test}\n  - rm {tmp_path}/network\n")
    system.write_text(text.split("  - if")[0] + f"  - {test}\n")
    (tmp_path / "network").touch()
    assert run_setup(system).returncode == 1
    failed = run_setup(system)
    assert failed.returncode == 1
    assert "step 5 of 5 failed" in failed.stderr


def test_failed_step_runs_again_although_an_earlier_run_completed_it(system: Path, tmp_path: Path) -> None:
    network = tmp_path / "network"
    network.touch()
    original = system.read_text()
    assert run_setup(system).returncode == 0
    network.unlink()
    system.write_text(original.replace("echo first", "echo 1st"))
    assert run_setup(system).returncode == 1
    assert run_setup(system).returncode == 1  # the unchanged second step has not been completed after the new first one
    system.write_text(original)
    assert run_setup(system).returncode == 1
    network.touch()
    assert run_setup(system).returncode == 0
    assert (tmp_path / "log").read_text() == "first\nsecond\nthird\n1st\nfirst\nsecond\nthird\n"


def test_quoted_assignment_holds_for_later_steps_of_every_run(system: Path, tmp_path: Path) -> None:
    text = system.read_text().replace(f"  - echo first >> {tmp_path}/log\n", '  - NAMES="a b"\n')
    system.write_text(text.replace("echo third", 'echo "$NAMES"'))
    assert run_setup(system).returncode == 1
    (tmp_path / "network").touch()
    assert run_setup(system).returncode == 0
    assert (tmp_path / "log").read_text() == "second\na b\n"


@pytest.mark.parametrize(
    "step",
    ["x=$(echo set)", "x=set; export x", "x=(set)", "for x in set; do\n  true\ndone", "[ -d / ] && x=set", "x+=set"],
)
def test_change_of_the_shell_holds_for_later_steps_of_every_run(step: str, system: Path, tmp_path: Path) -> None:
    """Such a step is repeated when a later one has failed, although no rule names it."""
    lines = "".join(f"  - {json.dumps(line)}\n" for line in step.splitlines())
    text = system.read_text().replace(f"  - echo first >> {tmp_path}/log\n", lines)
    system.write_text(text.replace("echo third", 'echo "$x"'))
    assert run_setup(system).returncode == 1
    (tmp_path / "network").touch()
    assert run_setup(system).returncode == 0
    assert (tmp_path / "log").read_text() == "second\nset\n"


def test_path_below_the_checkout_is_no_installation_of_it(system: Path, tmp_path: Path) -> None:
    system.write_text(system.read_text().replace("echo first", f'echo "first of {ROOT}/.venv"'))
    (tmp_path / "network").touch()
    assert run_setup(system).returncode == 0
    assert run_setup(system).stdout.count("was completed earlier") == 3


def test_removed_environment_is_created_again(system: Path, tmp_path: Path) -> None:
    (tmp_path / "network").touch()
    assert run_setup(system).returncode == 0
    shutil.rmtree(tmp_path / "env")
    assert run_setup(system).returncode == 0
    assert (tmp_path / "log").read_text() == "first\nsecond\nthird\n" * 2


def test_checkout_is_installed_every_time(system: Path, tmp_path: Path) -> None:
    """Its files may have changed since the last run."""
    line = f'  - echo "installs {{{{ setup.package }}}}" >> {tmp_path}/log\n'
    text = system.read_text().replace(f"  - echo third >> {tmp_path}/log\n", "")
    system.write_text(text + line + f"  - echo packs >> {tmp_path}/log\n")
    (tmp_path / "network").touch()
    for _ in range(2):
        assert run_setup(system).returncode == 0
    last = f"installs {ROOT}\npacks\n"
    assert (tmp_path / "log").read_text() == f"first\nsecond\n{last}{last}"


def test_missing_setting_stops_before_the_first_step(system: Path) -> None:
    text = system.read_text().replace("--without-pip", '--without-pip --prompt "{{ settings.project }}"')
    system.write_text(text + "settings: {project: {help: the project, default: null}}\n")
    result = run_setup(system)
    assert result.returncode == 1
    assert "HARNESS_PROJECT: is not set: export it with the value of the setting project" in result.stderr
    assert "step" not in result.stdout + result.stderr


def test_lines_are_joined_to_complete_commands() -> None:
    lines = ["a=1", "if true; then", "  echo x", "fi", "for k in 1 2; do", "  echo $k", "done", "echo \\", "  y"]
    assert split_steps(lines) == ["a=1", "\n".join(lines[1:4]), "\n".join(lines[4:7]), "\n".join(lines[7:])]
    document = ["cat > file << EOF", "echo a line of the file", "EOF", "echo end"]
    assert split_steps(document) == ["\n".join(document[:3]), "echo end"]
    assert split_steps(["# a comment", "echo x", "  # another"]) == ["echo x"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["if true; then", "echo"], "from `if true; then` on: line 3: syntax error: unexpected end of file"),
        (["echo a", "fi", "echo b"], "from `fi` on: line 1: syntax error near unexpected token `fi'"),
        (["echo a", "echo b \\"], "from `echo b \\` on: the last line ends in a backslash"),
    ],
)
def test_error_in_bash_is_shown_with_its_reason(lines: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        split_steps(lines)


@pytest.mark.parametrize(
    "step",
    ["set -x", "alias a=b", "deactivate", "pushd x", "spack load hdf5", "micromamba activate e", "f() {\n  g\n}",
     "function f {\n  g\n}", "module load \\\n  cuda/12", "deactivate; echo", "a='b c'"],
)  # fmt: skip
def test_commands_that_change_the_shell_run_every_time(step: str) -> None:
    assert changes_shell(step)


@pytest.mark.parametrize("step", ["./configure", "settle", "pip install x", "if true; then\n  cd x\nfi", "a=b c"])
def test_other_commands_run_once(step: str) -> None:
    assert not changes_shell(step)
