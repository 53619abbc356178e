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
        expand = find("harness.planning.expand.expand_suite", "harness.planning.expand.expand", "harness.plan.expand")
        locate = find("harness.config.resources.find_resource", "harness.config.resources.find", "harness.shipped.find")
        load_suite = find("harness.config.suite.load_suite", "harness.config.suite.load", "harness.suites.load")
        load_system = find("harness.config.system.load_system", "harness.config.system.load", "harness.systems.load")
    site = load_system(locate("systems", system), {"account": "none"} if system == "frontier" else {})
    definition = getattr(site, "definition", None) or site.system  # earlier commits
    return expand(load_suite(locate("suites", suite), definition.overlay or definition.name), site)


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
            Scripts = find(
                "harness.execution.job_script.JobScriptWriter",
                "harness.execution.job_script.Scripts",
                "harness.jobs.script.Scripts",
            )
            pack = find("harness.planning.jobs.pack_jobs", "harness.planning.jobs.pack", "harness.packing.pack")
        expanded = plan("scaling", "frontier")
        folder = Path(tempfile.gettempdir()) / "gfm-harness-not-written"
        self.scripts, self.jobs = Scripts(expanded, folder), pack(expanded, expanded.cases, folder)

    def time_render(self) -> None:
        for job in self.jobs * TIMES:
            self.scripts.render(job)
