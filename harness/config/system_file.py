"""The keys of a system (a YAML file in systems/), and its settings: from -S, HARNESS_* variables or the user's file."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from harness.config import yaml_loader
from harness.config.document import FILE, ONE_LINE, VARIABLE, KeyPath, raise_problems
from harness.protocol.errors import UsageError, did_you_mean, shorten
from harness.protocol.renamed import SETTINGS
from harness.protocol.types import Identifier, Minutes, Name, NonNegativeInt, PositiveFloat, PositiveInt, StrictModel
from harness.protocol.upgrade import find_new_name

PREFIX = "HARNESS_"
# Values become words of job scripts, in which a shell may only expand variables.
SAFE = re.compile(r"(?:[\w./:@%+=,~-]|\$[A-Za-z_]\w*|\$\{[A-Za-z_]\w*\})*", re.ASCII)
SAFE_CHARACTERS = "letters, digits, $NAME and any of ./:@%+=,~_-"
INTEGER = re.compile(r"[-+]?[0-9]{1,18}", re.ASCII)
DECIMAL = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?", re.ASCII)

Value = str | int | float


def check_safe(value: Value | None) -> Value | None:
    """Return the value unchanged; raise ValueError for text that a shell would interpret."""
    if isinstance(value, str) and not SAFE.fullmatch(value):
        raise ValueError(f"expected {SAFE_CHARACTERS}, got {shorten(value)}")
    return value


class Setting(StrictModel):
    """A value that the user may set, and must set if there is no default."""

    help: Annotated[str, Field(pattern=ONE_LINE)]
    """The meaning of the setting, in one line."""
    default: Annotated[Value | None, AfterValidator(check_safe)] = None
    """The value unless the user sets another one, which must have the same type."""
    affects_results: bool = False
    """Whether the setting changes the measurement, so that the ids of cases depend on it."""

    @model_validator(mode="after")
    def _check_default(self) -> Setting:
        if self.affects_results and self.default is None:
            raise ValueError("a setting with affects_results needs a default, as the ids of cases depend on its value")
        return self


def get_variable_name(name: str) -> str:
    """Return the environment variable of a setting."""
    return PREFIX + name.upper()


def describe_sources(system: str, name: str) -> str:
    """Return a text that lists the places where the user may give a value to a setting of a system."""
    return f"-S {name}=..., {get_variable_name(name)}, or `{system}: {{{name}: ...}}` in {get_user_settings_path()}"


def get_user_settings_path() -> Path:
    """Return the path of the user's settings file, which maps settings to values, or systems to such mappings."""
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "gfm-harness" / "settings.yaml"


def resolve_settings(
    system: str, declared: Mapping[str, Setting], options: Mapping[str, str]
) -> tuple[dict[str, Value], dict[str, str]]:
    """Return the values of settings, and a message to the user for each setting without one; raise UsageError.

    Args:
        system: The name of the system.
        declared: The settings of the system.
        options: The settings on the command line.
    """
    errors = [f"-S {_describe_unknown(name, system, declared)}" for name in options if name not in declared]
    for old, new in SETTINGS.items():
        if new in declared and old not in declared and get_variable_name(old) in os.environ:
            errors.append(f"{get_variable_name(old)} is now called {get_variable_name(new)}")
    user_values = _load_user_values(system, declared)
    values: dict[str, Value] = {}
    missing = {}
    for name, setting in declared.items():
        variable = get_variable_name(name)
        sources = ((f"-S {name}", options.get(name)), (variable, os.environ.get(variable)))
        source, text = next(((source, text) for source, text in sources if text is not None), ("", None))
        if text is not None:
            try:
                values[name] = _parse_value(source, setting, text)
            except UsageError as error:
                errors.append(str(error))
        elif name in user_values:
            values[name] = user_values[name]
        elif setting.default is not None:
            values[name] = setting.default
        else:
            sources_text = describe_sources(system, name)
            missing[name] = f"system {system!r} needs the setting {name!r} ({setting.help}): give {sources_text}"
    if errors:
        raise UsageError("\n".join(errors))
    return values, missing


