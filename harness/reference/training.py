"""Train the multi-task model on the shipped labelled sets, then its gate (the program of suites/checkpoint.yaml)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from harness.events import EventLog
from harness.reference import checkpoints
from harness.reference.batches import Batch, collate
from harness.reference.datasets import references
from harness.reference.datasets.heads import HEADS
from harness.reference.datasets.mini import MINI_SETS, load_mini, mini_set
from harness.reference.datasets.references import References, State
from harness.reference.datasets.splits import SEED, split_of
from harness.reference.errors import InputError
from harness.reference.frames import from_structures
from harness.reference.graphs import Graph, neighbour_graph
from harness.reference.models.config import ModelConfig
from harness.reference.models.foundation import FoundationModel
from harness.reference.options import build
from harness.reference.store.sampling import Recipe, Sampler
from harness.reference.structures import Structure

SCALE_FLOOR_EV = 0.05


@dataclass(frozen=True)
class TrainingConfig:
    """One short training run; rates per step, weights as in loss = MAE(E/atom) + force_weight MAE(F).

    Structures are drawn from all sets, weighed by count ** (1 / temperature); epoch_length of them, or as many as there
    are, make an epoch. limit: only the first structures of each set.
    """

    sets: tuple[str, ...] = tuple(s.name for s in MINI_SETS)
    epochs: int = 20
    epoch_length: int | None = None
    temperature: float = 1.0
    batch_size: int = 16
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    force_weight: float = 10.0
    clip_norm: float = 10.0
    ema_decay: float = 0.999
    gate_steps: int = 3000
    held_out: float = 0.1
    seed: int = 0
    split_seed: int = SEED
    limit: int | None = None
    compile: bool = True


@dataclass(frozen=True)
class Labels:
    """energy [g] eV, forces [n, 3] eV/angstrom, known [n, 1] 1 where forces are labelled."""

    energy: Tensor
    forces: Tensor
    known: Tensor


def fit_references(structures: Sequence[Structure], model: FoundationModel) -> None:
    """Set each head's reference energies and scale from its structures."""
    for head in {s.head for s in structures}:
        own = from_structures([s for s in structures if s.head == head])
        set_references(model, head, references.fit(partial(iter, [own])))


def set_references(model: FoundationModel, head: int, found: References) -> None:
    """Give a head its reference energies and scale; elements that its data lacks get 0."""
    model.reference_energy[head] = torch.from_numpy(np.nan_to_num(found.energy_ev))
    model.scale[head] = max(found.mae_ev_per_atom, SCALE_FLOOR_EV)
    model.trained[head] = True
    model.elements |= torch.from_numpy(found.state != State.ABSENT)


def labelled(graphs: Sequence[Graph], dtype: torch.dtype) -> tuple[Batch, Labels]:
    """A batch and its labels in one type."""
    structures = [g.structure for g in graphs]
    forces = [np.zeros_like(s.positions) if s.forces is None else s.forces for s in structures]
    known = [np.full((len(s), 1), s.forces is not None, dtype=float) for s in structures]
    labels = Labels(
        torch.tensor([s.energy for s in structures], dtype=dtype),
        torch.from_numpy(np.concatenate(forces)).to(dtype),
        torch.from_numpy(np.concatenate(known)).to(dtype),
    )
    return collate(graphs).to("cpu", dtype), labels


def own_head(model: FoundationModel, batch: Batch, *, create_graph: bool) -> tuple[Tensor, Tensor]:
    """Energy [g] and forces [n, 3] of each structure from the head of its own dataset."""
    positions = batch.positions.detach().requires_grad_()
    energies = model.all_energies(model.encode(batch, positions, batch.shift), batch)
    energy = energies.gather(1, batch.head.unsqueeze(1)).squeeze(1)
    (slope,) = torch.autograd.grad(energy.sum(), positions, create_graph=create_graph)
    return energy, -slope


