"""The model and the structures that a case of the ladder works on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from harness.reference.data.batch import Batch, collate
from harness.reference.data.neighbours import neighbour_graph
from harness.reference.data.structure import Structure
from harness.reference.datasets.heads import HEADS
from harness.reference.datasets.random_structures import random_structures
from harness.reference.datasets.shipped_sets import load_mini, mini_set
from harness.reference.datasets.user_files import read_file
from harness.reference.errors import InputError
from harness.reference.inference.precision import precision
from harness.reference.models import checkpoints
from harness.reference.models.config import ModelConfig
from harness.reference.models.foundation import FoundationModel
from harness.reference.options import build
from harness.reference.profiling import timing
from harness.reference.programs.ladder.config import LadderConfig

CRYSTAL_SETS = ("mptrj", "alexandria")
CLOSED = -7.0


def make_model(config: LadderConfig) -> tuple[FoundationModel, dict[str, object]]:
    """The model in double precision on the CPU, frozen, and what the report must say of it."""
    if config.checkpoint is not None:
        model, notes = checkpoints.named(config.checkpoint)
        about = {"checkpoint": config.checkpoint, "held_out": notes.get("held_out"), "trained": True}
    else:
        torch.manual_seed(config.seed)
        model = FoundationModel(build(ModelConfig, config.model))
        model.know_everything()
        fix_gate(model, config.open_heads)
        about = {"checkpoint": None, "trained": False, "open_heads_by_hand": config.open_heads}
    about["untrained_heads"] = [name for name, seen in zip(HEADS, model.trained.tolist(), strict=True) if not seen]
    about["config"] = model.config.asdict()
    about["parameters"] = sum(p.numel() for p in model.parameters())
    return model.double().requires_grad_(False).eval(), about


def fix_gate(model: FoundationModel, open_heads: int) -> None:
    """Give the first open_heads branches equal weight and all others next to none, whatever the composition."""
    with torch.no_grad():
        model.gate.last.weight.zero_()
        model.gate.last.bias.fill_(CLOSED)
        model.gate.last.bias[:open_heads] = 0.0


def make_structures(config: LadderConfig, count: int) -> list[Structure]:
    """The workload's first structures; fewer where it has no more."""
    if config.workload == "random":
        return random_structures(count, atoms=config.atoms)
    if config.workload == "crystals":
        pool = [s for name in CRYSTAL_SETS for s in load_mini(mini_set(name))]
        order = np.random.default_rng(config.seed).permutation(len(pool))
        return [pool[k] for k in order[:count]]
    if config.workload == "file":
        if config.structures is None:
            raise InputError("workload 'file' needs 'structures', the path of a file")
        return read_file(Path(config.structures), count)
    raise InputError(f"unknown workload {config.workload!r}; there are random, crystals, file")


def neighbour_limit(model: FoundationModel, config: LadderConfig) -> int | None:
    """At most so many neighbours an atom: the workload's own where it is the paper's, else the model's."""
    return config.max_neighbours if config.workload == "random" else model.config.max_neighbours


def prepare(
    structures: Sequence[Structure], model: FoundationModel, config: LadderConfig
) -> tuple[Batch, dict[str, float]]:
    """Structures -> batch on the device, and the seconds that each step took."""
    device = torch.device(config.device)
    limit = neighbour_limit(model, config)
    t0 = time.perf_counter()
    graphs = [neighbour_graph(s, cutoff=model.config.cutoff, max_neighbours=limit) for s in structures]
    t1 = time.perf_counter()
    batch = collate(graphs, with_triplets=model.config.needs_triplets)
    t2 = time.perf_counter()
    batch = batch.to(device, precision(config.precision).dtype)
    timing.synchronize(device)
    t3 = time.perf_counter()
    return batch, {"neighbours_s": t1 - t0, "collate_s": t2 - t1, "transfer_s": t3 - t2}
