"""What BF16, FP32 and FP64 cost and bring: one backbone, equal seeds, equal batches (suites/precision.yaml).

Every precision starts from the same weights and sees the same batches; steps and predictions are timed in turn, so that
what else runs on the machine meets all alike. Events besides those of every program:
    sample      one training step or one round of predictions in one precision; task says which
    prediction  of the FP64-trained weights cast to a precision: errors of one head, against FP64 and against labels
    trained     errors of what was trained in a precision, on held-out structures, head by head
    module      how far the output of one module is from that in FP64, and how far its input was
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.protocol.events import EventLog
from harness.reference.datasets.collection import Corpus, Neighbourhood, parted
from harness.reference.datasets.heads import HEADS
from harness.reference.datasets.shipped_sets import MINI_SETS
from harness.reference.datasets.splitting.splits import SEED, SPLITS
from harness.reference.distributed.group import Team, joined, own_device, synchronize
from harness.reference.distributed.launch import Place
from harness.reference.errors import InputError
from harness.reference.inference.precision import PRECISIONS, Precision, observed, precision
from harness.reference.models import checkpoints
from harness.reference.models.config import ModelConfig
from harness.reference.models.foundation import FoundationModel
from harness.reference.options import build
from harness.reference.profiling import timing
from harness.reference.programs.precision.module_errors import module_errors
from harness.reference.storage.sampling.sampler import Recipe, Sampler
from harness.reference.training.evaluation import held_out
from harness.reference.training.loader import Feed, Labelled, adopted
from harness.reference.training.loss import GraphErrors, Objective, own_head
from harness.reference.training.optimizer import Optimization, OptimizerConfig

REFERENCE = "fp64"


@dataclass(frozen=True)
class StudyConfig:
    """One backbone in several precisions, the first of them fp64, which the others are held against.

    sets, held_out, split_seed, limit: as in training. steps: of training, the first `discard` not timed. rounds: of
    predictions over `predictions` held-out structures of each set, of the weights of a checkpoint where one is named
    and of those just trained in FP64 elsewhere.
    """

    precisions: tuple[str, ...] = tuple(PRECISIONS)
    model: dict[str, object] = field(default_factory=dict)
    sets: tuple[str, ...] = tuple(s.name for s in MINI_SETS)
    held_out: float = 0.1
    split_seed: int = SEED
    limit: int | None = None
    temperature: float = 2.0
    batch_size: int = 16
    steps: int = 100
    discard: int = 5
    rounds: int = 6
    predictions: int = 16
    checkpoint: str | None = None
    force_weight: float = 10.0
    learning_rate: float = 1e-3
    backend: str = "gloo"
    device: str = "cpu"
    seed: int = 0


@dataclass
class Contender:
    """One precision at work."""

    kind: Precision
    model: FoundationModel
    feed: Feed
    optimization: Optimization
    finite: bool = True


def run(parameters: dict[str, Any], log: EventLog, folder: Path) -> None:
    """The program: train in every precision, then predict with the weights trained in FP64, cast to every precision."""
    config = configure(parameters)
    device = own_device(config.device, config.backend, Place())
    model_config = build(ModelConfig, config.model)
    reach = Neighbourhood(model_config.cutoff, model_config.max_neighbours)
    parts = [parted(s, held_out=config.held_out, seed=config.split_seed, limit=config.limit) for s in config.sets]
    splits = {split: Corpus([p[split] for p in parts if len(p[split].samples)], reach) for split in SPLITS}
    contenders = [
        contender(precision(name), model_config, splits[SPLITS[0]], config, device) for name in config.precisions
    ]
    with joined(Place(), backend=config.backend, device=device, timeout_s=600) as team:
        describe(contenders, splits, config, log, device)
        train(contenders, config, log, device)
        evaluate(contenders, splits, log, team)
        predict(predicting(contenders[0], config, log), contenders, splits[SPLITS[2]], config, log, device)


def contender(
    kind: Precision, model_config: ModelConfig, training: Corpus, config: StudyConfig, device: torch.device
) -> Contender:
    """A model of the seed's weights, which single precision made and all others hold exactly."""
    torch.manual_seed(config.seed)
    model = kind.of(FoundationModel(model_config))
    recipe = Recipe(training.counts, "mixed", config.temperature, config.seed, config.steps * config.batch_size)
    sampler = Sampler(recipe, 1, config.batch_size)
    feed = Feed(training, sampler, kind.dtype, adopted(model, training), model_config.needs_triplets)
    model.gate.requires_grad_(False)
    model.to(device)
    weights = [*model.encoder.parameters(), *model.heads.parameters()]
    steps = OptimizerConfig(learning_rate=config.learning_rate, clip_norm=10.0)
    return Contender(kind, model, feed, Optimization(model, weights, steps, config.steps))


