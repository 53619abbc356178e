"""A system's settings: what the user gives with -S, in HARNESS_* variables, or in a file of his own."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from harness.errors import UsageError, did_you_mean
from harness.language import yamlfile
from harness.programs import Strict

PREFIX = "HARNESS_"
# Values become words of job scripts: nothing that a shell reads as more than a variable.
SAFE = re.compile(r"^[\w./:@%+=,~-]*(?:\$\{?\w+\}?[\w./:@%+=,~-]*)*$", re.ASCII)


class Setting(Strict):
    """A value that the user may give. Without a default it must be given.

    identity: it changes what is measured, so cases that differ in it are different cases.
    """

    help: Annotated[str, Field(pattern=r"^[^\n\r]*$")]
    default: str | int | float | None = None
    identity: bool = False


def user_file() -> Path:
    """The user's own file: a mapping from setting to value, or from system to such a mapping."""
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "gfm-harness" / "settings.yaml"


def decide(
    system: str, declared: Mapping[str, Setting], given: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """The settings that have a value, and for each of the others what to tell the user; raises UsageError."""
    for name in given:
        if name not in declared:
            raise UsageError(f"-S {name}: no such setting of system {system!r}{did_you_mean(name, declared)}")
    own = _from_file(system, declared)
    decided: dict[str, Any] = {}
    missing = {}
    for name, setting in declared.items():
        variable = PREFIX + name.upper()
        if name in given:
            decided[name] = _typed(f"-S {name}={given[name]}", setting, given[name])
        elif variable in os.environ:
            decided[name] = _typed(f"{variable}={os.environ[variable]}", setting, os.environ[variable])
        elif name in own:
            decided[name] = own[name]
        elif setting.default is not None:
            decided[name] = setting.default
        else:
            ways = f"-S {name}=..., {variable}, or `{system}: {{{name}: ...}}` in {user_file()}"
            missing[name] = f"system {system!r} needs the setting {name!r} ({setting.help}): give {ways}"
    return decided, missing


def _from_file(system: str, declared: Mapping[str, Setting]) -> dict[str, Any]:
    path = user_file()
    if not path.is_file():
        return {}
    document = yamlfile.parse(path)
    common: dict[tuple[str, ...], Any] = {(k,): v for k, v in document.data.items() if not isinstance(v, dict)}
    special = document.data.get(system, {})
    own: dict[tuple[str, ...], Any] = {(system, k): v for k, v in special.items()} if isinstance(special, dict) else {}
    found = {}
    for loc, value in {**common, **own}.items():
        name = str(loc[-1])
        if name not in declared:
            if loc in own:
                said = f"no such setting of system {system!r}{did_you_mean(name, declared)}"
                raise document.error(loc, f"{name}: {said}")
            continue
        try:
            found[name] = _typed(f"{name}: {value}", declared[name], str(value))
        except UsageError as error:
            raise document.error(loc, str(error)) from None
    return found


def _typed(said: str, setting: Setting, text: str) -> str | int | float:
    kind = str if setting.default is None else type(setting.default)
    if kind is str and not SAFE.match(text):
        raise UsageError(f"{said}: expected letters, digits, $NAME and any of ./:@%+=,~_-")
    try:
        return kind(text)
    except ValueError:
        raise UsageError(f"{said}: expected {kind.__name__}, as {setting.default!r}") from None