def loss_parts(
    model: FoundationModel, batch: Batch, energy_label: Tensor, forces_label: Tensor, known: Tensor
) -> tuple[Tensor, Tensor]:
    """MAE of energy per atom in eV and of force components in eV/angstrom over the batch."""
    energy, forces = own_head(model, batch, create_graph=True)
    energy_mae = ((energy - energy_label) / batch.atoms).abs().mean()
    force_mae = ((forces - forces_label) * known).abs().sum() / (3.0 * known.sum()).clamp(min=1.0)
    return energy_mae, force_mae


def split(graphs: Sequence[Graph], held_out: float, seed: int) -> tuple[list[Graph], list[Graph]]:
    """Training and held-out graphs; all frames of a molecule, material, reaction or trajectory fall on one side."""
    groups = np.array([g.structure.group or g.structure.name for g in graphs])
    test = split_of(groups, shares=(1.0 - held_out, held_out), seed=seed) == 1
    return (
        [g for g, out in zip(graphs, test, strict=True) if not out],
        [g for g, out in zip(graphs, test, strict=True) if out],
    )


def train_model(model: FoundationModel, graphs: Sequence[Graph], config: TrainingConfig, log: EventLog) -> None:
    """Fit encoder and heads; the model ends with the moving average of its weights.

    Raises InputError when the loss is no longer finite.
    """
    by_head: dict[int, list[Graph]] = {}
    for graph in graphs:
        by_head.setdefault(graph.structure.head, []).append(graph)
    sets = list(by_head.values())
    recipe = Recipe(tuple(map(len, sets)), "mixed", config.temperature, config.seed, config.epoch_length)
    sampler = Sampler(recipe, 1, config.batch_size)
    parameters = [*model.encoder.parameters(), *model.heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    each = sampler.steps
    steps = config.epochs * each
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=steps, pct_start=0.1)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay))
    parts: Callable[..., tuple[Tensor, Tensor]] = loss_parts
    if config.compile:
        torch._dynamo.config.trace_autograd_ops = True
        parts = torch.compile(loss_parts, dynamic=True)
    done = 0
    for epoch in range(config.epochs):
        began = time.perf_counter()
        totals: NDArray[np.float64] = np.zeros(2)
        for step in range(each):
            drawn = sampler.batch(step, 0)
            picked = [sets[d][k] for d, k in zip(drawn.dataset.tolist(), drawn.index.tolist(), strict=True)]
            batch, labels = labelled(picked, torch.float32)
            energy_mae, force_mae = parts(model, batch, labels.energy, labels.forces, labels.known)
            loss = energy_mae + config.force_weight * force_mae
            if not torch.isfinite(loss):
                raise InputError(
                    f"the loss is {loss.item()} at step {done}, batch {[g.structure.name for g in picked]}"
                )
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm)
            optimizer.step()
            schedule.step()
            average.update_parameters(model)
            done += 1
            totals += [energy_mae.item(), force_mae.item()]
            if done % 20 == 0:
                log.write("progress", done=done, total=steps, what="training steps")
        sampler.advance(each)
        means = totals / each
        log.write(
            "sample",
            epoch=epoch,
            energy_mae_ev_per_atom=means[0],
            force_mae_ev_per_a=means[1],
            epoch_s=time.perf_counter() - began,
        )
    model.load_state_dict(average.module.state_dict())