def _load_user_values(system: str, declared: Mapping[str, Setting]) -> dict[str, Value]:
    """Return a system's settings in the user's file, where the system's section has precedence over the top level."""
    path = get_user_settings_path()
    if not path.is_file():
        return {}
    document = yaml_loader.load_yaml(path, may_be_empty=True, read=yaml_loader.read_text)
    system_values = document.data.get(system, {})
    problems = []
    if not isinstance(system_values, dict):
        problems.append(document.make_problem((system,), f"{system}: expected a mapping from settings to values"))
        system_values = {}
    raw = {
        (k,): v
        for k, v in document.data.items()
        if (k in declared or find_new_name(k, declared)) and k not in system_values
    }
    raw_values: dict[KeyPath, Any] = raw | {(system, name): value for name, value in system_values.items()}
    values = {}
    for key_path, value in raw_values.items():
        name = str(key_path[-1])
        if name not in declared:
            problems.append(document.make_problem(key_path, _describe_unknown(name, system, declared)))
        elif not isinstance(value, str):
            problems.append(document.make_problem(key_path, f"{name}: expected text or a number, got {shorten(value)}"))
        else:
            try:
                values[name] = _parse_value(name, declared[name], value)
            except UsageError as error:
                problems.append(document.make_problem(key_path, str(error)))
    raise_problems(problems)
    return values


def _describe_unknown(name: str, system: str, declared: Mapping[str, Setting]) -> str:
    if new := find_new_name(name, declared):
        return f"{name}: the setting is now called {new!r}"
    return f"{name}: no such setting of system {system!r}{did_you_mean(name, declared)}"


def _parse_value(source: str, setting: Setting, text: str) -> Value:
    """Convert the text to the type of the setting's default; raise UsageError whose message begins with the source."""
    default = setting.default
    if default is None or isinstance(default, str):
        if not SAFE.fullmatch(text) or (default is None and not text):
            raise UsageError(f"{source}: expected {SAFE_CHARACTERS}, got {shorten(text)}")
        return text
    if isinstance(default, int) and INTEGER.fullmatch(text):
        return int(text)
    if isinstance(default, float) and DECIMAL.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    kind = "a whole number" if isinstance(default, int) else "a number"
    raise UsageError(f"{source}: expected {kind}, such as {default!r}, got {shorten(text)}")


SingleLine = Annotated[str, Field(pattern=ONE_LINE)]
FileName = Annotated[str, Field(pattern=FILE, max_length=100)]
ResourceName = Annotated[str, Field(pattern=VARIABLE, max_length=60)]


def check_variable(name: str) -> str:
    """Return the name of an environment variable; raise ValueError for one that job scripts use themselves."""
    if name.islower() and not name.endswith("_proxy"):
        raise ValueError("job scripts use lower-case names themselves, except names that end in _proxy")
    return name


Variable = Annotated[str, Field(pattern=VARIABLE), AfterValidator(check_variable)]


class WalltimeLimit(StrictModel):
    """The walltime limit of jobs with at most a given number of nodes."""

    nodes: PositiveInt
    """The maximum number of nodes of such a job."""
    minutes: Minutes
    """The maximum minutes of such a job."""


class Limits(StrictModel):
    """The limits of a site, by which cases are packed into jobs."""

    nodes: PositiveInt | None = None
    """Maximum number of nodes of a job."""
    jobs: PositiveInt = 100
    """Maximum number of jobs in the queue."""
    array: NonNegativeInt = 0
    """Maximum number of tasks of a job array; 0: no arrays."""
    walltime: list[WalltimeLimit] = Field(default_factory=list)
    """Walltime limits, in ascending order of the number of nodes."""

    @model_validator(mode="after")
    def _check_order(self) -> Limits:
        sizes = [limit.nodes for limit in self.walltime]
        if sizes != sorted(set(sizes)):
            raise ValueError(f"walltime: node counts must ascend, got {sizes}")
        return self


