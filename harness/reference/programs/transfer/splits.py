"""The splits of a task into training, validation and test structures."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from harness.reference.data.neighbours import NeighbourList
from harness.reference.models.config import ModelConfig
from harness.reference.programs.transfer.finetune import TaskData
from harness.reference.programs.transfer.target_scaling import TargetScaling, fit_scaling
from harness.reference.tasks.catalog import Task
from harness.reference.tasks.dataset import Fold, Indices, TaskDataset, split_task

VALIDATION_SHARE = 0.2
MAX_VALIDATION = 200
SPLIT_SEED = 17


@dataclass(frozen=True)
class LabelSplit:
    """A random selection (draw) of labelled structures of a task.

    Attributes:
        train: Positions of training structures in the dataset.
        validation: Positions of validation structures.
        test: Positions of test structures.
        scaling: The scaling, fitted to the training labels alone.
    """

    train: Indices
    validation: Indices
    test: Indices
    scaling: TargetScaling


@dataclass
class TaskSplits:
    """The dataset of a task and its splits.

    Attributes:
        task: The task.
        dataset: Structures and values.
        model: Configuration of the model, which determines the neighbours.
        test_fraction: Share of the test set, for a task without official splits.
        max_test_structures: Maximum size of the test set, or None.
        seed: Seed of the draws of labels.
        graphs: Cache of neighbour lists by position.
    """

    task: Task
    dataset: TaskDataset
    model: ModelConfig
    test_fraction: float
    max_test_structures: int | None
    seed: int
    graphs: dict[int, NeighbourList] = field(default_factory=dict)

    @property
    def extensive(self) -> bool:
        """Whether the target is an energy, which grows with the size of the structure."""
        return self.task.kind != "property"

    @property
    def with_forces(self) -> bool:
        """Whether forces are trained too."""
        return self.task.kind == "energy_forces"

    @property
    def subsets(self) -> list[str]:
        """The names of the subsets, which are trained separately."""
        return [str(name) for name in np.unique(self.dataset.subset)]

    def split(self, subset: str, number: int) -> Fold:
        """Return the pool, from which labelled structures are drawn, and the test set, as positions in the dataset.

        Args:
            subset: The subset.
            number: The number of the draw, which selects an official fold; without folds, the split is always the same.
        """
        folds = self.dataset.folds
        if folds:
            pool, test = folds[number % len(folds)]
        else:
            pool, test = split_task(self.dataset, seed=SPLIT_SEED, test_fraction=self.test_fraction)
        pool, test = (k[self.dataset.subset[k] == subset] for k in (pool, test))
        if self.max_test_structures is not None and len(test) > self.max_test_structures:
            test = np.sort(np.random.default_rng(SPLIT_SEED).permutation(test)[: self.max_test_structures])
        return pool, test

    def count_labels(self, subset: str, number: int) -> int:
        """Return the number of structures in the pool; arguments as in `split`."""
        return len(self.split(subset, number)[0])

    def draw(self, subset: str, labels: int, number: int) -> LabelSplit:
        """Select labelled structures from the pool at random; a fifth of them (2 to MAX_VALIDATION) are for validation.

        Args:
            subset: The subset.
            labels: Number of structures.
            number: The number of the draw.
        """
        pool, test = self.split(subset, number)
        indices = np.random.default_rng([self.seed, number]).permutation(pool)[:labels]
        count = min(MAX_VALIDATION, max(2, round(VALIDATION_SHARE * len(indices))))
        validation, train = np.sort(indices[:count]), np.sort(indices[count:])
        table, target = self.dataset.table, self.dataset.target
        scaling = fit_scaling(table[train], target[train], extensive=self.extensive)
        validation, test = (k[scaling.knows(table[k])] for k in (validation, test))
        return LabelSplit(train, validation, test, scaling)

    def build_data(self, indices: Indices, scaling: TargetScaling, like: Tensor) -> TaskData:
        """Return structures with their labels minus the baseline, in the data type and on the device of `like`."""
        table = self.dataset.table[indices]
        for k, structure in zip(indices.tolist(), table.structures(head=0), strict=True):
            if k not in self.graphs:
                self.graphs[k] = self.model.neighbour_spec.build_list(structure)
        return TaskData(
            [self.graphs[k] for k in indices.tolist()],
            self.dataset.target[indices] - scaling.baseline(table),
            with_forces=self.with_forces,
            with_triplets=self.model.needs_triplets,
            like=like,
        )
