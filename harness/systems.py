"""System: where to measure, from systems/*.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from harness import yamlfile
from harness.errors import UsageError, did_you_mean
from harness.programs import Strict
from harness.suites import Name


class Setting(Strict):
    """A value that the user may give with -S name=value."""

    help: str
    default: str | int | float


class System(Strict):
    """A machine: its scheduler, its job template (in systems/), environment of every job, and settings."""

    name: Name
    title: str
    scheduler: Literal["local"]
    template: str
    environment: dict[str, str] = Field(default_factory=dict)
    settings: dict[Name, Setting] = Field(default_factory=dict)


@dataclass(frozen=True)
class Site:
    """A system with its settings decided, and the folder that holds its job template."""

    system: System
    settings: Mapping[str, Any]
    folder: Path


def load(path: Path, given: Mapping[str, str]) -> Site:
    """Read and check a system and apply the user's settings; raises UsageError."""
    system = yamlfile.validate(path, yamlfile.parse(path), System)
    if not (path.parent / system.template).is_file():
        raise UsageError(f"{path}: its template {system.template!r} is not beside it")
    decided: dict[str, Any] = {name: setting.default for name, setting in system.settings.items()}
    for name, value in given.items():
        if name not in decided:
            raise UsageError(f"-S {name}: no such setting of system {system.name!r}{did_you_mean(name, decided)}")
        kind = type(decided[name])
        try:
            decided[name] = kind(value)
        except ValueError:
            raise UsageError(f"-S {name}={value}: expected {kind.__name__}, as {decided[name]!r}") from None
    return Site(system, decided, path.parent)
