"""The keys of a system, a file of systems/."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from harness.config import validation
from harness.config.settings import Setting
from harness.protocol.types import Identifier, Minutes, Name, NonNegativeInt, PositiveFloat, PositiveInt, StrictModel

SingleLine = Annotated[str, Field(pattern=validation.ONE_LINE)]
FileName = Annotated[str, Field(pattern=validation.FILE, max_length=100)]
ResourceName = Annotated[str, Field(pattern=validation.VARIABLE, max_length=60)]


def check_variable(name: str) -> str:
    """Return the name of an environment variable; raise ValueError for one that job scripts use themselves."""
    if name.islower() and not name.endswith("_proxy"):
        raise ValueError("job scripts use lower-case names themselves, except those that end in _proxy")
    return name


Variable = Annotated[str, Field(pattern=validation.VARIABLE), AfterValidator(check_variable)]


class WalltimeLimit(StrictModel):
    """The walltime of jobs of up to a number of nodes."""

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
    """Walltime by number of nodes, in ascending order."""

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
    """CPU cores."""
    accelerators: NonNegativeInt = 0
    """Number of accelerators."""
    accelerator: str = "none"
    """Name of the accelerator."""
    accelerator_memory_gb: PositiveFloat | None = None
    """Memory of each accelerator."""


class TelemetryTemplate(StrictModel):
    """The collector of energy and use that runs alongside jobs."""

    collector: SingleLine = "none"
    """`omnistat`, `sampler` (the ranks themselves) or `none`, or an expression with that value."""
    interval_s: SingleLine = "15"
    """Seconds between samples."""
    modules: list[SingleLine] = Field(default_factory=list)
    """Shell lines that make Omnistat available."""
    omnistat: SingleLine = '"omnistat-$tool"'
    """Command of Omnistat's programs; `$tool` is usermode, annotate or query."""
    config: SingleLine = ""
    """Its configuration file; `%p` in it stands for the precision of the job's cases."""


class System(StrictModel):
    """A machine: scheduler and job template, the lines that its jobs contain, its limits, and its settings."""

    name: Name
    """Name by which the system is selected."""
    scale: Name | None = None
    """System whose overlay in a suite's `scale` applies here; without it, the system itself."""
    title: SingleLine
    """The name of the machine, in one line."""
    source: str = ""
    """Address of the site's documentation."""
    scheduler: Literal["local", "slurm", "pbs"]
    """The scheduler of its jobs; local: each job is a process group on this machine."""
    template: FileName
    """Jinja2 template of the job script, a file next to this one."""
    node: Node
    """The shape of one node."""
    backend: Literal["gloo", "nccl", "xccl"] = "gloo"
    """Communication backend of ranks: system.backend in a suite."""
    device: Literal["cpu", "cuda", "xpu"] = "cpu"
    """Device of ranks: system.device in a suite."""
    limits: Limits = Field(default_factory=Limits)
    """The limits of the site."""
    exclusive: bool = True
    """Whether jobs request exclusive nodes; times measured on shared nodes mean little."""
    chunk: dict[ResourceName, NonNegativeInt | SingleLine] = Field(default_factory=dict)
    """What a PBS job requests on each node, such as ncpus and ngpus."""
    directives: list[SingleLine] = Field(default_factory=list)
    """Options of the scheduler in job scripts."""
    modules: list[SingleLine] = Field(default_factory=list)
    """Shell lines that load software."""
    prepare: list[SingleLine] = Field(default_factory=list)
    """Shell lines that run first in a job."""
    stage: list[SingleLine] = Field(default_factory=list)
    """Shell lines that copy the environment to the nodes."""
    install: list[SingleLine] = Field(default_factory=list)
    """Shell lines with which `harness setup` creates the environment."""
    environment: dict[Variable, SingleLine] = Field(default_factory=dict)
    """Variables that every job exports; values are text, so numbers are in quotes."""
    check: SingleLine = ""
    """Shell line that succeeds on a healthy node."""
    probe: SingleLine = ""
    """Command that starts `check` once on each node."""
    launch: list[SingleLine]
    """Command that starts a case."""
    telemetry: TelemetryTemplate = Field(default_factory=TelemetryTemplate)
    """The collector of energy and use."""
    python: SingleLine = ""
    """Interpreter in jobs; if empty, the one that runs the harness."""
    overhead_minutes: Annotated[float, Field(ge=0, le=1440)] = 0.0
    """Walltime of a job in addition to that of its cases."""
    settings: dict[Identifier, Setting] = Field(default_factory=dict)
    """Values that the user sets with -S, in HARNESS_* variables or in a file: settings.NAME in a line."""
