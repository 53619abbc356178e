"""System: where to measure, from systems/*.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from harness import settings, shipped
from harness.errors import UsageError, did_you_mean, shortened
from harness.language import expressions, validation
from harness.language.document import Document, Loc, Problem, gather
from harness.language.evaluation import ExpressionError
from harness.language.fields import Count, Minutes, Name, Positive, Strict, Word
from harness.language.layers import layered
from harness.settings import Setting

Line = Annotated[str, Field(pattern=validation.ONE_LINE)]
FileName = Annotated[str, Field(pattern=validation.FILE, max_length=100)]
# What the lines of a system may read besides `settings`.
CASE_FACTS = ("nodes", "ranks", "ranks_per_node")
SETUP_FACTS = ("package",)
# Where expressions may stand, and which of these are known before there is a case.
EARLY = ("directives", "modules", "prepare", "stage")
PLACES = ("node", "environment", "install", "launch", "telemetry", *EARLY)
COLLECTORS = ("omnistat", "sampler", "none")


class WalltimeLimit(Strict):
    """Jobs of up to so many nodes may run so many minutes."""

    nodes: Count
    minutes: Minutes


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


class TelemetryLines(Strict):
    """What watches the jobs. collector: an expression that comes to `omnistat`, `sampler` (the ranks themselves) or
    `none`. interval_s: seconds between samples. modules: shell lines that bring Omnistat. omnistat: how its programs
    are called, `$tool` being usermode, annotate or query. config: its configuration, `%p` in it being the precision of
    the job's cases."""

    collector: Line = "none"
    interval_s: Line = "15"
    modules: list[Line] = Field(default_factory=list)
    omnistat: Line = '"omnistat-$tool"'
    config: Line = ""


@dataclass(frozen=True)
class Watch:
    """A system's telemetry with its settings decided; see TelemetryLines."""

    collector: Literal["omnistat", "sampler", "none"]
    interval_s: float
    modules: list[str]
    omnistat: str
    config: str


class System(Strict):
    """A machine: scheduler and job template, the lines that its jobs hold, its limits, and its settings.

    scale: the overlay of a suite's `scale` that applies here; without it, that of the system's own name.
    directives: scheduler options. modules, prepare: shell lines before anything runs. stage: shell lines that bring
    the environment to the nodes. python: the interpreter there; empty: the one that runs the harness. check: shell
    line that succeeds on a healthy node. probe: how it is started once a node. launch: how a case is started.
    install: shell lines by which `harness setup` makes the environment. overhead_minutes: what a job takes beside
    its cases. telemetry: what watches the jobs.
    """

    name: Name
    scale: Name | None = None
    title: Line
    source: str = ""
    scheduler: Literal["local", "slurm", "pbs"]
    template: FileName
    node: Node
    backend: Literal["gloo", "nccl", "xccl"] = "gloo"
    device: Literal["cpu", "cuda", "xpu"] = "cpu"
    limits: Limits = Field(default_factory=Limits)
    directives: list[Line] = Field(default_factory=list)
    modules: list[Line] = Field(default_factory=list)
    prepare: list[Line] = Field(default_factory=list)
    stage: list[Line] = Field(default_factory=list)
    install: list[Line] = Field(default_factory=list)
    environment: dict[Annotated[str, Field(pattern=validation.IDENTIFIER)], Line] = Field(default_factory=dict)
    check: Line = ""
    probe: Line = ""
    launch: list[Line]
    telemetry: TelemetryLines = Field(default_factory=TelemetryLines)
    python: Line = ""
    overhead_minutes: Annotated[float, Field(ge=0, le=1440)] = 0.0
    settings: dict[Word, Setting] = Field(default_factory=dict)


