"""Which structures of a task are learned from, which stop the learning, and which it is tested on."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from harness.reference.data.neighbours import NeighbourList, build_neighbour_list
from harness.reference.models.config import ModelConfig
from harness.reference.programs.transfer.finetune import TaskData
from harness.reference.programs.transfer.target_scaling import TargetScaling, fit_scaling
from harness.reference.tasks.catalog import Task
from harness.reference.tasks.dataset import Fold, Indices, TaskDataset, split_task

VALIDATION_SHARE = 0.2
MOST_VALIDATION = 200
SPLIT_SEED = 17


@dataclass(frozen=True)
class LabelSplit:
    """Places of structures in a task's data. scaling: fitted on the training labels alone."""

    train: Indices
    validation: Indices
    test: Indices
    scaling: TargetScaling


@dataclass
class TaskSplits:
    """A task's data and how it is divided; graphs are made once."""

    task: Task
    labelled: TaskDataset
    model: ModelConfig
    test_share: float
    test_limit: int | None
    seed: int
    graphs: dict[int, NeighbourList] = field(default_factory=dict)

    @property
    def extensive(self) -> bool:
        """Whether the target is an energy, that grows with the structure."""
        return self.task.kind != "property"

    @property
    def with_forces(self) -> bool:
        """Whether forces are learned too."""
        return self.task.kind == "energy_forces"

    @property
    def subsets(self) -> list[str]:
        """The parts that are learned by themselves."""
        return [str(name) for name in np.unique(self.labelled.subset)]

    def divided(self, subset: str, number: int) -> Fold:
        """What labels may be drawn from, and the test set: of an official fold, or of a split that never changes."""
        folds = self.labelled.folds
        if folds:
            pool, test = folds[number % len(folds)]
        else:
            pool, test = split_task(self.labelled, seed=SPLIT_SEED, test_share=self.test_share)
        pool, test = (k[self.labelled.subset[k] == subset] for k in (pool, test))
        if self.test_limit is not None and len(test) > self.test_limit:
            test = np.sort(np.random.default_rng(SPLIT_SEED).permutation(test)[: self.test_limit])
        return pool, test

    def most(self, subset: str, number: int) -> int:
        """How many labels there are to draw."""
        return len(self.divided(subset, number)[0])

    def draw(self, subset: str, labels: int, number: int) -> LabelSplit:
        """So many labels, a fifth of them for validation."""
        pool, test = self.divided(subset, number)
        chosen = np.random.default_rng([self.seed, number]).permutation(pool)[:labels]
        held = min(MOST_VALIDATION, max(2, round(VALIDATION_SHARE * len(chosen))))
        validation, train = np.sort(chosen[:held]), np.sort(chosen[held:])
        frames, target = self.labelled.frames, self.labelled.target
        scaling = fit_scaling(frames[train], target[train], extensive=self.extensive)
        validation, test = (k[scaling.knows(frames[k])] for k in (validation, test))
        return LabelSplit(train, validation, test, scaling)

    def shelf(self, places: Indices, scaling: TargetScaling, like: Tensor) -> TaskData:
        """Structures with their labels beyond the baseline."""
        frames = self.labelled.frames[places]
        for k, structure in zip(places.tolist(), frames.structures(head=0), strict=True):
            if k not in self.graphs:
                limit = self.model.max_neighbours
                self.graphs[k] = build_neighbour_list(structure, cutoff=self.model.cutoff, max_neighbours=limit)
        return TaskData(
            [self.graphs[k] for k in places.tolist()],
            self.labelled.target[places] - scaling.baseline(frames),
            with_forces=self.with_forces,
            with_triplets=self.model.needs_triplets,
            like=like,
        )
