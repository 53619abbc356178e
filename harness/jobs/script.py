"""A case as a folder that can be run by hand: case.json, provenance.json and the rendered job.sh."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict
from pathlib import Path

import jinja2

from harness import __version__, provenance
from harness.errors import UsageError
from harness.jobs.files import write_json, write_text
from harness.plan import Case, Plan


def render(plan: Plan, case: Case) -> str:
    """The job script of a case on its system."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(plan.site.folder),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters["quote"] = lambda value: shlex.quote(str(value))
    known = {"suite": plan.suite, "case": case, "system": plan.site.system, "python": sys.executable}
    try:
        return environment.get_template(plan.site.system.template).render(known, version=__version__)
    except jinja2.TemplateError as error:
        raise UsageError(f"{plan.site.folder / plan.site.system.template}: {error}") from None


def write(plan: Plan, case: Case, folder: Path) -> None:
    """Make the case's folder ready to be submitted."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "case.json", asdict(case))
    write_json(folder / "provenance.json", provenance.collect())
    write_text(folder / "job.sh", render(plan, case))
