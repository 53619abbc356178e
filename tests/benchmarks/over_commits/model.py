"""The reference model on 16 random structures: neighbour lists, energies, forces, and a step of training."""

from __future__ import annotations

from functools import cache
from typing import Any

from .sampling import Benchmark, find_first, skip_if_missing

NEIGHBOUR_LIST = (
    "harness.reference.data.neighbours.build_neighbour_list",
    "harness.reference.data.neighbours.neighbour_graph",
    "harness.reference.graphs.neighbour_graph",
)
BATCH, WIDTH, TIMES = 16, 32, 3


@cache
def make_structures() -> Any:
    with skip_if_missing():
        random_structures = find_first(
            "harness.reference.datasets.random_structures.make_random_structures",
            "harness.reference.datasets.random_structures.random_structures",
            "harness.reference.datasets.random_box.random_structures",
        )
    return random_structures(BATCH, atoms=(2, 40))


@cache
def make_model_and_batch() -> tuple[Any, Any]:
    """Return a model and a batch in single precision."""
    with skip_if_missing():
        import torch

        collate = find_first(
            "harness.reference.data.batch.build_batch",
            "harness.reference.data.batch.collate",
            "harness.reference.batches.collate",
        )
        neighbour_graph = find_first(*NEIGHBOUR_LIST)

        ModelConfig = find_first("harness.reference.models.config.ModelConfig")
        FoundationModel = find_first("harness.reference.models.foundation.FoundationModel")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    graphs = [neighbour_graph(s, cutoff=5.0, max_neighbours=20) for s in make_structures()]
    return FoundationModel(ModelConfig(hidden_dim=WIDTH)), collate(graphs).to("cpu", torch.float32)


class Neighbours(Benchmark):
    def setup(self) -> None:
        with skip_if_missing():
            neighbour_graph = find_first(*NEIGHBOUR_LIST)
        self.neighbour_graph = neighbour_graph
        make_structures()
        self.time_lists()

    def time_lists(self) -> None:
        for structure in make_structures() * TIMES:
            self.neighbour_graph(structure, cutoff=5.0, max_neighbours=20)


class Inference(Benchmark):
    def setup(self) -> None:
        with skip_if_missing():
            batched_heads = find_first(
                "harness.reference.inference.prediction.batched_heads", "harness.reference.inference.batched_heads"
            )
        self.model, self.batch = make_model_and_batch()
        self.model.requires_grad_(False)
        self.weights = self.model.gate(self.batch.composition)
        self.batched_heads = batched_heads
        name = "residual_energies" if hasattr(self.model, "residual_energies") else "beyond_references"
        self.residual_energies = getattr(self.model, name)
        self.time_energy()

    def time_energy(self) -> None:
        import torch

        with torch.no_grad():
            self.residual_energies(self.model.encode(self.batch, self.batch.positions, self.batch.shift), self.batch)

    def time_energy_and_forces(self) -> None:
        self.batched_heads(self.model, self.batch, self.weights)


class Training(Benchmark):
    def setup(self) -> None:
        with skip_if_missing():
            import torch

            own_head = find_first(
                "harness.reference.training.loss.predict_own_head",
                "harness.reference.training.loss.own_head",
                "harness.reference.losses.own_head",
            )
        self.own_head = own_head
        self.model, self.batch = make_model_and_batch()
        self.model.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6)
        self.time_step()

    def time_step(self) -> None:
        self.optimizer.zero_grad()
        batch = self.batch._replace(positions=self.batch.positions.detach().requires_grad_())
        energy, forces = self.own_head(self.model, batch, create_graph=True)
        (energy.abs().mean() + forces.abs().mean()).backward()
        self.optimizer.step()
