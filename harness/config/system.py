"""Load systems, the YAML files that say where to measure, check them, and resolve their settings."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from harness.config import expressions, resources, system_file
from harness.config.document import (
    Document,
    KeyPath,
    Problem,
    check_model,
    format_key_path,
    iter_strings,
    raise_problems,
)
from harness.config.evaluation import ExpressionError, Placeholder, ValueUnavailable
from harness.config.system_file import System, TelemetryTemplate
from harness.config.yaml_loader import load_with_bases
from harness.protocol.errors import UsageError, did_you_mean, shorten

__all__ = ["ResolvedSystem", "System", "TelemetryConfig", "load_system"]

# The namespaces, with their attributes, that the expressions of a section may read in addition to `settings`.
SECTION_ATTRIBUTES: dict[str, dict[str, Collection[str]]] = {
    "launch": {"case": ("nodes", "ranks", "ranks_per_node")},
    "install": {"setup": ("package",)},
    "chunk": {"node": ("ranks_per_node", "cores", "accelerators")},
}
# Sections that do not depend on a case.
CASE_INDEPENDENT_SECTIONS = ("directives", "modules", "prepare", "stage_in")
# Sections that become lines of job scripts.
JOB_SECTIONS = ("modules", "prepare", "environment", "stage_in", "launch", "telemetry")
# All sections that may contain expressions.
EXPRESSION_SECTIONS = ("node", "chunk", "environment", "install", "launch", "telemetry", *CASE_INDEPENDENT_SECTIONS)
Collector = Literal["omnistat", "sampler", "none"]
COLLECTORS: tuple[Collector, ...] = ("omnistat", "sampler", "none")
# The longest speed test, and the time that its start may take.
MAX_SPEED_TEST_S, SPEED_TEST_START_S = 120, 60
CHUNK_VALUE = re.compile(r"[\w.-]+", re.ASCII)
# The option with which each scheduler's command passes variables to a job.
EXPORT_OPTIONS = {"slurm": "--export=ALL,", "pbs": "-v "}


@dataclass(frozen=True)
class TelemetryConfig:
    """The rendered `telemetry` section of a system; see TelemetryTemplate."""

    collector: Collector
    interval_s: float
    modules: list[str]
    omnistat: str
    config: str


@dataclass(frozen=True)
class ResolvedSystem:
    """A system and the values of its settings."""

    definition: System
    """The content of the system's file."""
    settings: Mapping[str, Any]
    """The settings that have a value."""
    missing: Mapping[str, str]
    """The settings without a value, with a message to the user about each."""
    folder: Path
    """The folder of the file that names the job template; it is searched before the shipped templates."""
    document: Document
    """The system's file with the locations of its parts, for messages."""

    @cached_property
    def ranks_per_node(self) -> int:
        """The number of ranks that fill a node."""
        key_path, value = ("node", "ranks_per_node"), self.definition.node.ranks_per_node
        if isinstance(value, str):
            if missing := self._find_missing_settings(value):  # measurements depend on it
                raise self._make_error(key_path, "; ".join(self.missing[name] for name in missing))
            value = self._evaluate(value, key_path, {})
        if not isinstance(value, int) or value < 1:
            raise self._make_error(key_path, f"expected a whole number of at least 1, got {shorten(value)}")
        return value

    @cached_property
    def expression_values(self) -> dict[str, Any]:
        """The attributes of `system` in a suite."""
        node = self.definition.node
        return {
            "name": self.definition.name,
            "nodes": self.definition.limits.nodes or 1_000_000,
            "ranks_per_node": self.ranks_per_node,
            "cores_per_node": node.cores or 1,
            "accelerators_per_node": node.accelerators,
            "backend": self.definition.backend,
            "device": self.definition.device,
        }

    @cached_property
    def identifying_settings(self) -> dict[str, Any]:
        """The settings that change the measurement, which are part of the ids of cases."""
        return {name: value for name, value in self.settings.items() if self.definition.settings[name].affects_results}

    @property
    def max_nodes(self) -> int | None:
        """The maximum number of nodes of a case, without spare nodes; None if no limit is known."""
        limit = self.definition.limits.nodes
        return None if limit is None else limit - self.spare_nodes

    def get_max_minutes(self, nodes: int) -> float | None:
        """Return the site's walltime limit for a job with this number of nodes, or None if no limit is known."""
        return next((limit.minutes for limit in self.definition.limits.walltime if nodes <= limit.nodes), None)

    def require_settings(self) -> None:
        """Raise UsageError if any setting has no value."""
        if self.missing:
            raise UsageError("\n".join(self.missing.values()))

    def render_line(self, text: str, key_path: KeyPath, **namespaces: Any) -> str:
        """Render the expressions in a line of the system; raise UsageError if one is invalid or gives several lines.

        A setting without a value becomes the environment variable from which the job reads it. An expression that
        computes with such a setting becomes a shell expansion that ends the job with a message.
        """
        if not expressions.is_expression(text):
            return text
        try:
            line = str(self._evaluate(text, key_path, namespaces))
        except ValueUnavailable:
            options = " ".join(f"-S {name}=..." for name in self._find_missing_settings(text))
            return f"${{GFM_HARNESS_UNDECIDED:?write this script again with {options}}}"
        if "\n" in line:
            raise self._make_error(key_path, f"expected one line, got {shorten(line)}")
        return line

    def render_section(self, name: str, **namespaces: Any) -> list[str]:
        """Render the lines of a section, and leave out lines that become empty.

        A directive that needs a missing setting is left out, as only the scheduler reads directives.
        """
        lines = [
            (k, line)
            for k, line in enumerate(getattr(self.definition, name))
            if name != "directives" or not self._find_missing_settings(line)
        ]
        rendered = [self.render_line(line, (name, k), **namespaces) for k, line in lines]
        return [line for line in rendered if line.strip()]

    def render_setting_checks(self, sections: Collection[str] = JOB_SECTIONS) -> list[str]:
        """Return shell lines that end a script with a message if a setting that these sections need is missing."""
        return [
            f'# {name}: {self.definition.settings[name].help}\n: "${{{variable}:?is not set: export it with the value'
            f' of the setting {name}}}"'
            for name, variable in self._find_missing_variables(sections).items()
        ]

    @cached_property
    def submit_options(self) -> str:
        """Options for the missing settings, to add to the scheduler's command when a script is submitted by hand."""
        values = {"settings": {**self.settings, **{name: Placeholder(name.upper()) for name in self.missing}}}
        options = []
        for line in filter(self._find_missing_settings, self.definition.directives):
            with suppress(ExpressionError):
                options.append(str(expressions.parse(line)(values)))
        missing = self._find_missing_variables(JOB_SECTIONS)
        exports = [f"{variable}={name.upper()}" for name, variable in missing.items()]
        if exports:
            options.append(EXPORT_OPTIONS.get(self.definition.scheduler, "") + ",".join(exports))
        return " ".join(options)

    @cached_property
    def chunk(self) -> str:
        """The resources that a PBS job requests on each node, in the syntax of `select`: `:ncpus=8:ngpus=4`."""
        shape = self.definition.node
        node = {"ranks_per_node": self.ranks_per_node, "cores": shape.cores or 0, "accelerators": shape.accelerators}
        parts = []
        for name, template in self.definition.chunk.items():
            if not self._find_missing_settings(template):
                value = self.render_line(str(template), ("chunk", name), node=node)
                if not CHUNK_VALUE.fullmatch(value):
                    message = f"expected letters, digits and any of ._-, got {shorten(value)}"
                    raise self._make_error(("chunk", name), message)
                parts.append(f":{name}={value}")
        return "".join(parts)

    @cached_property
    def environment(self) -> dict[str, str]:
        """The variables that every job exports."""
        return {
            name: self.render_line(value, ("environment", name)) for name, value in self.definition.environment.items()
        }

    @cached_property
    def telemetry(self) -> TelemetryConfig:
        """The telemetry of every job, with defaults where settings are missing; raise UsageError if it is invalid."""
        template, default = self.definition.telemetry, TelemetryTemplate()
        text = {}
        for name in ("collector", "interval_s", "omnistat"):
            is_undecided = name != "omnistat" and self._find_missing_settings(getattr(template, name))
            text[name] = self.render_line(getattr(default if is_undecided else template, name), ("telemetry", name))
        collector = next((known for known in COLLECTORS if known == text["collector"]), None)
        if collector is None:
            got = f"{shorten(text['collector'])}{did_you_mean(text['collector'], COLLECTORS)}"
            raise self._make_error(("telemetry", "collector"), f"expected one of {', '.join(COLLECTORS)}, got {got}")
        try:
            interval_s = float(text["interval_s"])
        except ValueError:
            interval_s = 0.0
        if not 0.05 <= interval_s <= 3600:
            message = f"expected 0.05 to 3600 seconds, got {shorten(text['interval_s'])}"
            raise self._make_error(("telemetry", "interval_s"), message)
        modules = [self.render_line(line, ("telemetry", "modules", k)) for k, line in enumerate(template.modules)]
        config = self.render_line(template.config, ("telemetry", "config"))
        return TelemetryConfig(collector, interval_s, modules, text["omnistat"], config)

    @property
    def spare_nodes(self) -> int:
        """Spare nodes that each job requests."""
        value = str(self.settings.get("spare_nodes", 0))
        if not (value.isascii() and value.isdigit() and len(value) < 10):
            message = f"expected a whole number of at least 0, got {shorten(value)}"
            raise self._make_error(("settings", "spare_nodes"), message)
        return int(value)

    @property
    def speed_test_s(self) -> int:
        """Seconds for which each job tests the speed of its nodes; 0: no test."""
        value = str(self.settings.get("speed_test_s", 0))
        if not (value.isdecimal() and int(value) <= MAX_SPEED_TEST_S):
            message = f"expected a whole number from 0 to {MAX_SPEED_TEST_S}, got {shorten(value)}"
            raise self._make_error(("settings", "speed_test_s"), message)
        return int(value)

    @property
    def overhead_minutes(self) -> float:
        """Minutes of walltime that a job needs in addition to its cases."""
        test = self.speed_test_s
        return self.definition.overhead_minutes + (math.ceil((test + SPEED_TEST_START_S) / 60) if test else 0)

    def _find_missing_settings(self, text: object) -> list[str]:
        """Return the missing settings that an expression reads."""
        if not isinstance(text, str) or not expressions.is_expression(text):
            return []
        names = {name for namespace, name in expressions.parse(text).attributes if namespace == "settings"}
        return [name for name in self.missing if name in names]

    def _find_missing_variables(self, sections: Collection[str]) -> dict[str, str]:
        """Return the missing settings that sections read, and the variables from which a job reads them."""
        texts = [text for key_path, text in iter_strings(self.document.data) if key_path[0] in sections]
        needed = {name for text in texts for name in self._find_missing_settings(text)}
        return {name: system_file.get_variable_name(name) for name in self.missing if name in needed}

    def _evaluate(self, text: str, key_path: KeyPath, namespaces: Mapping[str, Any]) -> Any:
        variables = {name: Placeholder(f"${{{system_file.get_variable_name(name)}}}") for name in self.missing}
        try:
            return expressions.parse(text)({"settings": {**self.settings, **variables}, **namespaces})
        except ValueUnavailable:
            raise
        except ExpressionError as error:
            raise self._make_error(key_path, str(error)) from None

    def _make_error(self, key_path: KeyPath, message: str) -> UsageError:
        return self.document.make_error(key_path, f"{format_key_path(key_path)}: {message}")


