"""A downstream task learned from few labels: parameters, events and facts."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field

from harness.protocol.parameters import BackendName, DeviceName, Parameters, PrecisionName, Share
from harness.protocol.records import (
    Config,
    Count,
    Counts,
    Error,
    EventRecord,
    Facts,
    NotNegative,
    Number,
    Part,
    PositiveCount,
    Seconds,
)
from harness.protocol.types import Count as ParameterCount
from harness.protocol.types import Positive, check_unique

TaskName = Literal[
    "qm9", "md17", "wiggle150", "ms25", "oqmd", "abx3", "matbench_dielectric", "matbench_jdft2d", "matbench_log_gvrh",
    "matbench_log_kvrh", "matbench_perovskites", "matbench_phonons",
]  # fmt: skip
ModeName = Literal["as_pretrained", "head_only", "frozen_encoder", "full", "scratch"]
MODES: tuple[ModeName, ...] = get_args(ModeName)


class TransferParameters(Parameters):
    """One downstream task from few labels, in several ways of using a pretrained model and without it."""

    task: TaskName
    """The task, by its name in the catalog."""
    files: str = ""
    """A folder of official files, in place of what is shipped."""
    checkpoint: str = "painn-64"
    """The pretrained model: a file, or the name of a shipped one."""
    modes: Annotated[tuple[ModeName, ...], Field(min_length=1), AfterValidator(check_unique)] = MODES
    """What of the pretrained model a task starts from, and what of it the task may change."""
    labels: Annotated[tuple[ParameterCount, ...], Field(min_length=1)] = (10, 30, 100, 300, 1000, 3000, 5000)
    """Numbers of labels, a fifth of which is for early stopping."""
    seeds: ParameterCount = 3
    """Draws of labels; where a task has official folds, draw k belongs to fold k."""
    subsets: ParameterCount | None = None
    """Parts of a task that are learned, each by itself, at most; null: all."""
    test_share: Share = 0.2
    """Share of the structures for the test, where there are no official folds."""
    test_limit: ParameterCount | None = None
    """Structures of the test at most; null: no limit."""
    steps: ParameterCount = 2000
    """Training steps at most."""
    batch_size: ParameterCount = 16
    """Structures of a step."""
    learning_rate: Positive = 1e-3
    """Largest learning rate."""
    every: ParameterCount = 50
    """Steps between looks at the validation error."""
    patience: ParameterCount = 8
    """Looks without a better error that end the training."""
    force_weight: Positive = 2.0
    """Weight of forces in the loss."""
    precision: PrecisionName = "fp32"
    """Precision of training."""
    backend: BackendName = "gloo"
    """Library of the process group."""
    device: DeviceName = "cpu"
    """Where the model runs."""
    seed: int = 0
    """Seed of weights and draws."""
    timeout_s: Positive = 36_000.0
    """Time that a rank waits for the others before it gives the run up."""


class PublishedResult(Part):
    """What a model has reached on the task, by its authors."""

    model: str
    value: Number
    unit: str
    train: Count
    """Structures that it was trained on."""
    source: str
    subset: str
    quantity: str | None = None
    spread: NotNegative | None = None


class TaskEvent(EventRecord, tag="task"):
    """The task, where its data comes from, and what was left out of it; or what it needs, where there is none."""

    task: str
    unit: str
    available: bool
    title: str | None = None
    target: str | None = None
    needs: str | None = None
    role: str | None = None
    level: str | None = None
    kind: str | None = None
    per_atom: bool | None = None
    structures: Count | None = None
    left_out: Counts | None = None
    folds: Count | None = None
    splits: str | None = None
    unseen_elements: Count | None = None
    published: list[PublishedResult] | None = None


class Baseline(EventRecord, tag="baseline"):
    """Errors of composition alone, of the mean and of zero forces, for one draw of labels."""

    subset: str
    labels: Count
    seed: Count
    test: Count
    train: Count | None = None
    composition_mae: Error | None = None
    mean_mae: Error | None = None
    zero_force_mae: Error | None = None
    why: str | None = None
    """Why there is nothing to learn from the draw."""


class Fit(EventRecord, tag="fit"):
    """One training, and its errors on the test set."""

    subset: str
    labels: Count
    seed: Count
    mode: str
    test: Count
    mae: Error | None
    force_mae: Error | None
    rmse: Error | None = None
    train: Count | None = None
    validation: Count | None = None
    parameters: Count | None = None
    head: Count | None = None
    """The branch that the task started from."""
    steps: Count | None = None
    best_step: Count | None = None
    """The step whose weights were kept."""
    seconds: Seconds | None = None


class TransferModel(Part):
    """The pretrained model."""

    checkpoint: str | None = None
    config: Config | None = None
    notes: list[str] | None = None
    """What its checkpoint has notes of."""


class Budget(Part):
    """What every training may take."""

    steps: PositiveCount
    batch_size: PositiveCount
    learning_rate: NotNegative
    every: PositiveCount
    patience: Count
    force_weight: NotNegative


class TransferFacts(Facts):
    """Facts of a task."""

    model: TransferModel | None = None
    budget: Budget | None = None


EVENTS = (TaskEvent, Baseline, Fit)