class Node(StrictModel):
    """Ranks, cores and accelerators of one node."""

    ranks_per_node: int | str
    """Ranks that fill a node: one for each accelerator, or an expression with a setting."""
    cores: PositiveInt | None = None
    """The number of CPU cores of a node."""
    accelerators: NonNegativeInt = 0
    """The number of accelerators of a node."""
    accelerator: str = "none"
    """The vendor's name of the accelerators."""
    accelerator_memory_gb: PositiveFloat | None = None
    """The memory of each accelerator in gigabytes."""


class TelemetryTemplate(StrictModel):
    """The collector of energy and utilization that runs alongside jobs."""

    collector: SingleLine = "none"
    """`omnistat`, `sampler` (the ranks themselves) or `none`, or an expression with that value."""
    interval_s: SingleLine = "15"
    """Seconds between samples."""
    modules: list[SingleLine] = Field(default_factory=list)
    """Shell lines that make Omnistat available."""
    omnistat: SingleLine = '"omnistat-$tool"'
    """Command of the programs of Omnistat; `$tool` stands for usermode, annotate or query."""
    config: SingleLine = ""
    """Path of Omnistat's configuration file, in which `%p` stands for the precision of the job's cases."""


class System(StrictModel):
    """A machine: scheduler and job template, the lines that its jobs contain, its limits, and its settings."""

    name: Name
    """Name by which the system is selected."""
    overlay: Name | None = None
    """Name of the system whose overlay in a suite applies here; by default, the name of this system."""
    title: SingleLine
    """The name of the machine, in one line."""
    source: str = ""
    """Address of the site's documentation."""
    scheduler: Literal["local", "slurm", "pbs"]
    """The scheduler of its jobs; local: each job is a process group on this machine."""
    template: FileName
    """Jinja2 template of the job script: a file next to this one, or a shipped one."""
    node: Node
    """The cores, accelerators and ranks of one node."""
    backend: Literal["gloo", "nccl", "xccl"] = "gloo"
    """Communication backend of ranks: system.backend in a suite."""
    device: Literal["cpu", "cuda", "xpu"] = "cpu"
    """Device of ranks: system.device in a suite."""
    limits: Limits = Field(default_factory=Limits)
    """The limits of the site on nodes, walltime and jobs."""
    exclusive: bool = True
    """Whether jobs request exclusive nodes; times measured on shared nodes mean little."""
    chunk: dict[ResourceName, NonNegativeInt | SingleLine] = Field(default_factory=dict)
    """The resources that a PBS job requests on each node, such as ncpus and ngpus."""
    directives: list[SingleLine] = Field(default_factory=list)
    """Options of the scheduler in job scripts."""
    modules: list[SingleLine] = Field(default_factory=list)
    """Shell lines that load software."""
    prepare: list[SingleLine] = Field(default_factory=list)
    """Shell lines that run first in a job."""
    stage_in: list[SingleLine] = Field(default_factory=list)
    """Shell lines that copy the environment to the nodes."""
    install: list[SingleLine] = Field(default_factory=list)
    """Shell lines with which `harness setup` creates the environment."""
    environment: dict[Variable, SingleLine] = Field(default_factory=dict)
    """Variables that every job exports; values are text, so numbers are in quotes."""
    health_check: SingleLine = ""
    """Shell line that succeeds on a healthy node."""
    health_check_launcher: SingleLine = ""
    """Command that starts `health_check` once on each node."""
    launch: list[SingleLine]
    """Lines of the command that starts a case; the program and its arguments follow them."""
    telemetry: TelemetryTemplate = Field(default_factory=TelemetryTemplate)
    """The collector of energy and utilization."""
    python: SingleLine = ""
    """Python interpreter of jobs; if empty, the one that runs the harness."""
    overhead_minutes: Annotated[float, Field(ge=0, le=1440)] = 0.0
    """Minutes of walltime that a job needs in addition to its cases."""
    settings: dict[Identifier, Setting] = Field(default_factory=dict)
    """Values that the user sets with -S, HARNESS_* variables or a file; expressions read them as settings.NAME."""