def train_gate(model: FoundationModel, graphs: Sequence[Graph], config: TrainingConfig) -> float:
    """Fit the gate, all else frozen, so that the weighted sum of energies is that of the right branch.

    Energies count beyond the references, whose zeros lie a thousand eV/atom apart. Graphs are drawn as in training.
    Returns the mean absolute difference in eV/atom over the graphs.
    """
    batches = [collate(graphs[k : k + 64]).to("cpu", torch.float32) for k in range(0, len(graphs), 64)]
    with torch.no_grad():
        energies = torch.cat([model.all_energies(model.encode(b, b.positions, b.shift), b) for b in batches])
    composition = torch.cat([b.composition for b in batches])
    head = torch.cat([b.head for b in batches])
    beyond = energies - composition @ model.reference_energy.T.to(energies.dtype)
    per_atom = beyond / composition.sum(1, keepdim=True)
    right = per_atom.gather(1, head.unsqueeze(1))
    chance = head.bincount(minlength=len(HEADS)).float()[head] ** (1.0 / config.temperature - 1.0)
    optimizer = torch.optim.AdamW(model.gate.parameters(), lr=2e-3, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.gate_steps)
    generator = torch.Generator().manual_seed(config.seed)
    for _ in range(config.gate_steps):
        picked = torch.multinomial(chance, 256, replacement=True, generator=generator)
        mixed = (model.gate(composition[picked]) * per_atom[picked]).sum(1, keepdim=True)
        loss = (mixed - right[picked]).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return float(((model.gate(composition) * per_atom).sum(1, keepdim=True) - right).abs().mean())


def evaluate(model: FoundationModel, graphs: Sequence[Graph]) -> list[dict[str, object]]:
    """Per head on held-out structures: errors, beside those of composition alone and of zero forces.

    Structures with elements that the head was not trained on are counted and left out: nothing is known of them.
    """
    rows: list[dict[str, object]] = []
    for entry in MINI_SETS:
        held_out = [g for g in graphs if g.structure.head == entry.branch]
        known = model.reference_energy[entry.branch] != 0
        own = [g for g in held_out if known[g.structure.numbers].all()]
        if not own:
            continue
        energy_error, plain_error, force_error, plain_force = [], [], [], []
        for first in range(0, len(own), 32):
            batch, labels = labelled(own[first : first + 32], torch.float32)
            energy, forces = own_head(model, batch, create_graph=False)
            reference = (batch.composition * model.reference_energy[batch.head]).sum(1)
            energy_error.append(((energy.detach() - labels.energy) / batch.atoms).abs())
            plain_error.append(((reference - labels.energy) / batch.atoms).abs())
            there = labels.known.squeeze(1) > 0
            force_error.append((forces - labels.forces)[there].abs().flatten())
            plain_force.append(labels.forces[there].abs().flatten())
        has_forces = sum(len(f) for f in plain_force) > 0
        rows.append(
            {
                "head": entry.head,
                "set": entry.name,
                "role": entry.role,
                "level": entry.level,
                "structures": len(own),
                "unseen_elements": len(held_out) - len(own),
                "energy_mae_ev_per_atom": float(torch.cat(energy_error).mean()),
                "composition_only_ev_per_atom": float(torch.cat(plain_error).mean()),
                "force_mae_ev_per_a": float(torch.cat(force_error).mean()) if has_forces else None,
                "zero_force_ev_per_a": float(torch.cat(plain_force).mean()) if has_forces else None,
            }
        )
    return rows


def run(parameters: dict[str, Any], log: EventLog, folder: Path) -> None:
    """The program: train, train the gate, evaluate, and leave model.pt in the run folder."""
    model_config = build(ModelConfig, parameters.get("model", {}))
    config = build(TrainingConfig, parameters.get("training", {}))
    torch.manual_seed(config.seed)
    structures = [s for name in config.sets for s in load_mini(mini_set(name))[: config.limit]]
    graphs = [
        neighbour_graph(s, cutoff=model_config.cutoff, max_neighbours=model_config.max_neighbours) for s in structures
    ]
    train, test = split(graphs, config.held_out, config.split_seed)
    model = FoundationModel(model_config)
    fit_references([g.structure for g in train], model)
    log.fact("untrained_heads", [h for k, h in enumerate(HEADS) if not model.trained[k]])
    train_model(model, train, config, log)
    gate_error = train_gate(model, train, config)
    held_out = evaluate(model, test)
    log.fact("held_out", held_out)
    log.fact("gate_error_ev_per_atom", gate_error)
    notes = {"training": config.__dict__, "held_out": held_out, "gate_error_ev_per_atom": gate_error}
    checkpoints.save(model, folder / "model.pt", notes)
