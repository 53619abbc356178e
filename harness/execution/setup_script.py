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
# The end of the script: what to do with the environment next.
MODELS_HINT = """
# The paper's weights are "HydraGNN_Predictive_GFM_2026 - ensemble", https://doi.org/10.13139/OLCF/2562660: fetch a
# model's .pk file and config.json from there. These lines in models/paper.yaml compare it with other potentials
# (`harness run models`); with `gate: mlp_branch_weights.pt` in place of `head`, the gate weights all branches:
#   paper:
#     hydragnn: {checkpoint: MODEL.pk, config: config.json, head: MPTrj}
"""
# Commands that change the shell itself; every run repeats them.
SHELL_STATE = re.compile(
    r"(source|\.|module|ml|export|unset|set|shopt|declare|alias|cd|pushd|popd|umask|ulimit|eval|deactivate|spack load"
    r"|spack env activate|(conda|mamba|micromamba) (de)?activate|function)(?=[\s;&]|$)"
    r"|[A-Za-z_][\w-]*\s*\(\)"
    r"|[A-Za-z_]\w*=(\"[^\"]*\"|'[^']*'|\S*)$"
)
FUNCTION = re.compile(r"function\s|[\w-]+\s*\(\)")
# The file in the virtual environment that lists the completed steps.
STAMPS = "setup-steps"
# The stamp of a step is a digest of this step and all steps before it. The file lists the stamps of the completed steps
# that left the shell as it was: a step that it lists is skipped, and any other step first cuts the file down to the
# steps before it.
RUN_TEMPLATE = """\
set -eo pipefail
unset VIRTUAL_ENV
number=0 step='' completed=''
# shellcheck disable=SC2317  # run by the trap
report_failure() {{
    if [ "$1" -ne 0 ]; then
        echo "error: step $number of {count} failed with exit code $1: $step; run the command again to continue" >&2
    fi
}}
trap 'report_failure $?' EXIT
trap 'exit 130' INT
# describe_shell: print what later steps see, without what bash changes by itself.
own_variables='(_|BASH[A-Z_0-9]*|before|COLUMNS|LINES|LINENO|OLDPWD|PIPESTATUS|S?RANDOM|SECONDS|EPOCH[A-Z]*|FUNCNAME)'
describe_shell() {{
    declare -p | grep -Ev "^declare -[^ ]+ $own_variables="
    declare -f
    alias
    umask
}}
begin_step() {{
    echo "step $number of {count}: $step"
    before=$(describe_shell)
}}
write_stamps() {{ if [ -n "${{VIRTUAL_ENV:-}}" ]; then printf '%s' "$completed" > "$VIRTUAL_ENV/{stamps}"; fi; }}
# add_stamp STAMP: list the step as completed, unless it has changed the shell, which the next run has to repeat.
add_stamp() {{
    if [ "$(describe_shell)" = "$before" ]; then completed+="$1"$'\\n' && write_stamps; fi
}}
# needs_step STAMP: succeed unless the step was completed in this environment.
needs_step() {{
    if [ -n "${{VIRTUAL_ENV:-}}" ] && grep -Fqx "$1" "$VIRTUAL_ENV/{stamps}" 2> /dev/null; then
        echo "step $number of {count} was completed earlier: $step"
        completed+="$1"$'\\n'
        return 1
    fi
    write_stamps || exit 1
}}
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
        + MODELS_HINT
    )


def render_setup_run(system: ResolvedSystem) -> str:
    """Render the bash script that runs the setup step by step and skips steps that an earlier run completed.

    Completed steps are listed in the virtual environment. Three kinds of steps always run: those outside a virtual
    environment, including those in a conda environment; those that usually change the shell, or did; and the one that
    installs a checkout, whose files may have changed. After a step that has changed, moved or disappeared, and after
    the installation of the checkout, all later steps run too.
    """
    package, lines = _get_package(), _render_install(system)
    modules = system.render_section("modules")
    steps = split_steps([*modules, *lines])
    checks = system.render_setting_checks(("modules", "install"))
    parts = [*checks, RUN_TEMPLATE.format(count=len(steps), stamps=STAMPS)]
    stamp = ""
    for number, step in enumerate(steps, 1):
        first = step.partition("\n")[0] + (" ..." if "\n" in step else "")
        parts.append(f"number={number} step={shlex.quote(first)}")
        stamp = hashlib.sha256(f"{stamp}\n{step}".encode()).hexdigest()[:16]
        if changes_shell(step):
            parts.append(f"begin_step\n{step}")
        elif _installs_checkout(step, package):
            parts.append(f"begin_step\nwrite_stamps\n{step}")
        else:
            parts.append(f"if needs_step {stamp}; then\nbegin_step\n{step}\nadd_stamp {stamp}\nfi")
    return "\n".join(parts) + "\n"


def changes_shell(step: str) -> bool:
    """Return whether a command changes the shell for later ones; of several lines, only definitions of functions do."""
    command = step.replace("\\\n", " ")
    return bool(SHELL_STATE.match(command)) and ("\n" not in command or bool(FUNCTION.match(command)))


def split_steps(lines: Sequence[str]) -> list[str]:
    """Join lines into complete commands of bash, without comments.

    `if ...; fi` and here-documents may span several lines.

    Raises:
        UsageError: The lines are not valid bash.
    """
    steps: list[str] = []
    pending: list[str] = []
    message = ""
    environment = os.environ | {"LC_ALL": "C"}
    for line in lines:
        if not pending and line.lstrip().startswith("#"):
            continue
        pending.append(line)
        command = "\n".join(pending)
        check = subprocess.run(
            ["bash", "-n"], input=command, text=True, capture_output=True, check=False, env=environment
        )
        message = check.stderr.partition("\n")[0].removeprefix("bash: ")
        is_complete = check.returncode == 0 and "here-document" not in check.stderr  # bash only warns about these
        if is_complete and not command.endswith("\\"):
            steps.append(command)
            pending = []
    if pending:
        reason = message or "the last line ends in a backslash"
        raise UsageError(f"the `modules` and `install` lines are not valid bash from `{pending[0]}` on: {reason}")
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