def describe(
    contenders: Sequence[Contender], splits: dict[str, Corpus], config: StudyConfig, log: EventLog, device: torch.device
) -> None:
    """Facts: the model, the data, types as they occur, and the memory of one step and one prediction."""
    first = contenders[0].model
    about = {"config": first.config.asdict(), "parameters": sum(p.numel() for p in first.parameters())}
    log.fact("model", about)
    sets = [
        {"set": d.name, "head": HEADS[d.head], "role": d.role, "level": d.level} for d in splits[SPLITS[0]].datasets
    ]
    log.fact("workload", {"sets": sets, "batch_size": config.batch_size, "steps": config.steps, "seed": config.seed})
    seen, memory = {}, []
    for c in contenders:
        labelled = c.feed.batch(c.feed.dealt(0, 0), device)
        seen[c.kind.name] = observed(c.model, labelled[0])
        calls = {"training": lambda c=c, x=labelled: loss_of(c, x, config).backward(),
                 "inference": lambda c=c, x=labelled: own_head(c.model, x[0], create_graph=False)}  # fmt: skip
        for task, call in calls.items():
            memory.append({"task": task, "precision": c.kind.name, "peak_bytes": timing.peak_bytes(call, device)})
        c.optimization.optimizer.zero_grad()
    log.fact("memory", memory)
    log.fact("observed", {"precisions": seen, "device": str(device), "threads": torch.get_num_threads(),
                          "torch": torch.__version__})  # fmt: skip


def loss_of(c: Contender, labelled: Labelled, config: StudyConfig) -> Tensor:
    """The paper's loss of one batch."""
    batch, labels = labelled
    objective = Objective(config.force_weight, config.batch_size)
    return objective(GraphErrors(c.model)(batch, labels), batch.head)


def train(contenders: Sequence[Contender], config: StudyConfig, log: EventLog, device: torch.device) -> None:
    """Every step in every precision, another first each time; one whose loss is no number takes no further part."""
    for step in range(config.steps):
        first = step % len(contenders)
        drawn = contenders[0].feed.dealt(step, 0)
        for c in [*contenders[first:], *contenders[:first]]:
            if not c.finite:
                continue
            labelled = c.feed.batch(drawn, device)
            losses: list[float] = []
            seconds = timing.seconds(partial(one_step, c, labelled, config, losses), device)
            c.finite = math.isfinite(losses[0])
            log.write(
                "sample", task="training", precision=c.kind.name, round=step, discarded=step < config.discard,
                structures=config.batch_size, seconds=seconds, loss=losses[0] if c.finite else None,
            )  # fmt: skip
        if step % 10 == 0:
            log.write("progress", done=step, total=config.steps, what="training steps in each precision")


def one_step(c: Contender, labelled: Labelled, config: StudyConfig, losses: list[float]) -> None:
    """Forward, backward, update; the loss is added to the list."""
    c.optimization.optimizer.zero_grad()
    loss = loss_of(c, labelled, config)
    loss.backward()
    c.optimization.step()
    losses.append(loss.item())


def evaluate(contenders: Sequence[Contender], splits: dict[str, Corpus], log: EventLog, team: Team) -> None:
    """Errors of each trained model in its own precision."""
    for c in contenders:
        c.model.eval().requires_grad_(False)
        if c.finite:
            rows = held_out(c.model, splits[SPLITS[0]], splits[SPLITS[2]], c.feed.references, team)
            log.write("trained", precision=c.kind.name, rows=rows)


