"""System: where to measure, from systems/*.yaml."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from harness.config import resources, settings
from harness.config.language import expressions, validation
from harness.config.language.document import Document, Loc, Problem, gather
from harness.config.language.evaluation import ExpressionError, NotYetKnown, Placeholder
from harness.config.language.inheritance import layered
from harness.config.system_file import System, TelemetryLines
from harness.protocol.errors import UsageError, did_you_mean, shortened

# What the lines of a system may read besides `settings`.
CASE_FACTS = ("nodes", "ranks", "ranks_per_node")
SETUP_FACTS = ("package",)
NODE_FACTS = ("ranks_per_node", "cores", "accelerators")
# Where expressions may stand, and which of these are known before there is a case.
EARLY = ("directives", "modules", "prepare", "stage")
IN_JOBS = ("modules", "prepare", "environment", "stage", "launch", "telemetry")
PLACES = ("node", "chunk", "environment", "install", "launch", "telemetry", *EARLY)
COLLECTORS = ("omnistat", "sampler", "none")
# What stands for these as long as the settings that decide them have no value.
DEFAULTS = {name: TelemetryLines.model_fields[name].default for name in ("collector", "interval_s")}
PLAIN = re.compile(r"[\w.-]+", re.ASCII)
# The option by which each scheduler's command puts variables into the environment of a job.
HAND_OVER = {"slurm": "--export=ALL,", "pbs": "-v "}


@dataclass(frozen=True)
class Watch:
    """A system's telemetry with its settings decided; see TelemetryLines."""

    collector: Literal["omnistat", "sampler", "none"]
    interval_s: float
    modules: list[str]
    omnistat: str
    config: str


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
            if needed := self.missing_in(value):  # what a case measures depends on it
                said = "; ".join(self.missing[name] for name in needed)
                raise self.document.error(("node", "ranks_per_node"), f"node.ranks_per_node: {said}")
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

    @property
    def nodes_allowed(self) -> int | None:
        """The most nodes that a case may use, those that are spare being left; None: no limit is known."""
        most = self.system.limits.nodes
        return None if most is None else most - self.spares

    def minutes_allowed(self, nodes: int) -> float | None:
        """The site's walltime limit for a job of so many nodes; None: no limit is known."""
        return next((w.minutes for w in self.system.limits.walltime if nodes <= w.nodes), None)

    def require_settings(self) -> None:
        """Raise UsageError that names every setting which has no value and needs one."""
        if self.missing:
            raise UsageError("\n".join(self.missing.values()))

    def missing_in(self, text: object) -> list[str]:
        """Return the settings without a value that an expression reads."""
        if not isinstance(text, str) or not expressions.is_expression(text):
            return []
        read = {name for space, name in expressions.parse(text).attributes if space == "settings"}
        return [name for name in self.missing if name in read]

    def text(self, text: str, loc: Loc, **known: Any) -> str:
        """A line of the system with its expressions evaluated; raises UsageError.

        A setting without a value stands in it as the variable of the job's environment that gives it.
        """
        if not expressions.is_expression(text):
            return text
        try:
            line = str(self._expression(text, loc, known))
        except NotYetKnown:
            given = " ".join(f"-S {name}=..." for name in self.missing_in(text))
            return f"${{GFM_HARNESS_UNDECIDED:?write this script again with {given}}}"
        if "\n" in line:
            raise self.document.error(
                loc, f"{'.'.join(map(str, loc))}: expected one line, came to be {shortened(line)}"
            )
        return line

    def lines(self, name: str, **known: Any) -> list[str]:
        """One of the system's lists of lines, evaluated, without those that come out empty.

        A directive with a setting that has no value is left out, since only the scheduler reads it.
        """
        given = enumerate(getattr(self.system, name))
        kept = [(k, line) for k, line in given if name != "directives" or not self.missing_in(line)]
        found = [self.text(line, (name, k), **known) for k, line in kept]
        return [line for line in found if line.strip()]

    def requests(self, parts: Collection[str] = IN_JOBS) -> list[str]:
        """Return shell lines that end a script with what to set, where these parts need a setting that has no value."""
        return [
            f'# {name}: {self.system.settings[name].help}\n: "${{{variable}:?it gives the setting {name}, which is'
            f' missing: set it in the environment}}"'
            for name, variable in self._asked(parts).items()
        ]

    @cached_property
    def options(self) -> str:
        """What a person who submits a script adds to the scheduler's command, for the settings that have no value."""
        words = []
        named = {"settings": {**self.settings, **{n: Placeholder(n.upper()) for n in self.missing}}}
        for line in filter(self.missing_in, self.system.directives):
            with suppress(ExpressionError):
                words.append(str(expressions.parse(line)(named)))
        asked = [f"{variable}={name.upper()}" for name, variable in self._asked(IN_JOBS).items()]
        if asked:
            words.append(HAND_OVER.get(self.system.scheduler, "") + ",".join(asked))
        return " ".join(words)

    def _asked(self, parts: Collection[str]) -> dict[str, str]:
        """The settings without a value that parts of the system read, and the variables that give them in a job."""
        texts = [text for loc, text in _texts(self.document.data, ()) if loc[0] in parts]
        needed = {name for text in texts for name in self.missing_in(text)}
        return {name: settings.variable_of(name) for name in self.missing if name in needed}

    @cached_property
    def chunk(self) -> str:
        """What a PBS job asks for on each node, as `select` has it: `:ncpus=8:ngpus=4`."""
        shape = self.system.node
        node = {"ranks_per_node": self.ranks_per_node, "cores": shape.cores or 0, "accelerators": shape.accelerators}
        words = []
        for name, given in self.system.chunk.items():
            if not self.missing_in(given):
                value = self.text(str(given), ("chunk", name), node=node)
                if not PLAIN.fullmatch(value):
                    said = f"chunk.{name}: expected letters, digits and any of ._-, came to be {shortened(value)}"
                    raise self.document.error(("chunk", name), said)
                words.append(f":{name}={value}")
        return "".join(words)

    @cached_property
    def environment(self) -> dict[str, str]:
        """What every job exports."""
        given = self.system.environment
        return {name: self.text(value, ("environment", name)) for name, value in given.items()}

    @cached_property
    def watch(self) -> Watch:
        """What watches every job; raises UsageError for a collector or an interval that is none."""
        given = self.system.telemetry
        known = given.model_copy(update={n: DEFAULTS[n] for n in DEFAULTS if self.missing_in(getattr(given, n))})
        text = {n: self.text(getattr(known, n), ("telemetry", n)) for n in ("collector", "interval_s", "omnistat")}
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
        value = str(self.settings.get("spares", 0))
        if not (value.isascii() and value.isdigit() and len(value) < 10):
            said = f"settings.spares: expected a whole number of at least 0, got {shortened(value)}"
            raise self.document.error(("settings", "spares"), said)
        return int(value)

    def _expression(self, text: str, loc: Loc, known: Mapping[str, Any]) -> Any:
        stand_ins = {name: Placeholder(f"${{{settings.variable_of(name)}}}") for name in self.missing}
        try:
            return expressions.parse(text)({"settings": {**self.settings, **stand_ins}, **known})
        except NotYetKnown:
            raise
        except ExpressionError as error:
            raise self.document.error(loc, f"{'.'.join(map(str, loc))}: {error}") from None


