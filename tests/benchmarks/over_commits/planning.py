"""Suites to plans, and plans to job scripts."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from .given import Sampled, as_far_as_it_exists, find

TIMES = 10


@cache
def plan(suite: str, system: str) -> Any:
    with as_far_as_it_exists():
        expand = find("harness.planning.expand.expand", "harness.plan.expand")

        shipped = find("harness.config.resources", "harness.shipped")
        suites = find("harness.config.suite", "harness.suites")
        systems = find("harness.config.system", "harness.systems")
    site = systems.load(shipped.find("systems", system), {"account": "none"} if system == "frontier" else {})
    return expand(suites.load(shipped.find("suites", suite), site.system.scale or site.system.name), site)


class Plan(Sampled):
    params = (["ladder", "scaling"], ["local", "frontier"])
    param_names = ("suite", "system")

    def setup(self, suite: str, system: str) -> None:
        plan(suite, system)

    def time_plan(self, suite: str, system: str) -> None:
        plan.__wrapped__(suite, system)


class Render(Sampled):
    def setup(self) -> None:
        with as_far_as_it_exists():
            Scripts = find("harness.execution.job_script.Scripts", "harness.jobs.script.Scripts")
            pack = find("harness.planning.jobs.pack", "harness.packing.pack")
        found = plan("scaling", "frontier")
        place = Path(tempfile.gettempdir()) / "gfm-harness-not-written"
        self.scripts, self.jobs = Scripts(found, place), pack(found, found.cases, place)

    def time_render(self) -> None:
        for job in self.jobs * TIMES:
            self.scripts.render(job)
