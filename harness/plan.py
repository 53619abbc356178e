"""Suite x system -> plan: frozen cases, each known by the hash of its content."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.suites import Suite
from harness.systems import Site

LABEL_LENGTH = 32


@dataclass(frozen=True)
class Case:
    """One run of one program with everything decided.

    id: hash of program, parameters, system, environment and settings: equal work has equal ids, whatever it is called.
    """

    id: str
    name: str
    suite: str
    system: str
    program: str
    parameters: dict[str, Any]
    settings: dict[str, Any]
    minutes: float
    tags: tuple[str, ...]

    @property
    def folder_name(self) -> str:
        """Its folder inside the campaign's."""
        return f"{self.name}-{self.id[:8]}"


@dataclass(frozen=True)
class Plan:
    """The cases of one suite on one system; a campaign is a plan being carried out."""

    suite: Suite
    site: Site
    cases: tuple[Case, ...]

    @property
    def campaign_name(self) -> str:
        """Its folder inside runs/."""
        return f"{self.suite.name}-{self.site.system.name}"


def expand(suite: Suite, site: Site) -> Plan:
    """Every combination of the suite's matrix, in the order of the file, the last key running fastest."""
    keys = list(suite.matrix)
    cases = []
    for values in itertools.product(*suite.matrix.values()):
        chosen = dict(zip(keys, values, strict=True))
        parameters = {**suite.parameters, **chosen}
        name = "-".join([suite.name, *(label(v) for v in values)])
        cases.append(_case(name, suite, site, parameters))
    return Plan(suite, site, tuple({case.id: case for case in cases}.values()))


def select(plan: Plan, names: Sequence[str], tags: Sequence[str], excluded: Sequence[str]) -> Plan:
    """The plan with only the cases whose name holds one of names, that have all tags, and match nothing excluded."""
    cases = tuple(
        c
        for c in plan.cases
        if (not names or any(n in c.name for n in names))
        and all(t in c.tags for t in tags)
        and not any(x in c.name for x in excluded)
    )
    return Plan(plan.suite, plan.site, cases)


def label(value: Any) -> str:
    """A matrix value as part of a case's name."""
    text = Path(value).stem if isinstance(value, str) else str(value)
    return "".join(ch if ch.isalnum() else "_" for ch in text.lower())[:LABEL_LENGTH]


def _case(name: str, suite: Suite, site: Site, parameters: dict[str, Any]) -> Case:
    settings = dict(site.settings)
    content = [suite.program, parameters, site.system.name, site.system.environment, settings]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return Case(
        id=digest[:16],
        name=name,
        suite=suite.name,
        system=site.system.name,
        program=suite.program,
        parameters=parameters,
        settings=settings,
        minutes=suite.minutes,
        tags=tuple(suite.tags),
    )