def load(path: Path, given: Mapping[str, str]) -> Site:
    """Read and check a system and decide its settings, by -S, HARNESS_* variables or the user's file."""
    document = layered(path, "systems")
    gather([_model_problems(document), _expression_problems(document), _scale_problems(document)])
    system = System.model_validate(document.data)
    template_folder = document.mark(("template",)).path.parent
    if not any((place / system.template).is_file() for place in (template_folder, resources.folder("systems"))):
        said = f"template {system.template!r} is neither beside {document.mark(('template',)).path.name} nor shipped"
        raise document.error(("template",), said)
    decided, missing = settings.decide(system.name, system.settings, given)
    site = Site(system, decided, missing, template_folder, document)
    _ = site.ranks_per_node, site.spares, site.chunk, site.environment, site.watch
    _ = [site.lines(name) for name in EARLY]
    return site


def _model_problems(document: Document) -> list[Problem]:
    try:
        System.model_validate(document.data)
    except ValidationError as error:
        return validation.problems(document, System, error)
    return []


def _scale_problems(document: Document) -> list[Problem]:
    name, known = document.data.get("scale"), resources.names("systems")
    if not isinstance(name, str) or name in known or name == document.data.get("name"):
        return []
    return [document.problem(("scale",), f"scale: unknown system {shortened(name)}{did_you_mean(name, known)}")]


def _expression_problems(document: Document) -> list[Problem]:
    """Names and attributes in the system's lines that nothing gives a value to."""
    given = document.data.get("settings")
    own = {"settings": list(given) if isinstance(given, dict) else []}
    allowed = {"launch": {**own, "case": CASE_FACTS}, "install": {**own, "setup": SETUP_FACTS}}
    allowed["chunk"] = {**own, "node": NODE_FACTS}
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
