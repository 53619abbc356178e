"""The modules, the variables and the launch command of a case in the script of its job."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from harness.host.launch_line import LaunchLine, parse_launch_line

JOB_SCRIPT = "job.sh"
LAUNCH = re.compile(r'^run_case (\S+) .*?\\\n(.*?)"\$python" -P -m harness\.reference', re.MULTILINE | re.DOTALL)
EXPORT = re.compile(r"^export (.+)$", re.MULTILINE)
ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
# What the shell replaces in a value: variables, the output of commands, and home folders.
EXPANSION = re.compile(r"[$`(]|^~")
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
        launch: The options of the launch command of the case, or None if no known launcher starts it.
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
    values = {match[1]: match[2] for word in words if (match := ASSIGNMENT.fullmatch(word))}
    variables = {name: value for name, value in values.items() if not EXPANSION.search(value)}
    launch = next((lines for name, lines in LAUNCH.findall(text) if name == case), "")
    return JobScript(
        tuple(name for name, is_loaded in modules.items() if is_loaded),
        tuple(name for name, is_loaded in modules.items() if not is_loaded),
        variables,
        parse_launch_line(launch.replace("\\\n", " ")),
    )


def _read_modules(text: str) -> dict[str, bool]:
    """Return for each module that a script names whether it loads it; the last command counts."""
    modules: dict[str, bool] = {}
    for tool, arguments in MODULE.findall(text):
        words = arguments.replace('"', "").replace("'", "").split()
        command, *names = [word for word in words if not word.startswith("--")] or [""]
        if tool == "ml" and command not in (*LOAD, *UNLOAD, *ML_OTHER, ""):
            command, names = "load", [command, *names]
        if command in ("purge", "reset"):
            modules.clear()
        if command in (*LOAD, *UNLOAD):
            for name in names:  # `ml -NAME` unloads a module
                is_unloaded = command in UNLOAD or name.startswith("-")
                if "$" not in name:
                    modules[name.removeprefix("-")] = not is_unloaded
    return modules


def _split_export(line: str) -> list[str]:
    """Return the words of an `export` without the commands after it; none if a quotation ends on a later line."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
    lexer.whitespace_split = True
    lexer.commenters = ""
    try:
        return list(takewhile(lambda word: word.strip(";&|") and not word.startswith("#"), lexer))
    except ValueError:
        return []
