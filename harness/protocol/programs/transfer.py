"""Transfer to a downstream task with few labels: parameters, events and facts."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field

from harness.protocol.parameters import BackendName, DeviceName, Fraction, Parameters, PrecisionName
from harness.protocol.records import (
    Config,
    Count,
    Counts,
    Error,
    EventRecord,
    Facts,
    NonNegative,
    Number,
    Part,
    PositiveCount,
    Seconds,
)
from harness.protocol.types import NonNegativeInt, PositiveFloat, PositiveInt, check_unique

TaskName = Literal[
    "qm9", "md17", "wiggle150", "ms25", "oqmd", "abx3", "matbench_dielectric", "matbench_jdft2d", "matbench_log_gvrh",
    "matbench_log_kvrh", "matbench_perovskites", "matbench_phonons",
]  # fmt: skip
ModeName = Literal["as_pretrained", "head_only", "frozen_encoder", "full", "scratch"]
MODES: tuple[ModeName, ...] = get_args(ModeName)
MIN_LABELS = 3  # two to validate, one to train
LabelCount = Annotated[int, Field(ge=MIN_LABELS)]


class TransferParameters(Parameters):
    """One downstream task with few labels, learned with a pretrained model in several modes, and from scratch."""

    task: TaskName
    """The task, by its name in the catalog."""
    task_folder: str = ""
    """A folder of official files, instead of the shipped ones."""
    checkpoint: str = "painn-64"
    """The pretrained model: a file, or the name of a shipped one."""
    modes: Annotated[tuple[ModeName, ...], Field(min_length=1), AfterValidator(check_unique)] = MODES
    """Modes of transfer, which differ in the weights that are pretrained, and in those that are trained on the task."""
    labels: Annotated[tuple[LabelCount, ...], Field(min_length=1)] = (10, 30, 100, 300, 1000, 3000, 5000)
    """Numbers of labels; a fifth of them, and at least two, are for early stopping."""
    seeds: PositiveInt = 3
    """Number of random draws of the labels; if a task has official folds, draw k uses fold k."""
    subsets: PositiveInt | None = None
    """Maximum number of subsets of a task, each of which is learned separately; null: all."""
    test_fraction: Fraction = 0.2
    """Share of the structures for the test, if there are no official folds."""
    max_test_structures: PositiveInt | None = None
    """Maximum number of structures in the test; null: no limit."""
    steps: PositiveInt = 2000
    """Maximum number of training steps."""
    batch_size: PositiveInt = 16
    """Structures per step."""
    learning_rate: PositiveFloat = 1e-3
    """Maximum learning rate."""
    validation_interval_steps: PositiveInt = 50
    """Steps between evaluations of the validation error."""
    early_stopping_patience: PositiveInt = 8
    """Number of evaluations without a better error after which training ends."""
    force_weight: PositiveFloat = 2.0
    """Weight of forces in the loss."""
    precision: PrecisionName = "fp32"
    """Precision of training."""
    backend: BackendName = "gloo"
    """Library of the process group."""
    device: DeviceName = "cpu"
    """The device that runs the model."""
    seed: NonNegativeInt = 0
    """Seed of weights and draws."""
    timeout_s: PositiveFloat = 36_000.0
    """Seconds that a rank waits for the others before the run fails."""


class PublishedResult(Part):
    """A published result of a model on the task."""

    model: str
    value: Number
    unit: str
    train: Count
    """Number of structures that the model was trained on."""
    source: str
    subset: str
    quantity: str | None = None
    spread: NonNegative | None = None


class TaskEvent(EventRecord, tag="task"):
    """The task, the origin of its data and the structures left out; if there are no data, the files that it needs."""

    task: str
    unit: str
    available: bool
    title: str | None = None
    target: str | None = None
    needs: str | None = None
    data_origin: str | None = None
    level_of_theory: str | None = None
    kind: str | None = None
    per_atom: bool | None = None
    structures: Count | None = None
    excluded: Counts | None = None
    folds: Count | None = None
    splits: str | None = None
    structures_with_unseen_elements: Count | None = None
    published: list[PublishedResult] | None = None


class Baseline(EventRecord, tag="baseline"):
    """Errors of the composition model, of the mean and of zero forces, for one draw of labels."""

    subset: str
    labels: Count
    seed: Count
    test: Count
    train: Count | None = None
    composition_mae: Error | None = None
    mean_mae: Error | None = None
    zero_force_mae: Error | None = None
    reason: str | None = None
    """The reason why nothing can be learned from the draw."""


class Fit(EventRecord, tag="fit"):
    """One training on a draw of labels, and the errors of the model on the test set."""

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
    """The index of the pretrained head that the task started from."""
    steps: Count | None = None
    best_step: Count | None = None
    """The step whose weights were kept."""
    skipped_steps: Count | None = None
    """Steps that were skipped because their gradient was not finite."""
    duration_s: Seconds | None = None


class TransferModel(Part):
    """The pretrained model that is fine-tuned."""

    checkpoint: str | None = None
    config: Config | None = None
    notes: list[str] | None = None
    """Notes in the checkpoint."""
    message_backend: str | None = None
    unfused_reason: str | None = None
    """The reason why the fused operator did not compute the messages."""
    default_sums_reason: str | None = None
    """The reason why PyTorch's functions, not the C++ operators, computed sums over neighbours on a CPU."""


class Budget(Part):
    """The budget of every training."""

    steps: PositiveCount
    batch_size: PositiveCount
    learning_rate: NonNegative
    validation_interval_steps: PositiveCount
    early_stopping_patience: Count
    """Number of validations without a lower loss after which training ends."""
    force_weight: NonNegative


class TransferFacts(Facts):
    """Facts of a downstream task."""

    model: TransferModel | None = None
    budget: Budget | None = None


EVENTS = (TaskEvent, Baseline, Fit)
