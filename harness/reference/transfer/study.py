"""A downstream task learned from few labels, in ways of using a pretrained model and without (suites/transfer.yaml).

Events besides those of every program:
    task         the task, where its data comes from, what was left out of it; or what it needs, where there is none
    baseline     errors of composition alone, of the mean and of zero forces, for one draw of labels
    fit          one training: mode, labels, seed, steps, and its errors on the test set
Predictions on the test set stand in predictions/, one file a fit.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from harness.events import EventLog
from harness.reference import checkpoints
from harness.reference.batches import collate
from harness.reference.errors import InputError
from harness.reference.frames import Frames
from harness.reference.graphs import Graph, neighbour_graph
from harness.reference.models.foundation import FoundationModel
from harness.reference.options import build
from harness.reference.precision import precision
from harness.reference.structures import Array
from harness.reference.tasks.labelled import Labelled, split
from harness.reference.tasks.opening import Absent, open_task
from harness.reference.tasks.table import Task, task
from harness.reference.transfer.fitting import Budget, Fitted, Shelf, fit, predicted
from harness.reference.transfer.modes import BY_NAME, MODES, Mode, best_head, task_model, trained_parameters
from harness.reference.transfer.targets import Scaling, composition_baseline, fitted

PREDICTIONS = "predictions"
VALIDATION_SHARE = 0.2
MOST_VALIDATION = 200
SPLIT_SEED = 17


@dataclass(frozen=True)
class TransferConfig:
    """One task. files: a folder of official files, or none for what is shipped. modes: names of MODES. labels: how many
    are seen, a fifth of them for early stopping. seeds: draws of labels; where the task has official folds, draw k
    belongs to fold k. test_share, test_limit: of the structures, and at most so many, without official folds.
    steps and what follows: the budget of every mode alike.
    """

    task: str
    files: str = ""
    checkpoint: str = "painn-64"
    modes: tuple[str, ...] = tuple(m.name for m in MODES)
    labels: tuple[int, ...] = (10, 30, 100, 300, 1000, 3000, 5000)
    seeds: int = 3
    test_share: float = 0.2
    test_limit: int | None = None
    steps: int = 2000
    batch_size: int = 16
    learning_rate: float = 1e-3
    every: int = 50
    patience: int = 8
    force_weight: float = 2.0
    precision: str = "fp32"
    seed: int = 0

    @property
    def budget(self) -> Budget:
        """Of each training."""
        return Budget(self.steps, self.batch_size, self.learning_rate, self.every, self.patience, self.force_weight)


@dataclass
class Study:
    """A task at work."""

    config: TransferConfig
    task: Task
    labelled: Labelled
    source: FoundationModel
    log: EventLog
    folder: Path
    graphs: dict[int, Graph] = field(default_factory=dict)

    @property
    def extensive(self) -> bool:
        """Whether the target is an energy, that grows with the structure."""
        return self.task.kind != "property"

    @property
    def with_forces(self) -> bool:
        """Whether forces are learned too."""
        return self.task.kind == "energy_forces"

    def divided(self, draw: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """What labels may be drawn from, and the test set."""
        folds = self.labelled.folds
        if folds:
            pool, test = folds[draw % len(folds)]
        else:
            pool, test = split(self.labelled, SPLIT_SEED, self.config.test_share)
        if self.config.test_limit is not None and len(test) > self.config.test_limit:
            test = np.sort(np.random.default_rng(SPLIT_SEED).permutation(test)[: self.config.test_limit])
        return pool, test

    def shelf(self, places: NDArray[np.int64], scaling: Scaling) -> Shelf:
        """Structures with their labels beyond the baseline."""
        limits = self.source.config.cutoff, self.source.config.max_neighbours
        frames = self.labelled.frames[places]
        for k, structure in zip(places.tolist(), frames.structures(head=0), strict=True):
            if k not in self.graphs:
                self.graphs[k] = neighbour_graph(structure, cutoff=limits[0], max_neighbours=limits[1])
        graphs = [self.graphs[k] for k in places.tolist()]
        beyond = self.labelled.target[places] - scaling.baseline(frames)
        dtype = next(self.source.parameters()).dtype
        triplets = self.source.config.needs_triplets
        return Shelf(graphs, beyond, with_forces=self.with_forces, with_triplets=triplets, dtype=dtype)

    def draw(self, labels: int, draw: int) -> None:
        """All modes on one draw of labels."""
        pool, test = self.divided(draw)
        rng = np.random.default_rng([self.config.seed, draw])
        chosen = rng.permutation(pool)[:labels]
        held = min(MOST_VALIDATION, max(2, round(VALIDATION_SHARE * len(chosen))))
        validation, train = np.sort(chosen[:held]), np.sort(chosen[held:])
        frames = self.labelled.frames
        scaling = fitted(frames[train], self.labelled.target[train], extensive=self.extensive)
        test = test[scaling.knows(frames[test])]
        validation = validation[scaling.knows(frames[validation])]
        if not len(test) or not len(validation):
            self.log.write("baseline", labels=labels, seed=draw, why="no structure of known elements is left")
            return
        self.baselines(labels, draw, train, test, scaling)
        shelves = {
            name: self.shelf(k, scaling) for name, k in (("train", train), ("validation", validation), ("test", test))
        }
        head = best_head(self.source, collate(shelves["train"].graphs).composition)
        for name in self.config.modes:
            mode = BY_NAME[name]
            if not mode.trains and not self.extensive:
                continue  # a property that no head was trained on
            self.one(mode, labels, draw, head, scaling, shelves, test)

    def baselines(
        self, labels: int, draw: int, train: NDArray[np.int64], test: NDArray[np.int64], scaling: Scaling
    ) -> None:
        """Errors of what knows nothing of structure."""
        frames, target = self.labelled.frames, self.labelled.target
        by_composition = composition_baseline(frames[train], target[train], frames[test], extensive=self.extensive)
        zero = None
        if self.with_forces and frames.forces is not None:
            zero = float(np.abs(_forces(frames[test])).mean())
        self.log.write(
            "baseline", labels=labels, seed=draw, train=len(train), test=len(test),
            composition_mae=self._mae(by_composition - target[test], frames[test]),
            mean_mae=self._mae(self._mean(train, test) - target[test], frames[test]), zero_force_mae=zero,
        )  # fmt: skip

    def _mean(self, train: NDArray[np.int64], test: NDArray[np.int64]) -> Array:
        """The mean of the training labels; of energies, per atom."""
        frames, target = self.labelled.frames, self.labelled.target
        if not self.extensive:
            return np.full(len(test), target[train].mean())
        return np.asarray(frames.sizes[test] * (target[train] / frames.sizes[train]).mean())

    def _mae(self, off: Array, frames: Frames) -> float:
        """In the unit that the task is reported in."""
        return float(np.abs(off / frames.sizes if self.task.per_atom else off).mean())

    def one(
        self,
        mode: Mode,
        labels: int,
        draw: int,
        head: int,
        scaling: Scaling,
        shelves: dict[str, Shelf],
        test: NDArray[np.int64],
    ) -> None:
        """One training, unless an earlier attempt of this case has it already."""
        kept = self.folder / PREDICTIONS / f"{labels}-{draw}-{mode.name}.json"
        if kept.exists():
            self.log.write("fit", **json.loads(kept.read_text(encoding="utf-8")))
            return
        model = task_model(self.source, mode, head, keep_own=self.extensive, seed=self.config.seed + draw)
        if not (mode.pretrained and self.extensive):
            model.scale[0] = scaling.unit
        parameters = trained_parameters(model, mode)
        ended = Fitted(0, 0, float("nan"), 0.0)
        if mode.trains:
            for shelf in shelves.values():
                shelf.pooled = None
                if not mode.encoder and not self.with_forces:
                    shelf.remember(model)
            ended = fit(model, parameters, scaling, shelves["train"], shelves["validation"], self.config.budget, draw)
        found = self.tested(model, scaling, shelves["test"], test, kept.with_suffix(".npz"))
        for shelf in shelves.values():
            shelf.pooled = None
        row = {
            "mode": mode.name, "labels": labels, "seed": draw, "train": len(shelves["train"]),
            "validation": len(shelves["validation"]), "parameters": sum(p.numel() for p in parameters), "head": head,
            "steps": ended.steps, "best_step": ended.best_step, "seconds": round(ended.seconds, 3), **found,
        }  # fmt: skip
        part = kept.with_suffix(".part")
        part.write_text(json.dumps(row, allow_nan=False), encoding="utf-8")
        os.replace(part, kept)
        self.log.write("fit", **row)

    def tested(
        self, model: FoundationModel, scaling: Scaling, shelf: Shelf, places: NDArray[np.int64], path: Path
    ) -> dict[str, Any]:
        """Errors on the test set, each prediction being kept."""
        values, off = [], []
        with torch.no_grad():
            for piece in shelf.in_order():
                value, forces = predicted(model, scaling, piece)
                values.append(value.double().numpy())
                if forces is not None and piece.forces is not None:
                    off.append((forces - piece.forces).double().numpy())
        frames = self.labelled.frames[places]
        value = np.concatenate(values) + scaling.baseline(frames)
        target = self.labelled.target[places]
        np.savez_compressed(path, ids=frames.ids, target=target, predicted=value)
        per = frames.sizes if self.task.per_atom else 1
        error = (value - target) / per
        return {
            "test": len(target),
            "mae": float(np.abs(error).mean()),
            "rmse": float(np.sqrt((error**2).mean())),
            "force_mae": float(np.abs(np.concatenate(off)).mean()) if off else None,
        }


def _forces(frames: Frames) -> Array:
    assert frames.forces is not None
    return frames.forces


def run(parameters: dict[str, Any], log: EventLog, folder: Path) -> None:
    """The program: every mode, label count and draw of one task."""
    config = build(TransferConfig, parameters)
    unknown = [name for name in config.modes if name not in BY_NAME]
    if unknown:
        raise InputError(f"modes: no mode {unknown[0]!r}; there are {', '.join(BY_NAME)}")
    entry = task(config.task)
    described = {"task": entry.name, "title": entry.title, "target": entry.target, "unit": entry.unit}
    try:
        labelled = open_task(entry.name, Path(config.files).expanduser() if config.files else None)
    except Absent as absent:
        log.write("task", **described, available=False, needs=str(absent))
        return
    source, notes = checkpoints.named(config.checkpoint)
    source = precision(config.precision).of(source).eval().requires_grad_(False)
    known = [k for k, s in enumerate(labelled.frames.structures()) if bool(source.elements[s.numbers].all())]
    study = Study(config, entry, labelled, source, log, folder)
    log.write(
        "task", **described, available=True, role=labelled.role, level=labelled.level, official=labelled.official,
        structures=len(labelled.target), left_out=dict(labelled.left_out), folds=len(labelled.folds),
        unseen_by_checkpoint=len(labelled.target) - len(known), published=[asdict(p) for p in entry.published],
        per_atom=entry.per_atom, kind=entry.kind,
    )  # fmt: skip
    log.fact("model", {"checkpoint": config.checkpoint, "config": source.config.asdict(), "notes": sorted(notes)})
    log.fact("budget", asdict(config.budget))
    (folder / PREDICTIONS).mkdir(exist_ok=True)
    pool = min(len(study.divided(draw)[0]) for draw in range(config.seeds))
    counts = sorted({min(n, pool) for n in config.labels})
    total = len(counts) * config.seeds
    for done, (labels, draw) in enumerate((n, s) for n in counts for s in range(config.seeds)):
        study.draw(labels, draw)
        log.write("progress", done=done + 1, total=total, what="draws of labels")
