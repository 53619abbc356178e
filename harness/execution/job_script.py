"""Jobs as files: jobs/<job>.sh for the scheduler, and a folder with case.json for each case."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import jinja2
import orjson

from harness import __version__
from harness.config import resources
from harness.host.atomic_files import INDENTED, absolute, write_bytes, write_text
from harness.planning.expand import Plan
from harness.planning.jobs import Job
from harness.protocol.case import Case
from harness.protocol.errors import UsageError
from harness.protocol.registry import DRIVERS

JOBS, LAUNCH = "jobs", "launch.sh"
# How long nodes may take to say that they are still there: to start something on thousands takes minutes.
MANY_NODES, PATIENCE_S, PATIENCE_OF_MANY_S = 512, 60, 300
# A driver starts each of its runs with this.
RUN_LAUNCH = """\
#!/usr/bin/env bash
# launch.sh NODES COMMAND...: one run of this case, {nodes} node{s} x {ranks_per_node} ranks, on the file NODES.
set -euo pipefail
nodes=$1
shift
# shellcheck disable=SC2317  # not every launcher asks for it
first() {{ echo "$nodes"; }}
trial=${{*: -1}}
mark() {{ if [ -n "${{GFM_HARNESS_FOM_URL:-}}" ]; then annotate "$1" "${{trial##*/}}"; fi; }}
status=0
mark start
{launch}    "$@" || status=$?
mark stop
exit "$status"
"""
ARRAY = """\
#!/usr/bin/env bash
{directives}
# {count} jobs of one shape, each with a script of its own in this folder: task N runs the N-th line of {name}.txt.
# Made by gfm-harness {version}. By hand: `sbatch {script}`.
set -euo pipefail
cd {folder}
mapfile -t jobs < {name}.txt
job=${{jobs[${{SLURM_ARRAY_TASK_ID:?this script is for sbatch}} - 1]}}
exec bash "$job.sh" "$@" >> "$job.log" 2>&1
"""


class Scripts:
    """Renders and writes the jobs of one plan in its campaign's folder."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan = plan
        self.folder = absolute(folder)
        if re.search('["\\\\\n\ud800-\udfff]', str(self.folder)):
            said = "a quote, backslash or line break, or one that is not UTF-8"
            raise UsageError(f"{self.folder}: job scripts cannot name a folder with {said}")
        self.jobs = self.folder / JOBS
        self._template = _environment(plan.site.folder).get_template(plan.site.system.template)
        self._known = self._constants()

    def path(self, job: str) -> Path:
        """Where a job's script is."""
        return self.jobs / f"{job}.sh"

    def render(self, job: Job) -> str:
        """The script of a job; raises UsageError for what is wrong with its template."""
        try:
            text = self._template.render(
                self._known,
                job=job,
                cases=job.cases,
                patience=PATIENCE_S if job.nodes < MANY_NODES else PATIENCE_OF_MANY_S,
                drivers=any(is_driver(case) for case in job.cases),
                config=self._known["watch"].config.replace("%p", precision_of(job.cases)),
                script=self.path(job.name),
                log=self.jobs / f"{job.name}.log",
            )
        except jinja2.TemplateError as error:
            site = self.plan.site
            raise UsageError(f"{site.folder / site.system.template}: {error}") from None
        while "\n\n\n" in text:  # several times as fast as an expression
            text = text.replace("\n\n\n", "\n\n")
        return text

    def write(self, job: Job) -> Path:
        """Make the job and the folders of its cases ready to be submitted; return its script."""
        if not os.path.isdir(self.jobs):
            self.jobs.mkdir(parents=True, exist_ok=True)
        for case in job.cases:
            write_case(self.folder, case)
            if is_driver(case):
                write_text(self.folder / case.folder_name / LAUNCH, self.launch_of_runs(case))
        script = self.path(job.name)
        write_text(script, self.render(job))
        return script

    def write_array(self, name: str, jobs: list[Job]) -> Path:
        """One script that the scheduler starts once for each of these jobs, which are of one shape."""
        text = self.render(jobs[0])
        directives = [line for line in text.splitlines() if line.startswith("#SBATCH ")]
        own = {"--job-name=": f"#SBATCH --job-name={name}", "--output=": "#SBATCH --output=/dev/null"}
        kept = [next((own[key] for key in own if key in line), line) for line in directives]
        write_text(self.jobs / f"{name}.txt", "".join(f"{job.name}\n" for job in jobs))
        script = ARRAY.format(
            directives="\n".join([*kept, f"#SBATCH --array=1-{len(jobs)}"]),
            count=len(jobs),
            name=name,
            version=__version__,
            script=self.path(name),
            folder=shlex.quote(str(self.jobs)),
        )
        write_text(self.path(name), script)
        return self.path(name)

    def _constants(self) -> dict[str, Any]:
        site = self.plan.site
        prefix = Path(sys.executable).parent
        return {
            "suite": self.plan.suite,
            "system": site.system,
            "version": __version__,
            "folder": self.folder,
            "python": site.system.python or sys.executable,
            "bin": prefix,
            "environment": site.environment,
            "watch": site.watch,
            "directives": site.lines("directives"),
            "options": f" {site.options}" if site.options else "",
            "requests": site.requests(),
            "chunk": site.chunk,
            "modules": site.lines("modules"),
            "prepare": site.lines("prepare"),
            "stage": site.lines("stage"),
            "launch": self._launcher(),
            "least_nodes": least_nodes,
        }

    def launch_of_runs(self, case: Case) -> str:
        """The script by which a driver starts each of its runs on some of the job's nodes."""
        shape = {"nodes": least_nodes(case), "ranks_per_node": case.ranks_per_node}
        lines = self.plan.site.lines("launch", case={**shape, "ranks": shape["nodes"] * shape["ranks_per_node"]})
        launch = "".join(f"    {line} \\\n" for line in lines if line)
        return RUN_LAUNCH.format(**shape, s="s" * (shape["nodes"] > 1), launch=launch)

    def _launcher(self) -> Callable[[Case], list[str]]:
        known: dict[tuple[int, int], list[str]] = {}

        def launch(case: Case) -> list[str]:
            if is_driver(case):
                return []
            shape = (case.nodes, case.ranks_per_node)
            if shape not in known:
                facts = {"nodes": case.nodes, "ranks_per_node": case.ranks_per_node, "ranks": case.ranks}
                known[shape] = self.plan.site.lines("launch", case=facts)
            return known[shape]

        return launch


