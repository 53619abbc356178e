"""What a case may ask of transfer and screening: names, types and bounds, without torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from harness.protocol.parameters import ModelSizes, PrecisionName
from harness.protocol.types import Count, NotNegative, Positive, Strict, without_repeats

TaskName = Literal[
    "qm9", "md17", "wiggle150", "ms25", "oqmd", "abx3", "matbench_dielectric", "matbench_jdft2d", "matbench_log_gvrh",
    "matbench_log_kvrh", "matbench_perovskites", "matbench_phonons",
]  # fmt: skip
ModeName = Literal["as_pretrained", "head_only", "frozen_encoder", "full", "scratch"]


class TransferParameters(Strict):
    """One downstream task from few labels, in several ways; files: a folder of official files."""

    task: TaskName
    files: str | None = None
    checkpoint: str | None = None
    modes: Annotated[list[ModeName], AfterValidator(without_repeats)] | None = None
    labels: list[Count] | None = None
    seeds: Count | None = None
    subsets: Count | None = None
    test_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    test_limit: Count | None = None
    steps: Count | None = None
    batch_size: Count | None = None
    learning_rate: Positive | None = None
    every: Count | None = None
    patience: Count | None = None
    force_weight: Positive | None = None
    precision: PrecisionName | None = None
    backend: Literal["gloo", "nccl", "xccl"] | None = None
    device: Literal["cpu", "cuda", "xpu"] | None = None
    seed: int | None = None
    timeout_s: Positive | None = None


class Candidates(Strict):
    """What is screened: crystals of prototypes, or the paper's random structures."""

    kind: Literal["prototypes", "random"] | None = None
    elements: list[str] | None = None
    volumes: list[Positive] | None = None
    filters: Annotated[list[Literal["charge_balance", "no_duplicates"]], AfterValidator(without_repeats)] | None = None
    streams: Count | None = None
    per_stream: Count | None = None
    atoms: tuple[Count, Count] | None = None
    max_neighbours: Count | None = None


class Keep(Strict):
    """Of which candidates the results are kept: all, the count best by a column, or those between low and high."""

    what: Literal["all", "top", "within"] | None = None
    by: (
        Literal["energy_ev_per_atom", "beyond_ev_per_atom", "spread_ev_per_atom", "force_max_ev_per_a", "distance"]
        | None
    ) = None
    count: Count | None = None
    highest: bool | None = None
    low: float | None = None
    high: float | None = None
    most_distance: Positive | None = None


class Trust(Strict):
    """How far a screening's results are to be trusted, found out on a sample of its candidates."""

    sample: Count | None = None
    known_limit: Count | None = None
    false_alarm: Annotated[float, Field(gt=0, lt=1)] | None = None
    labelled: NotNegative | None = None
    label_seconds: Positive | None = None
    dropout: Annotated[float, Field(gt=0, lt=1)] | None = None
    draws: Count | None = None
    ensemble: list[str] | None = None
    relaxed: NotNegative | None = None
    relax_steps: Count | None = None


class ScreeningParameters(Strict):
    """A stream of candidates through a model on every rank; candidates: about how many of them.

    judges: the case screens nothing, and finds out how far to trust the screening that it comes after.
    """

    workload: Candidates
    checkpoint: str | None = None
    model: ModelSizes | None = None
    candidates: Count | None = None
    part: Count | None = None
    keep: Keep | None = None
    energy_only: bool | None = None
    distance: bool | None = None
    known_limit: Count | None = None
    edges: Count | None = None
    ahead: NotNegative | None = None
    commit_s: Annotated[float, Field(ge=0)] | None = None
    trust: Trust | None = None
    judges: bool | None = None
    messages: Literal["plain", "fused"] | None = None
    precision: PrecisionName | None = None
    compile: bool | None = None
    backend: Literal["gloo", "nccl", "xccl"] | None = None
    device: Literal["cpu", "cuda", "xpu"] | None = None
    seed: int | None = None
    timeout_s: Positive | None = None
