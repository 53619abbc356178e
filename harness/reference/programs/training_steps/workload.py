"""The model and the batches that training steps are timed on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from harness.protocol.programs.training_steps import (
    StepModel,
    StepWorkload,
    TrainingStepsFacts,
    TrainingStepsParameters,
)
from harness.protocol.records import Observed
from harness.reference.data.neighbours import NeighbourList, build_neighbour_list
from harness.reference.datasets.heads import HEADS
from harness.reference.datasets.random_structures import make_random_structures
from harness.reference.inference.precision import find_precision
from harness.reference.models.config import ModelConfig
from harness.reference.models.foundation import FoundationModel
from harness.reference.profiling.observe import observe
from harness.reference.training.loader import LabelledBatch
from harness.reference.training.loss import Labels, collate_labelled


def make_model(config: TrainingStepsParameters) -> FoundationModel:
    """Return a model in which all parameters but the gate's are trained, as in pretraining."""
    torch.manual_seed(config.seed)
    model = find_precision(config.precision).apply(FoundationModel(ModelConfig.from_parameters(config.model)))
    model.gate.requires_grad_(False)
    return model.to(config.device)


def make_batches(model: FoundationModel, config: TrainingStepsParameters) -> list[LabelledBatch]:
    """Return batches of random structures, dealt out to all heads, with labels from a normal distribution (eV, A)."""
    rng = np.random.default_rng(config.seed)
    dtype = find_precision(config.precision).dtype
    graphs: list[NeighbourList] = []
    for k, structure in enumerate(make_random_structures(config.batches * config.batch_size, atoms=config.atoms)):
        labelled = replace(
            structure,
            head=k % len(HEADS),
            energy=float(rng.normal() * len(structure)),
            forces=rng.normal(size=structure.positions.shape),
        )
        graphs.append(build_neighbour_list(labelled, cutoff=model.config.cutoff, max_neighbours=config.max_neighbours))
    batches = []
    for first in range(0, len(graphs), config.batch_size):
        references = torch.zeros_like(model.reference_energy, dtype=torch.float64, device="cpu")
        batch, labels = collate_labelled(
            graphs[first : first + config.batch_size], references, dtype, with_triplets=model.config.needs_triplets
        )
        batches.append((batch.to(config.device, dtype), Labels(*(t.to(config.device) for t in labels))))
    return batches


def describe(
    model: FoundationModel, batches: Sequence[LabelledBatch], config: TrainingStepsParameters
) -> TrainingStepsFacts:
    """Return facts of the model, of the workload, and of the hardware and software."""
    trained_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return TrainingStepsFacts(
        model=StepModel(config=model.config.asdict(), parameters=trained_parameters, trained=False),
        workload=StepWorkload(
            name="random",
            structures=config.batches * config.batch_size,
            atoms=sum(len(b.numbers) for b, _ in batches),
            edges=sum(len(b.receiver) for b, _ in batches),
            batches=config.batches,
            batch_size=config.batch_size,
            max_neighbours=config.max_neighbours,
        ),
        observed=observe(Observed, model, config.device, requested=config.precision),
    )