def is_driver(case: Case) -> bool:
    """Whether the case runs as one process that starts others on the job's nodes."""
    return case.program in DRIVERS


def least_nodes(case: Case) -> int:
    """The nodes without which the case cannot run: all, or those of one run of a driver."""
    return int(case.parameters.get("nodes_per_trial", 1)) if is_driver(case) else case.nodes


def precision_of(cases: Sequence[Case]) -> str:
    """The one that the cases share, or `mixed`."""
    found = {str(case.parameters.get("precision") or "mixed") for case in cases}
    return found.pop() if len(found) == 1 else "mixed"


def write_case(campaign: Path, case: Case) -> None:
    """The case's folder with its case.json."""
    folder = f"{campaign}/{case.folder_name}"
    with suppress(FileExistsError):
        os.mkdir(folder)
    write_bytes(f"{folder}/case.json", _json(case))


def _json(case: Case) -> bytes:
    plain = {field.name: getattr(case, field.name) for field in fields(case)} | {"ranks": case.ranks}
    return orjson.dumps(plain, option=INDENTED)


def _environment(folder: Path) -> jinja2.Environment:
    """Templates of the system's own folder, then those that are shipped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, resources.folder("systems")]),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=False,
    )
    environment.filters["quote"] = lambda value: shlex.quote(str(value))
    environment.filters["double_quote"] = _double_quote
    return environment


def _double_quote(value: Any) -> str:
    """As one word of bash in which $NAME still stands for its value."""
    text = str(value)
    if re.fullmatch(r"[\w./:@%+=,~-]*", text, re.ASCII):
        return text or '""'
    for special in ("\\", '"', "`"):
        text = text.replace(special, "\\" + special)
    return f'"{text}"'
