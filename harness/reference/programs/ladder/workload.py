"""The model, the structures and the batches of a case of the ladder."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.protocol.events import CaseLog
from harness.protocol.programs.ladder import AutoBatchSize, LadderFacts, LadderModel, LadderParameters
from harness.reference.data.batch import Batch, build_batch
from harness.reference.data.neighbours import NeighbourSpec
from harness.reference.data.structure import Structure
from harness.reference.datasets.catalog import HEADS
from harness.reference.datasets.random_structures import make_random_structures
from harness.reference.datasets.shipped_sets import find_shipped_set, load_structures
from harness.reference.datasets.user_files import read_structures
from harness.reference.distributed.group import synchronize
from harness.reference.inference import prediction
from harness.reference.inference.precision import find_precision
from harness.reference.inference.prediction import Predict
from harness.reference.models import checkpoints
from harness.reference.models.config import ModelConfig
from harness.reference.models.coverage import check_elements
from harness.reference.models.foundation import FoundationModel
from harness.reference.profiling import timing
from harness.reference.profiling.memory import estimate_largest_batch, measure_free_bytes
from harness.reference.programs.ladder.stages import select_stages

# The shipped sets of the workload `crystals`.
CRYSTAL_SETS = ("mptrj", "alexandria")
CLOSED_LOGIT = -7.0  # logit of an inactive head in a fixed gate
PROBE_STRUCTURES = 4  # structures on which memory is measured to choose the batch size


def make_model(config: LadderParameters) -> tuple[FoundationModel, LadderModel]:
    """Return the model of a case in double precision on the CPU, with frozen weights, and the fact about it."""
    if config.checkpoint is not None:
        model, notes = checkpoints.load_named(config.checkpoint)
        test_errors: Any = notes.get("test_errors")
    else:
        torch.manual_seed(config.seed)
        model, test_errors = FoundationModel(ModelConfig.from_parameters(config.model)), None
        model.mark_all_elements_known()
        fix_gate(model, config.active_heads)
    fact = LadderModel(
        config=model.config.asdict(),
        trained=config.checkpoint is not None,
        parameters=sum(p.numel() for p in model.parameters()),
        checkpoint=config.checkpoint,
        test_errors=test_errors,
        untrained_heads=[name for name, trained in zip(HEADS, model.trained.tolist(), strict=True) if not trained],
        forced_active_heads=None if config.checkpoint is not None else config.active_heads,
    )
    return model.double().requires_grad_(False).eval(), fact


def fix_gate(model: FoundationModel, active_heads: int) -> None:
    """Set the gate to equal weights for the first `active_heads` heads, and to weights near zero for the others."""
    with torch.no_grad():
        model.gate.last.weight.zero_()
        model.gate.last.bias.fill_(CLOSED_LOGIT)
        model.gate.last.bias[:active_heads] = 0.0


def make_structures(config: LadderParameters, count: int) -> list[Structure]:
    """Return the first `count` structures of the workload, or all of them if it has fewer."""
    if config.workload == "random":
        return make_random_structures(count, atoms=config.atoms)
    if config.workload == "crystals":
        pool = [s for name in CRYSTAL_SETS for s in load_structures(find_shipped_set(name))]
        order = np.random.default_rng(config.seed).permutation(len(pool))
        return [pool[k] for k in order[:count]]
    assert config.structure_file is not None
    return read_structures(Path(config.structure_file), count)


def get_neighbour_spec(model: FoundationModel, config: LadderParameters) -> NeighbourSpec:
    """Return the definition of neighbours; its limit is the case's for random structures, otherwise the model's."""
    limit = config.max_neighbours if config.workload == "random" else model.config.max_neighbours
    return model.config.limit_neighbours(limit)


def prepare_batch(
    structures: Sequence[Structure], model: FoundationModel, config: LadderParameters
) -> tuple[Batch, dict[str, Any]]:
    """Build a batch on the device; return the batch, and the seconds of each step as fields of `LadderSample`."""
    device = torch.device(config.device)
    spec = get_neighbour_spec(model, config)
    t0 = time.perf_counter()
    graphs = [spec.build_list(s) for s in structures]
    t1 = time.perf_counter()
    batch = build_batch(graphs, with_triplets=model.config.needs_triplets)
    t2 = time.perf_counter()
    batch = batch.to(device, find_precision(config.precision).dtype)
    synchronize(device)
    t3 = time.perf_counter()
    return batch, {"neighbour_lists_s": t1 - t0, "collation_s": t2 - t1, "transfer_s": t3 - t2}


def make_groups(config: LadderParameters, model: FoundationModel, log: CaseLog) -> list[list[Structure]]:
    """Return the structures of each batch; raise InputError for an element that the model was not trained on."""
    size = choose_batch_size(config, model, log) if config.batch_size == "auto" else config.batch_size
    structures = make_structures(config, config.batches * size)
    if config.workload != "random":
        for structure in structures:
            check_elements(model, structure)
    return [structures[k : k + size] for k in range(0, len(structures), size)]


def choose_batch_size(config: LadderParameters, model: FoundationModel, log: CaseLog) -> int:
    """Return and log the number of structures of a batch that fits into the free memory.

    The number is extrapolated from a batch of PROBE_STRUCTURES structures in the uncompiled stage that needs the most
    memory; compiled stages need less.
    """
    device = torch.device(config.device)
    batch, _ = prepare_batch(make_structures(config, PROBE_STRUCTURES), model, config)
    weights = model.gate(batch.composition)
    eager: list[Predict] = [s.predict_eager() for s in select_stages(config) if s.compiler is None]
    eager = eager or [prediction.fused_gradient]
    peak = max(timing.measure_peak_bytes(lambda p=p: p(model, batch, weights), device) for p in eager)  # type: ignore[misc]
    free, structures = measure_free_bytes(device), len(batch.head)
    size = estimate_largest_batch(peak, structures, free)
    fact = AutoBatchSize(batch_size=size, free_bytes=free, probe_structures=structures, probe_peak_bytes=peak)
    log.record_facts(LadderFacts(auto_batch_size=fact))
    return size
