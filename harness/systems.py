"""System: where to measure, from systems/*.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from harness import settings
from harness.errors import UsageError
from harness.language import expressions, validation, yamlfile
from harness.language.expressions import ExpressionError
from harness.language.layers import layered
from harness.language.yamlfile import Document
from harness.programs import Count, Positive, Strict
from harness.settings import Setting
from harness.suites import Name

Line = Annotated[str, Field(pattern=r"^[^\n\r]*$")]
# What the lines of a system may read besides `settings`.
CASE_FACTS = ("nodes", "ranks", "ranks_per_node")
SETUP_FACTS = ("package",)


class WalltimeLimit(Strict):
    """Jobs of up to so many nodes may run so many minutes."""

    nodes: Count
    minutes: Positive


class Limits(Strict):
    """What the site allows: nodes of a job, jobs in the queue at once, walltime by node count, tasks of an array."""

    nodes: Count | None = None
    jobs: Count = 100
    array: Annotated[int, Field(ge=0)] = 0
    walltime: list[WalltimeLimit] = Field(default_factory=list)

    @model_validator(mode="after")
    def _ascending(self) -> Limits:
        sizes = [w.nodes for w in self.walltime]
        if sizes != sorted(set(sizes)):
            raise ValueError(f"walltime: node counts must ascend, got {sizes}")
        return self


class Node(Strict):
    """The shape of one node; ranks_per_node is what fills it: one rank for each accelerator, or as a setting says."""

    ranks_per_node: int | str
    cores: Count | None = None
    accelerators: Annotated[int, Field(ge=0)] = 0
    accelerator: str = "none"
    accelerator_memory_gb: Positive | None = None


class System(Strict):
    """A machine: scheduler and job template, the lines that its jobs hold, its limits, and its settings.

    scale: the overlay of a suite's `scale` that applies here; without it, that of the system's own name.
    directives: scheduler options. modules, prepare: shell lines before anything runs. stage: shell lines that bring
    the environment to the nodes. python: the interpreter there; empty: the one that runs the harness. check: shell
    line that succeeds on a healthy node. probe: how it is started once a node. launch: how a case is started.
    install: shell lines by which `harness setup` makes the environment. overhead_minutes: what a job takes beside
    its cases.
    """

    name: Name
    scale: Name | None = None
    title: Line
    source: str = ""
    scheduler: Literal["local", "slurm", "pbs"]
    template: Line
    node: Node
    backend: Literal["gloo", "nccl", "xccl"] = "gloo"
    device: Literal["cpu", "cuda", "xpu"] = "cpu"
    limits: Limits = Field(default_factory=Limits)
    directives: list[Line] = Field(default_factory=list)
    modules: list[Line] = Field(default_factory=list)
    prepare: list[Line] = Field(default_factory=list)
    stage: list[Line] = Field(default_factory=list)
    install: list[Line] = Field(default_factory=list)
    environment: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], Line] = Field(default_factory=dict)
    check: Line = ""
    probe: Line = ""
    launch: list[Line]
    python: Line = ""
    overhead_minutes: Annotated[float, Field(ge=0)] = 0.0
    settings: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], Setting] = Field(default_factory=dict)


@dataclass(frozen=True)
class Site:
    """A system with its settings decided.

    settings: those that have a value. missing: what to say
    about those that have none, by name. folder: where its job template is.
    """

    system: System
    settings: Mapping[str, Any]
    missing: Mapping[str, str]
    folder: Path
    document: Document

    @cached_property
    def ranks_per_node(self) -> int:
        """Ranks that fill a node."""
        value = self.system.node.ranks_per_node
        if isinstance(value, str):
            value = self._expression(value, ("node", "ranks_per_node"), {})
        if not isinstance(value, int) or value < 1:
            raise self.document.error(("node", "ranks_per_node"), f"expected a number of at least 1, got {value!r}")
        return value

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What `system.` means in a suite."""
        node = self.system.node
        return {
            "name": self.system.name,
            "nodes": self.system.limits.nodes or 1_000_000,
            "ranks_per_node": self.ranks_per_node,
            "cores_per_node": node.cores or 1,
            "accelerators_per_node": node.accelerators,
            "backend": self.system.backend,
            "device": self.system.device,
        }

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The settings that change what is measured."""
        return {n: v for n, v in self.settings.items() if self.system.settings[n].identity}

    def minutes_allowed(self, nodes: int) -> float | None:
        """The site's walltime limit for a job of so many nodes; None: no limit is known."""
        return next((w.minutes for w in self.system.limits.walltime if nodes <= w.nodes), None)

    def require_settings(self) -> None:
        """Raise UsageError that names every setting which has no value and needs one."""
        if self.missing:
            raise UsageError("\n".join(self.missing.values()))

    def text(self, text: str, loc: yamlfile.Loc, **known: Any) -> str:
        """A line of the system with its expressions evaluated; raises UsageError."""
        return str(self._expression(text, loc, known)) if expressions.is_expression(text) else text

    def lines(self, name: str, **known: Any) -> list[str]:
        """One of the system's lists of lines, evaluated, without those that come out empty."""
        found = [self.text(line, (name, k), **known) for k, line in enumerate(getattr(self.system, name))]
        return [line for line in found if line.strip()]

    @cached_property
    def environment(self) -> dict[str, str]:
        """What every job exports."""
        given = self.system.environment
        return {name: self.text(value, ("environment", name)) for name, value in given.items()}

    @property
    def spares(self) -> int:
        """Nodes that each job asks for beyond those needed."""
        return max(0, int(self.settings.get("spares", 0)))

    def _expression(self, text: str, loc: yamlfile.Loc, known: Mapping[str, Any]) -> Any:
        try:
            return expressions.parse(text)({"settings": self.settings, **known})
        except ExpressionError as error:
            raise self.document.error(loc, str(error)) from None


def load(path: Path, given: Mapping[str, str]) -> Site:
    """Read and check a system and decide its settings, by -S, HARNESS_* variables or the user's file."""
    document = layered(path, "systems")
    system = validation.validate(document, System)
    validation.gather([_expression_problems(document, system)])
    template_folder = document.mark(("template",)).path.parent
    if not (template_folder / system.template).is_file():
        said = f"template {system.template!r} is not beside {document.mark(('template',)).path.name}"
        raise document.error(("template",), said)
    decided, missing = settings.decide(system.name, system.settings, given)
    site = Site(system, decided, missing, template_folder, document)
    _ = site.ranks_per_node
    return site


def _expression_problems(document: Document, system: System) -> list[str]:
    """Names and attributes in the system's lines that nothing gives a value to."""
    own = {"settings": list(system.settings)}
    allowed = {"launch": {**own, "case": CASE_FACTS}, "install": {**own, "setup": SETUP_FACTS}}
    found = []
    for loc, text in _texts(document.data, ()):
        if not expressions.is_expression(text):
            continue
        here = allowed.get(str(loc[0]), own)
        try:
            said = expressions.parse(text).unknown((), here)
        except ExpressionError as error:
            said = str(error)
        if said:
            found.append(document.problem(loc, f"{'.'.join(map(str, loc))}: {said}"))
    return found


def _texts(node: Any, loc: yamlfile.Loc) -> list[tuple[yamlfile.Loc, str]]:
    if isinstance(node, dict):
        return [found for key, value in node.items() for found in _texts(value, (*loc, key))]
    if isinstance(node, list):
        return [found for k, value in enumerate(node) for found in _texts(value, (*loc, k))]
    return [(loc, node)] if isinstance(node, str) else []
