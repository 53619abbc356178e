"""What a file of systems/ may hold."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from harness.config.language import validation
from harness.config.settings import Setting
from harness.protocol.types import Count, Minutes, Name, Positive, Strict, Word

Line = Annotated[str, Field(pattern=validation.ONE_LINE)]
FileName = Annotated[str, Field(pattern=validation.FILE, max_length=100)]
Resource = Annotated[str, Field(pattern=validation.IDENTIFIER, max_length=60)]


def _free(name: str) -> str:
    if name.islower() and not name.endswith("_proxy"):
        raise ValueError("job scripts use names of small letters themselves, all but those that end in _proxy")
    return name


Variable = Annotated[str, Field(pattern=validation.IDENTIFIER), AfterValidator(_free)]


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


class System(Strict):
    """A machine: scheduler and job template, the lines that its jobs hold, its limits, and its settings.

    scale: the overlay of a suite's `scale` that applies here; without it, that of the system's own name. exclusive:
    whether jobs ask for nodes that nobody else uses, without which times mean little. chunk: what a PBS job asks for on
    each node, such as ncpus and ngpus. directives: scheduler options. modules, prepare: shell lines before anything
    runs. stage: shell lines that bring the environment to the nodes. python: the interpreter there; empty: the one that
    runs the harness. check: shell line that succeeds on a healthy node. probe: how it is started once a node. launch:
    how a case is started. install: shell lines by which `harness setup` makes the environment. overhead_minutes: what a
    job takes beside its cases. telemetry: what watches the jobs.
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
    exclusive: bool = True
    chunk: dict[Resource, Annotated[int, Field(ge=0)] | Line] = Field(default_factory=dict)
    directives: list[Line] = Field(default_factory=list)
    modules: list[Line] = Field(default_factory=list)
    prepare: list[Line] = Field(default_factory=list)
    stage: list[Line] = Field(default_factory=list)
    install: list[Line] = Field(default_factory=list)
    environment: dict[Variable, Line] = Field(default_factory=dict)
    check: Line = ""
    probe: Line = ""
    launch: list[Line]
    telemetry: TelemetryLines = Field(default_factory=TelemetryLines)
    python: Line = ""
    overhead_minutes: Annotated[float, Field(ge=0, le=1440)] = 0.0
    settings: dict[Word, Setting] = Field(default_factory=dict)