def load_system(path: Path, options: Mapping[str, str]) -> ResolvedSystem:
    """Load and check a system and resolve its settings.

    Args:
        path: The system's file.
        options: Settings from the command line; they take precedence over HARNESS_* variables and the user's file.

    Raises:
        UsageError: the file or the settings have problems; the message has all of them.
    """
    document = load_with_bases(path, "systems")
    definition, problems = check_model(document, System)
    raise_problems([*problems, *_check_expressions(document), *_check_overlay(document)])
    assert definition is not None, "a system without problems is valid"
    source = document.locate(("template",)).path
    if not any(
        (folder / definition.template).is_file() for folder in (source.parent, resources.get_resource_dir("systems"))
    ):
        message = f"template {definition.template!r} is neither next to {source.name} nor shipped"
        raise document.make_error(("template",), message)
    values, missing = system_file.resolve_settings(definition.name, definition.settings, options)
    resolved = ResolvedSystem(definition, values, missing, source.parent, document)
    # everything that does not depend on a case is rendered now, so that its errors appear
    _ = (
        resolved.ranks_per_node,
        resolved.spare_nodes,
        resolved.speed_test_s,
        resolved.chunk,
        resolved.environment,
        resolved.telemetry,
    )
    _ = [resolved.render_section(name) for name in CASE_INDEPENDENT_SECTIONS]
    return resolved


