"""Expansion of suites into plans, and rendering of job scripts."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from .sampling import Benchmark, find_first, skip_if_missing

TIMES = 10


@cache
def make_plan(suite: str, system: str) -> Any:
    with skip_if_missing():
        expand = find_first(
            "harness.planning.expand.expand_suite", "harness.planning.expand.expand", "harness.plan.expand"
        )
        locate = find_first(
            "harness.config.resources.find_resource",
            "harness.config.resources.find",
            "harness.shipped.find",
        )
        load_suite = find_first("harness.config.suite.load_suite", "harness.config.suite.load", "harness.suites.load")
        load_system = find_first(
            "harness.config.system.load_system", "harness.config.system.load", "harness.systems.load"
        )
    site = load_system(locate("systems", system), {"account": "none"} if system == "frontier" else {})
    definition = getattr(site, "definition", None) or site.system  # the name in older commits
    return expand(load_suite(locate("suites", suite), definition.overlay or definition.name), site)


class Plan(Benchmark):
    params = (["ladder", "scaling"], ["local", "frontier"])
    param_names = ("suite", "system")

    def setup(self, suite: str, system: str) -> None:
        make_plan(suite, system)

    def time_plan(self, suite: str, system: str) -> None:
        make_plan.__wrapped__(suite, system)


class Render(Benchmark):
    def setup(self) -> None:
        with skip_if_missing():
            Scripts = find_first(
                "harness.execution.job_script.JobScriptWriter",
                "harness.execution.job_script.Scripts",
                "harness.jobs.script.Scripts",
            )
            pack = find_first("harness.planning.jobs.pack_jobs", "harness.planning.jobs.pack", "harness.packing.pack")
        expanded = make_plan("scaling", "frontier")
        folder = Path(tempfile.gettempdir()) / "gfm-harness-not-written"
        self.scripts, self.jobs = Scripts(expanded, folder), pack(expanded, expanded.cases, folder)

    def time_render(self) -> None:
        for job in self.jobs * TIMES:
            self.scripts.render(job)
