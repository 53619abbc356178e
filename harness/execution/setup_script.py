"""The script that creates the Python environment of a system's jobs, which `harness setup` prints or runs."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import subprocess
from collections.abc import Sequence

from harness import __version__
from harness.config import resources
from harness.config.system import ResolvedSystem
from harness.protocol.errors import UsageError

SETUP_TEMPLATE = """\
#!/usr/bin/env bash
# Creates the Python environment of gfm-harness {version} on {title}; run this script once, on a login node.
# {source}
# shellcheck disable=SC1091
set -eo pipefail
"""
SETUP_END = """
# The paper's weights are "HydraGNN_Predictive_GFM_2026 - ensemble", https://doi.org/10.13139/OLCF/2562660: fetch a
# model's .pk file and config.json from there. These lines in models/paper.yaml compare it with other potentials
# (`harness run models`); with `gate: mlp_branch_weights.pt` in place of `head`, the gate weights all branches:
#   paper:
#     hydragnn: {checkpoint: MODEL.pk, config: config.json, head: MPTrj}
"""
# Commands that change the shell itself; every run repeats them.
SHELL_STATE = re.compile(
    r"(source|\.|module|ml|export|unset|cd|umask|ulimit|eval|conda activate)\s|[A-Za-z_]\w*=(?:\"[^\"]*\"|'[^']*'|\S*)$"
)
# The file in the virtual environment that lists the completed steps.
STAMPS = "setup-steps"
RUN_TEMPLATE = """\
set -eo pipefail
unset VIRTUAL_ENV
number=0 step='' is_new='' completed=''
# shellcheck disable=SC2317  # run by the trap
report() {{
    if [ "$1" -ne 0 ]; then
        echo "error: step $number of {count} failed with exit code $1: $step; run the command again to continue" >&2
    fi
}}
trap 'report $?' EXIT
trap 'exit 130' INT
# needs STAMP: succeed if the step has not been completed in this environment, or if an earlier step has run now.
needs() {{
    if [ -z "${{VIRTUAL_ENV:-}}" ]; then return; fi
    if [ -z "$is_new" ] && grep -Fqx "$1" "$VIRTUAL_ENV/{stamps}" 2> /dev/null; then
        echo "step $number of {count} was completed earlier: $step"
        completed+="$1"$'\\n'
        return 1
    fi
    renew
}}
begin() {{ echo "step $number of {count}: $step"; }}
save() {{ if [ -n "${{VIRTUAL_ENV:-}}" ]; then printf '%s' "$completed" > "$VIRTUAL_ENV/{stamps}"; fi; }}
# renew: run all later steps, also in a later run if one of them fails now.
renew() {{ is_new=yes && save; }}
stamp() {{ completed+="$1"$'\\n' && save; }}
"""


def render_setup_script(system: ResolvedSystem) -> str:
    """Render the bash script that creates the Python environment of a system's jobs.

    Raises:
        UsageError: the system's file has no `install` lines.
    """
    lines = _render_install(system)
    source = (
        f"See {system.definition.source}"
        if system.definition.source
        else "From the system's `modules` and `install` lines."
    )
    head = SETUP_TEMPLATE.format(version=__version__, title=system.definition.title, source=source)
    return (
        "\n".join(
            [head, *system.render_setting_checks(("modules", "install")), *system.render_section("modules"), *lines]
        )
        + "\n"
        + SETUP_END
    )


def render_setup_run(system: ResolvedSystem) -> str:
    """Render the bash script that runs the setup step by step and skips steps that an earlier run completed.

    Completed steps are listed in the virtual environment. Three kinds of steps always run: those outside a virtual
    environment, including those in a conda environment; those that change the shell; and the one that installs a
    checkout, whose files may have changed. After a step that no earlier run completed, and after the installation of
    the checkout, all later steps run too.
    """
    package, lines = _get_package(), _render_install(system)
    modules = system.render_section("modules")
    steps = split_steps([*modules, *lines])
    checks = system.render_setting_checks(("modules", "install"))
    parts = [*checks, RUN_TEMPLATE.format(count=len(steps), stamps=STAMPS)]
    for number, step in enumerate(steps, 1):
        first = step.partition("\n")[0] + (" ..." if "\n" in step else "")
        parts.append(f"number={number} step={shlex.quote(first)}")
        digest = hashlib.sha256(step.encode()).hexdigest()[:16]
        if SHELL_STATE.match(step) and "\n" not in step:
            parts.append(f"begin\n{step}")
        elif _installs_checkout(step, package):
            parts.append(f"begin\nrenew\n{step}")
        else:
            parts.append(f"if needs {digest}; then\nbegin\n{step}\nstamp {digest}\nfi")
    return "\n".join(parts) + "\n"


def split_steps(lines: Sequence[str]) -> list[str]:
    """Join lines into complete commands of bash; `if ...; fi` and here-documents may span several lines."""
    steps: list[str] = []
    pending: list[str] = []
    environment = os.environ | {"LC_ALL": "C"}
    for line in lines:
        pending.append(line)
        command = "\n".join(pending)
        check = subprocess.run(
            ["bash", "-n"], input=command, text=True, capture_output=True, check=False, env=environment
        )
        is_complete = check.returncode == 0 and "here-document" not in check.stderr  # bash only warns about these
        if is_complete and not command.endswith("\\"):
            steps.append(command)
            pending = []
    if pending:
        raise UsageError(f"the `modules` and `install` lines end in an incomplete bash command: {pending[0]}")
    return steps


def _get_package() -> str:
    """Return what pip installs: this checkout, or this version."""
    is_checkout = (resources.REPO_ROOT / "pyproject.toml").is_file()
    return str(resources.REPO_ROOT) if is_checkout else f"gfm-harness=={__version__}"


def _installs_checkout(step: str, package: str) -> bool:
    """Return whether a step names the checkout itself, not a path below it."""
    return package == str(resources.REPO_ROOT) and bool(re.search(rf"{re.escape(package)}(?![\w./-])", step))


def _render_install(system: ResolvedSystem) -> list[str]:
    lines = system.render_section("install", setup={"package": _get_package()})
    if not lines:
        raise UsageError(
            f"system {system.definition.name!r} has no `install` lines, so its environment cannot be set up; add the"
            " commands that create it to the system's file"
        )
    return lines