def _check_overlay(document: Document) -> Iterator[Problem]:
    """Yield a problem if the key `overlay` names no system."""
    name, known = document.data.get("overlay"), resources.list_resources("systems")
    if isinstance(name, str) and name not in known and name != document.data.get("name"):
        yield document.make_problem(("overlay",), f"overlay: unknown system {shorten(name)}{did_you_mean(name, known)}")


def _check_expressions(document: Document) -> Iterator[Problem]:
    """Yield a problem for each expression that is invalid, is in the wrong section, or reads an unknown name."""
    declared = document.data.get("settings")
    names: dict[str, Collection[str]] = {"settings": list(declared) if isinstance(declared, dict) else []}
    for key_path, text in iter_strings(document.data):
        if not expressions.is_expression(text):
            continue
        message: str | None
        if key_path[0] not in EXPRESSION_SECTIONS:
            message = f"expressions are not supported here, only in {', '.join(EXPRESSION_SECTIONS)}"
        else:
            try:
                namespaces = names | SECTION_ATTRIBUTES.get(str(key_path[0]), {})
                message = expressions.parse(text).describe_name_error((), namespaces)
            except ExpressionError as error:
                message = str(error)
        if message:
            yield document.make_problem(key_path, f"{format_key_path(key_path)}: {message}")
