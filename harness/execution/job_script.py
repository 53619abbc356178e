"""Write job scripts (jobs/<job>.sh), and the folders of their cases (with case.json)."""

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
from harness.execution import gpu_errors
from harness.execution.schedulers.base import JOBS_FOLDER
from harness.host.files import JSON_OPTIONS, make_absolute, write_bytes, write_text
from harness.planning.expand import Plan
from harness.planning.jobs import Job
from harness.protocol import user_experiments
from harness.protocol.case import Case
from harness.protocol.errors import UsageError
from harness.protocol.events import VERSION
from harness.protocol.registry import PROGRAMS

TRIAL_LAUNCHER = "launch.sh"
# How long nodes may take to answer a check. On MANY_NODES nodes or more, starting a command takes minutes.
MANY_NODES, CHECK_TIMEOUT_S, CHECK_TIMEOUT_MANY_NODES_S = 512, 60, 300
# A driver program, such as a hyperparameter search, starts each of its trials with this script.
TRIAL_LAUNCH_TEMPLATE = """\
#!/usr/bin/env bash
# launch.sh NODES COMMAND...: runs COMMAND, one trial of this case, on the nodes that the file NODES lists:
# {nodes} node{s} x {ranks_per_node} ranks.
set -euo pipefail
nodes=$1
shift
# shellcheck disable=SC2317  # only some launch commands call first
first() {{ echo "$nodes"; }}
trial=${{*: -1}}
mark() {{ if [ -n "${{GFM_HARNESS_FOM_URL:-}}" ]; then annotate "$1" "${{trial##*/}}"; fi; }}
status=0
mark start
{launch}    "$@" || status=$?
mark stop
exit "$status"
"""
ARRAY_TEMPLATE = """\
#!/usr/bin/env bash
{directives}
# {count} jobs of one shape, each with a script of its own in this folder: task N runs the N-th line of {name}.txt.
# Written by gfm-harness {version}. To submit it by hand: `sbatch {script}`.
set -euo pipefail
cd {folder}
mapfile -t jobs < {name}.txt
job=${{jobs[${{SLURM_ARRAY_TASK_ID:?this script is for sbatch}} - 1]}}
exec bash "$job.sh" "$@" >> "$job.log" 2>&1
"""