def predicting(trained: Contender, config: StudyConfig, log: EventLog) -> FoundationModel:
    """The model whose predictions are compared: the checkpoint, or what was trained in FP64."""
    log.fact("predicting", {"checkpoint": config.checkpoint, "steps": None if config.checkpoint else config.steps})
    if config.checkpoint is None:
        return trained.model
    model, _ = checkpoints.named(config.checkpoint)
    return model.eval().requires_grad_(False).to(next(trained.model.parameters()).device)


def predict(
    model: FoundationModel,
    contenders: Sequence[Contender],
    test: Corpus,
    config: StudyConfig,
    log: EventLog,
    device: torch.device,
) -> None:
    """Predictions of one model in every precision: errors first, then rounds in turn."""
    models, batches = {}, {}
    for c in contenders:
        models[c.kind.name] = c.kind.of(copy.deepcopy(model))
        references = model.reference_energy.double().cpu()
        feed = Feed(test, c.feed.sampler, c.kind.dtype, references, model.config.needs_triplets)
        batches[c.kind.name] = list(feed.every(config.predictions, device))
    exact = [own_head(models[REFERENCE], batch, create_graph=False) for batch, _ in batches[REFERENCE]]
    for name, cast in models.items():
        for k, labelled in enumerate(batches[name]):
            log.write("prediction", precision=name, **errors_of(cast, labelled, exact[k], batches[REFERENCE][k]))
        if name != REFERENCE:
            for row in module_errors(models[REFERENCE], cast, batches[REFERENCE][0][0], batches[name][0][0]):
                log.write("module", precision=name, **row)
    names = list(models)
    total = sum(len(batch.head) for batch, _ in batches[REFERENCE])
    for number in range(config.rounds):
        for name in [*names[number % len(names) :], *names[: number % len(names)]]:
            synchronize(device)
            seconds = timing.seconds(partial(all_predictions, models[name], batches[name]), device)
            log.write("sample", task="inference", precision=name, round=number, discarded=False, structures=total,
                      seconds=seconds)  # fmt: skip
        log.write("progress", done=number + 1, total=config.rounds, what="rounds of predictions")


def all_predictions(model: FoundationModel, batches: Sequence[Labelled]) -> None:
    """Energy and forces of every batch."""
    for batch, _ in batches:
        own_head(model, batch, create_graph=False)


def errors_of(
    model: FoundationModel, labelled: Labelled, exact: tuple[Tensor, Tensor], reference: Labelled
) -> dict[str, Any]:
    """Of one batch of one head: errors against FP64 and against labels, eV/atom and eV/angstrom; None: no number."""
    energy, forces = (t.detach().double() for t in own_head(model, labelled[0], create_graph=False))
    exact_energy, exact_forces = (t.detach().double() for t in exact)
    batch, labels = reference
    known = labels.known.squeeze(1) > 0
    values = {
        "energy_off_mean_ev_per_atom": ((energy - exact_energy).abs() / batch.atoms).mean(),
        "energy_off_max_ev_per_atom": ((energy - exact_energy).abs() / batch.atoms).max(),
        "force_off_mean_ev_per_a": (forces - exact_forces).abs().mean(),
        "force_off_max_ev_per_a": (forces - exact_forces).abs().max(),
        "force_scale_ev_per_a": exact_forces.abs().max(),
        "energy_mae_ev_per_atom": ((energy - labels.beyond).abs() / batch.atoms).mean(),
        "force_mae_ev_per_a": (forces - labels.forces)[known].abs().mean(),
    }
    plain = {name: value.item() if bool(value.isfinite()) else None for name, value in values.items()}
    return {"head": HEADS[int(batch.head[0])], "structures": len(batch.head), **plain}


def configure(parameters: dict[str, Any]) -> StudyConfig:
    """The case's parameters, checked; raises InputError for what the program does not know."""
    config = build(StudyConfig, parameters)
    for name in config.precisions:
        precision(name)
    if (
        not config.precisions
        or config.precisions[0] != REFERENCE
        or len(set(config.precisions)) < len(config.precisions)
    ):
        raise InputError(f"precisions: expected {REFERENCE} first, and none twice")
    if min(config.steps - config.discard, config.rounds, config.predictions, config.batch_size) < 1:
        raise InputError("steps, rounds, predictions, batch_size: expected at least 1 of each, steps beyond `discard`")
    return config
