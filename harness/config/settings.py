"""A system's settings: what the user gives with -S, in HARNESS_* variables, or in a file of his own."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from harness.config.language import validation, yaml_loader
from harness.config.language.document import Loc, gather
from harness.protocol.errors import UsageError, did_you_mean, shortened
from harness.protocol.types import Strict

PREFIX = "HARNESS_"
# Values become words of job scripts: nothing that a shell reads as more than a variable.
SAFE = re.compile(r"(?:[\w./:@%+=,~-]|\$[A-Za-z_]\w*|\$\{[A-Za-z_]\w*\})*", re.ASCII)


WHOLE = re.compile(r"[-+]?[0-9]{1,18}", re.ASCII)
REAL = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?", re.ASCII)
EXPECTED = {int: "a whole number", float: "a number"}
SAFE_LETTERS = "letters, digits, $NAME and any of ./:@%+=,~_-"


def _safe(value: str | int | float | None) -> str | int | float | None:
    if isinstance(value, str) and not SAFE.fullmatch(value):
        raise ValueError(f"expected {SAFE_LETTERS}, got {shortened(value)}")
    return value


class Setting(Strict):
    """A value that the user may give. Without a default it must be given.

    identity: it changes what is measured, so cases that differ in it are different cases.
    """

    help: Annotated[str, Field(pattern=validation.ONE_LINE)]
    default: Annotated[str | int | float | None, AfterValidator(_safe)] = None
    identity: bool = False

    @model_validator(mode="after")
    def _is_decided(self) -> Setting:
        if self.identity and self.default is None:
            raise ValueError("a setting with identity needs a default, since the ids of cases hold its value")
        return self


def variable_of(name: str) -> str:
    """Return the environment variable that gives a setting."""
    return PREFIX + name.upper()


def ways_to_give(system: str, name: str) -> str:
    """Return the places where the user may give a setting of a system."""
    return f"-S {name}=..., {variable_of(name)}, or `{system}: {{{name}: ...}}` in {user_file()}"


def user_file() -> Path:
    """The user's own file: a mapping from setting to value, or from system to such a mapping."""
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "gfm-harness" / "settings.yaml"


def decide(
    system: str, declared: Mapping[str, Setting], given: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """The settings that have a value, and for each of the others what to tell the user; raises UsageError."""
    wrong = [
        f"-S {name}: no such setting of system {system!r}{did_you_mean(name, declared)}"
        for name in given
        if name not in declared
    ]
    own = _from_file(system, declared)
    decided: dict[str, Any] = {}
    missing = {}
    for name, setting in declared.items():
        variable = variable_of(name)
        try:
            if name in given:
                decided[name] = _typed(f"-S {name}", setting, given[name])
            elif variable in os.environ:
                decided[name] = _typed(variable, setting, os.environ[variable])
            elif name in own:
                decided[name] = own[name]
            elif setting.default is not None:
                decided[name] = setting.default
            else:
                ways = ways_to_give(system, name)
                missing[name] = f"system {system!r} needs the setting {name!r} ({setting.help}): give {ways}"
        except UsageError as error:
            wrong.append(str(error))
    if wrong:
        raise UsageError("\n".join(wrong))
    return decided, missing


def _from_file(system: str, declared: Mapping[str, Setting]) -> dict[str, Any]:
    path = user_file()
    if not path.is_file():
        return {}
    document = yaml_loader.parse(path, may_be_empty=True, read=yaml_loader.read_text)
    special = document.data.get(system, {})
    places: dict[Loc, Any] = {(k,): v for k, v in document.data.items() if k in declared and k not in special}
    wrong, found = [], {}
    if not isinstance(special, dict):
        wrong.append(document.problem((system,), f"{system}: expected a mapping from settings to values"))
        special = {}
    places |= {(system, k): v for k, v in special.items()}
    for loc, value in places.items():
        name = str(loc[-1])
        if name not in declared:
            said = f"no such setting of system {system!r}{did_you_mean(name, declared)}"
            wrong.append(document.problem(loc, f"{name}: {said}"))
        elif not isinstance(value, str):
            wrong.append(document.problem(loc, f"{name}: expected text or a number, got {shortened(value)}"))
        else:
            try:
                found[name] = _typed(name, declared[name], value)
            except UsageError as error:
                wrong.append(document.problem(loc, str(error)))
    gather([wrong])
    return found


def _typed(said: str, setting: Setting, text: str) -> str | int | float:
    """The text as the setting's type; said: where it is from."""
    kind = str if setting.default is None else type(setting.default)
    if kind is str:
        if not SAFE.fullmatch(text) or (setting.default is None and not text):
            raise UsageError(f"{said}: expected {SAFE_LETTERS}, got {shortened(text)}")
        return text
    pattern, number = (WHOLE, int) if kind is int else (REAL, float)
    value = number(text) if pattern.fullmatch(text) else None
    if value is None or not math.isfinite(value):
        said = f"{said}: expected {EXPECTED[kind]}, as {setting.default!r}, got {shortened(text)}"
        raise UsageError(said)
    return value