class JobScriptWriter:
    """A writer of the scripts and case folders of one plan's jobs."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan = plan
        self.folder = make_absolute(folder)
        if re.search('["\\\\\n\ud800-\udfff]', str(self.folder)):
            characters = "a quote, a backslash, a line break or a character that is not UTF-8"
            raise UsageError(f"{self.folder}: job scripts cannot name a folder with {characters}")
        self.jobs_folder = self.folder / JOBS_FOLDER
        self._template = _make_template_environment(plan.system.folder).get_template(plan.system.definition.template)
        self._context = self._build_context()

    def get_script_path(self, job_name: str) -> Path:
        """Return the path of a job's script."""
        return self.jobs_folder / f"{job_name}.sh"

    def render(self, job: Job) -> str:
        """Render the script of a job; raise UsageError for an error in its template."""
        try:
            text = self._template.render(
                self._context,
                job=job,
                cases=job.cases,
                check_timeout_s=CHECK_TIMEOUT_S if job.nodes < MANY_NODES else CHECK_TIMEOUT_MANY_NODES_S,
                has_drivers=any(is_driver(case) for case in job.cases),
                config=self._context["telemetry"].config.replace("%p", find_shared_precision(job.cases)),
                script=self.get_script_path(job.name),
                log=self.jobs_folder / f"{job.name}.log",
                excluded_nodes=gpu_errors.read_faulty_nodes(self.folder),
            )
        except jinja2.TemplateError as error:
            system = self.plan.system
            raise UsageError(f"{system.folder / system.definition.template}: {error}") from None
        while "\n\n\n" in text:  # several times as fast as a regular expression
            text = text.replace("\n\n\n", "\n\n")
        return text

    def write(self, job: Job) -> Path:
        """Write all files that the job needs, and return the path of its script."""
        if not os.path.isdir(self.jobs_folder):
            self.jobs_folder.mkdir(parents=True, exist_ok=True)
        for case in job.cases:
            write_case(self.folder, case)
            if is_driver(case):
                write_text(self.folder / case.folder_name / TRIAL_LAUNCHER, self.render_trial_launcher(case))
        script = self.get_script_path(job.name)
        write_text(script, self.render(job))
        return script

    def write_array(self, name: str, jobs: list[Job]) -> Path:
        """Write the script of an array of jobs of the same shape, and return its path."""
        overrides = {"--job-name=": f"#SBATCH --job-name={name}", "--output=": "#SBATCH --output=/dev/null"}
        directives = [
            next((override for option, override in overrides.items() if option in line), line)
            for line in self.render(jobs[0]).splitlines()
            if line.startswith("#SBATCH ")
        ]
        write_text(self.jobs_folder / f"{name}.txt", "".join(f"{job.name}\n" for job in jobs))
        script = ARRAY_TEMPLATE.format(
            directives="\n".join([*directives, f"#SBATCH --array=1-{len(jobs)}"]),
            count=len(jobs),
            name=name,
            version=__version__,
            script=self.get_script_path(name),
            folder=shlex.quote(str(self.jobs_folder)),
        )
        write_text(self.get_script_path(name), script)
        return self.get_script_path(name)

    def _build_context(self) -> dict[str, Any]:
        """Return the values that the template reads for every job of the plan."""
        system = self.plan.system
        return {
            "suite": self.plan.suite,
            "system": system.definition,
            "version": __version__,
            "folder": self.folder,
            "python": system.definition.python or sys.executable,
            "bin": Path(sys.executable).parent,
            "environment": system.environment | user_experiments.build_job_environment(self.plan.suite.program),
            "telemetry": system.telemetry,
            "directives": system.render_section("directives"),
            "options": f" {system.submit_options}" if system.submit_options else "",
            "setting_checks": system.render_setting_checks(),
            "chunk": system.chunk,
            "modules": system.render_section("modules"),
            "prepare": system.render_section("prepare"),
            "stage_in": system.render_section("stage_in"),
            "launch": self._make_launcher(),
            "launch_full": self._launch_full_nodes,
            "speed_test_s": system.speed_test_s,
            "min_nodes": get_min_nodes,
            "gpu_errors": gpu_errors.GPU_ERRORS,
            "faulty_nodes_file": gpu_errors.FAULTY_NODES_FILE,
            "exclusion_s": gpu_errors.EXCLUSION_S,
        }

    def render_trial_launcher(self, case: Case) -> str:
        """Render the script with which a driver starts each of its trials on some of the job's nodes."""
        shape = {"nodes": get_min_nodes(case), "ranks_per_node": case.ranks_per_node}
        lines = self.plan.system.render_section(
            "launch", case={**shape, "ranks": shape["nodes"] * shape["ranks_per_node"]}
        )
        launch = "".join(f"    {line} \\\n" for line in lines if line)
        return TRIAL_LAUNCH_TEMPLATE.format(**shape, s="s" * (shape["nodes"] > 1), launch=launch)

    def _launch_full_nodes(self, nodes: int) -> list[str]:
        """Render the launch command of a program with a rank on every place of this number of nodes."""
        ranks_per_node = self.plan.system.ranks_per_node
        shape = {"nodes": nodes, "ranks_per_node": ranks_per_node, "ranks": nodes * ranks_per_node}
        return self.plan.system.render_section("launch", case=shape)

    def _make_launcher(self) -> Callable[[Case], list[str]]:
        """Return a function that renders the launch command of a case, which is empty for a driver."""
        cache: dict[tuple[int, int], list[str]] = {}

        def launch(case: Case) -> list[str]:
            if is_driver(case):
                return []
            shape = (case.nodes, case.ranks_per_node)
            if shape not in cache:
                context = {"nodes": case.nodes, "ranks_per_node": case.ranks_per_node, "ranks": case.ranks}
                cache[shape] = self.plan.system.render_section("launch", case=context)
            return cache[shape]

        return launch


def is_driver(case: Case) -> bool:
    """Return whether the case runs as one process that starts others on the job's nodes."""
    return case.program in PROGRAMS and PROGRAMS[case.program].is_driver


def get_min_nodes(case: Case) -> int:
    """Return the number of nodes that a case needs to start: all of its nodes, or for a driver those of one trial."""
    return int(case.parameters.get("nodes_per_trial", 1)) if is_driver(case) else case.nodes


def find_shared_precision(cases: Sequence[Case]) -> str:
    """Return the precision that the cases share, or `mixed`."""
    precisions = {str(case.parameters.get("precision") or "mixed") for case in cases}
    return precisions.pop() if len(precisions) == 1 else "mixed"


def write_case(campaign: Path, case: Case) -> None:
    """Write the case's folder with its case.json."""
    folder = f"{campaign}/{case.folder_name}"
    with suppress(FileExistsError):
        os.mkdir(folder)
    content = {field.name: getattr(case, field.name) for field in fields(case)}
    content |= {"version": VERSION, "ranks": case.ranks}
    write_bytes(f"{folder}/case.json", orjson.dumps(content, option=JSON_OPTIONS))


def _make_template_environment(folder: Path) -> jinja2.Environment:
    """Return an environment with the templates in the system's folder and the shipped ones."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, resources.get_resource_dir("systems")]),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=False,
    )
    environment.filters["quote"] = lambda value: shlex.quote(str(value))
    environment.filters["double_quote"] = _double_quote
    return environment


def _double_quote(value: Any) -> str:
    """Quote a value as one word of bash in which $NAME is still expanded."""
    text = str(value)
    if re.fullmatch(r"[\w./:@%+=,~-]*", text, re.ASCII):
        return text or '""'
    for special in ("\\", '"', "`"):
        text = text.replace(special, "\\" + special)
    return f'"{text}"'
