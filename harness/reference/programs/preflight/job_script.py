"""The modules, the variables and the launch command of a case in the script of its job."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from harness.host.launch_line import LaunchLine, parse_launch_line

JOB_SCRIPT = "job.sh"
LAUNCH = re.compile(r'^run_case (\S+) .*?\\\n(.*?)"\$python" -P -m harness\.reference', re.MULTILINE | re.DOTALL)
EXPORT = re.compile(r"^export (.+)$", re.MULTILINE)
VARIABLE = re.compile(r"([A-Za-z_]\w*)=([^$`(]*)")
MODULE = re.compile(r"^(module|ml) +((?:(?! \d?>)[^#;&|>\n])+)", re.MULTILINE)
LOAD, UNLOAD = ("load", "add"), ("unload", "rm", "del")
# Commands of `ml` that neither load nor unload the modules that follow.
ML_OTHER = (
    "avail", "help", "key", "keyword", "list", "purge", "refresh", "reset", "restore", "save", "show", "spider", "swap",
    "switch", "unuse", "update", "use", "whatis",
)  # fmt: skip


@dataclass(frozen=True)
class JobScript:
    """The content of a job script that concerns one case.

    Attributes:
        modules: Modules that the script loads, as it names them.
        unloaded_modules: Modules that the script unloads.
        variables: Exported variables whose values the script contains literally.
        launch: The launch command of the case, or None if no known launcher starts it.
    """

    modules: tuple[str, ...]
    unloaded_modules: tuple[str, ...]
    variables: dict[str, str]
    launch: LaunchLine | None


def read_job_script(case_folder: Path) -> JobScript | None:
    """Return the content of the script in the folder of a case; None if no script has started the case."""
    try:
        text = (case_folder / JOB_SCRIPT).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return parse_job_script(text, case_folder.resolve().name)


def parse_job_script(text: str, case: str) -> JobScript:
    """Return the modules and variables of a job script, and the launch command of one of its cases."""
    modules = _read_modules(text)
    words = [word for line in EXPORT.findall(text) for word in _split_export(line)]
    variables = {match[1]: match[2] for word in words if (match := VARIABLE.fullmatch(word))}
    launch = next((lines for name, lines in LAUNCH.findall(text) if name == case), "")
    return JobScript(
        tuple(name for name, is_loaded in modules.items() if is_loaded),
        tuple(name for name, is_loaded in modules.items() if not is_loaded),
        variables,
        parse_launch_line(launch.replace("\\\n", " ")),
    )


def _read_modules(text: str) -> dict[str, bool]:
    """Return for each module that a script names whether it loads it; the last command counts."""
    modules = {}
    for tool, arguments in MODULE.findall(text):
        command, *names = arguments.replace('"', "").replace("'", "").split() or [""]
        if tool == "ml" and command not in (*LOAD, *UNLOAD, *ML_OTHER, ""):
            command, names = "load", [command, *names]
        if command in (*LOAD, *UNLOAD):
            for name in names:  # `ml -NAME` unloads a module
                is_unloaded = command in UNLOAD or name.startswith("-")
                if not name.startswith(("--", "$")):
                    modules[name.removeprefix("-")] = not is_unloaded
    return modules


def _split_export(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError:  # a quotation that ends on a later line
        return []