@dataclass(frozen=True)
class Site:
    """A system with its settings decided.

    settings: those that have a value. missing: what to say about those that have none, by name. folder: where its
    job template is.
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
            said = f"node.ranks_per_node: expected a whole number of at least 1, got {shortened(value)}"
            raise self.document.error(("node", "ranks_per_node"), said)
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

    def text(self, text: str, loc: Loc, **known: Any) -> str:
        """A line of the system with its expressions evaluated; raises UsageError."""
        if not expressions.is_expression(text):
            return text
        line = str(self._expression(text, loc, known))
        if "\n" in line:
            raise self.document.error(
                loc, f"{'.'.join(map(str, loc))}: expected one line, came to be {shortened(line)}"
            )
        return line

    def lines(self, name: str, **known: Any) -> list[str]:
        """One of the system's lists of lines, evaluated, without those that come out empty."""
        found = [self.text(line, (name, k), **known) for k, line in enumerate(getattr(self.system, name))]
        return [line for line in found if line.strip()]

    @cached_property
    def environment(self) -> dict[str, str]:
        """What every job exports."""
        given = self.system.environment
        return {name: self.text(value, ("environment", name)) for name, value in given.items()}

    @cached_property
    def watch(self) -> Watch:
        """What watches every job; raises UsageError for a collector or an interval that is none."""
        given = self.system.telemetry
        text = {n: self.text(getattr(given, n), ("telemetry", n)) for n in ("collector", "interval_s", "omnistat")}
        collector = next((c for c in COLLECTORS if c == text["collector"]), None)
        if collector is None:
            said = f"telemetry.collector: expected one of {', '.join(COLLECTORS)}, got {shortened(text['collector'])}"
            raise self.document.error(("telemetry", "collector"), said + did_you_mean(text["collector"], COLLECTORS))
        try:
            interval_s = float(text["interval_s"])
        except ValueError:
            interval_s = 0.0
        if not 0.05 <= interval_s <= 3600:
            said = f"telemetry.interval_s: expected 0.05 to 3600 seconds, got {shortened(text['interval_s'])}"
            raise self.document.error(("telemetry", "interval_s"), said)
        modules = [self.text(line, ("telemetry", "modules", k)) for k, line in enumerate(given.modules)]
        config = self.text(given.config, ("telemetry", "config"))
        return Watch(collector, interval_s, modules, text["omnistat"], config)  # type: ignore[arg-type]

    @property
    def spares(self) -> int:
        """Nodes that each job asks for beyond those needed."""
        return max(0, int(self.settings.get("spares", 0)))

    def _expression(self, text: str, loc: Loc, known: Mapping[str, Any]) -> Any:
        try:
            return expressions.parse(text)({"settings": self.settings, **known})
        except ExpressionError as error:
            raise self.document.error(loc, f"{'.'.join(map(str, loc))}: {error}") from None


def load(path: Path, given: Mapping[str, str]) -> Site:
    """Read and check a system and decide its settings, by -S, HARNESS_* variables or the user's file."""
    document = layered(path, "systems")
    gather([_model_problems(document), _expression_problems(document), _scale_problems(document)])
    system = System.model_validate(document.data)
    template_folder = document.mark(("template",)).path.parent
    if not (template_folder / system.template).is_file():
        said = f"template {system.template!r} is not beside {document.mark(('template',)).path.name}"
        raise document.error(("template",), said)
    decided, missing = settings.decide(system.name, system.settings, given)
    site = Site(system, decided, missing, template_folder, document)
    _ = site.ranks_per_node
    if not missing:
        _ = site.environment, site.watch, [site.lines(name) for name in EARLY]
    return site


def _model_problems(document: Document) -> list[Problem]:
    try:
        System.model_validate(document.data)
    except ValidationError as error:
        return validation.problems(document, System, error)
    return []


def _scale_problems(document: Document) -> list[Problem]:
    name, known = document.data.get("scale"), shipped.names("systems")
    if not isinstance(name, str) or name in known or name == document.data.get("name"):
        return []
    return [document.problem(("scale",), f"scale: unknown system {shortened(name)}{did_you_mean(name, known)}")]


def _expression_problems(document: Document) -> list[Problem]:
    """Names and attributes in the system's lines that nothing gives a value to."""
    given = document.data.get("settings")
    own = {"settings": list(given) if isinstance(given, dict) else []}
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
        if loc[0] not in PLACES:
            said = f"expressions have no meaning here, but under {', '.join(PLACES)}"
        if said:
            found.append(document.problem(loc, f"{'.'.join(map(str, loc))}: {said}"))
    return found


def _texts(node: Any, loc: Loc) -> list[tuple[Loc, str]]:
    if isinstance(node, dict):
        return [found for key, value in node.items() for found in _texts(value, (*loc, key))]
    if isinstance(node, list):
        return [found for k, value in enumerate(node) for found in _texts(value, (*loc, k))]
    return [(loc, node)] if isinstance(node, str) else []
