"""A downstream task learned from few labels, in ways of using a pretrained model and without (suites/transfer.yaml).

Events besides those of every program:
    task         the task, where its data comes from, what was left out of it; or what it needs, where there is none
    baseline     errors of composition alone, of the mean and of zero forces, for one draw of labels
    fit          one training: mode, labels, seed, steps, and its errors on the test set
Ranks share the draws of labels. Rows of both kinds stand in fits/ as soon as they are known, and are told when all
ranks are through; predictions on the test set stand there too, a file a fit.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.protocol.events import EventLog
from harness.reference.data.batch import collate
from harness.reference.data.structure import Array
from harness.reference.data.structure_table import Frames
from harness.reference.distributed import launch
from harness.reference.distributed.group import joined, own_device
from harness.reference.distributed.launch import share
from harness.reference.errors import InputError
from harness.reference.inference.precision import precision
from harness.reference.models import checkpoints
from harness.reference.models.foundation import FoundationModel
from harness.reference.options import build
from harness.reference.programs.transfer.finetune import Budget, Fitted, Shelf, fit, predicted
from harness.reference.programs.transfer.modes import BY_NAME, MODES, Mode, best_head, task_model, trained_parameters
from harness.reference.programs.transfer.splits import Draw, Drawing
from harness.reference.programs.transfer.target_scaling import composition_baseline, fitted
from harness.reference.tasks.catalog import task
from harness.reference.tasks.load import Absent, open_task

FITS = "fits"


@dataclass(frozen=True)
class TransferConfig:
    """One task. files: a folder of official files, or none for what is shipped. modes: names of MODES.

    labels: how many are seen, a fifth of them for early stopping. seeds: draws of labels; where the task has official
    folds, draw k belongs to fold k. subsets: at most so many of the task's parts, each learned by itself. test_share,
    test_limit: of the structures, and at most so many. steps and what follows: the budget of every mode alike.
    """

    task: str
    files: str = ""
    checkpoint: str = "painn-64"
    modes: tuple[str, ...] = tuple(m.name for m in MODES)
    labels: tuple[int, ...] = (10, 30, 100, 300, 1000, 3000, 5000)
    seeds: int = 3
    subsets: int | None = None
    test_share: float = 0.2
    test_limit: int | None = None
    steps: int = 2000
    batch_size: int = 16
    learning_rate: float = 1e-3
    every: int = 50
    patience: int = 8
    force_weight: float = 2.0
    precision: str = "fp32"
    backend: str = "gloo"
    device: str = "cpu"
    seed: int = 0
    timeout_s: float = 36_000.0

    @property
    def budget(self) -> Budget:
        """Of each training."""
        return Budget(self.steps, self.batch_size, self.learning_rate, self.every, self.patience, self.force_weight)


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
    unseen = sum(not bool(source.elements[s.numbers].all()) for s in labelled.frames.structures())
    log.write(
        "task", **described, available=True, role=labelled.role, level=labelled.level, kind=entry.kind,
        per_atom=entry.per_atom, structures=len(labelled), left_out=dict(labelled.left_out),
        folds=len(labelled.folds), splits=entry.splits, unseen_elements=unseen,
        published=[asdict(p) for p in entry.published],
    )  # fmt: skip
    log.fact("model", {"checkpoint": config.checkpoint, "config": source.config.asdict(), "notes": sorted(notes)})
    log.fact("budget", asdict(config.budget))
    (folder / FITS).mkdir(exist_ok=True)
    place = launch.find(os.environ)
    device = own_device(config.device, config.backend, place)
    drawing = Drawing(entry, labelled, source.config, config.test_share, config.test_limit, config.seed)
    study = Study(config, drawing, source.to(device), folder / FITS)
    with joined(place, backend=config.backend, device=device, timeout_s=config.timeout_s) as team:
        cases = study.cases()
        for done, case in enumerate(share(cases, place.rank, place.size)):
            study.draw(*case)
            log.write(
                "progress", done=min(len(cases), (done + 1) * place.size), total=len(cases), what="draws of labels"
            )
        team.meet()
    for path in sorted((folder / FITS).glob("*.json")):
        log.write(**json.loads(path.read_text(encoding="utf-8")))


@dataclass
class Study:
    """A task at work."""

    config: TransferConfig
    drawing: Drawing
    source: FoundationModel
    folder: Path

    def cases(self) -> list[tuple[str, int, int]]:
        """Subset, labels and number of each draw; where fewer labels are there than asked for, all of them, once."""
        subsets = self.drawing.subsets[: self.config.subsets]
        every = [
            (subset, min(labels, self.drawing.most(subset, k)), k)
            for labels in self.config.labels
            for subset in subsets
            for k in range(self.config.seeds)
        ]
        return list(dict.fromkeys(every))

    def draw(self, subset: str, labels: int, number: int) -> None:
        """All modes on one draw of labels."""
        drawn = self.drawing.draw(subset, labels, number)
        where = {"subset": subset, "labels": labels, "seed": number}
        if not len(drawn.test) or not len(drawn.validation):
            self._keep("baseline", where, {"why": "no structure is left whose elements have labels"})
            return
        self._keep("baseline", where, self._baselines(drawn))
        like = next(self.source.parameters())
        shelves = {name: self.drawing.shelf(getattr(drawn, name), drawn.scaling, like) for name in SHELVES}
        head = best_head(self.source, collate(shelves["train"].graphs).composition)
        for name in self.config.modes:
            mode = BY_NAME[name]
            if mode.trains or self.drawing.extensive:  # of a new property no head knows anything
                self._fit(mode, where, head, drawn, shelves)

    def _keep(self, event: str, where: dict[str, Any], row: dict[str, Any], mode: str = "") -> None:
        """Put what an event will tell on disk."""
        path = self._path(where, mode or event)
        part = path.with_suffix(".part")
        part.write_text(json.dumps({"event": event, **where, **row}, allow_nan=False), encoding="utf-8")
        os.replace(part, path)

    def _path(self, where: dict[str, Any], word: str) -> Path:
        parts = [where["subset"], f"{where['labels']:06d}", str(where["seed"]), word]
        return self.folder / f"{'-'.join(p for p in parts if p)}.json"

    def _baselines(self, drawn: Draw) -> dict[str, Any]:
        """Errors of what knows nothing of structure."""
        frames, target = self.drawing.labelled.frames, self.drawing.labelled.target
        train, test = frames[drawn.train], frames[drawn.test]
        known, right = target[drawn.train], target[drawn.test]
        extensive = self.drawing.extensive
        by_composition = composition_baseline(train, known, test, extensive=extensive)
        per_atom = test.sizes * (known / train.sizes).mean() if extensive else None
        mean = np.full(len(right), known.mean()) if per_atom is None else per_atom
        zero = float(np.abs(test.forces).mean()) if self.drawing.with_forces and test.forces is not None else None
        return {
            "train": len(known), "test": len(right), "composition_mae": self._mae(by_composition - right, test),
            "mean_mae": self._mae(mean - right, test), "zero_force_mae": zero,
        }  # fmt: skip

    def _mae(self, off: Array, frames: Frames) -> float:
        """In the unit that the task is reported in."""
        return float(np.abs(off / frames.sizes if self.drawing.task.per_atom else off).mean())

    def _fit(self, mode: Mode, where: dict[str, Any], head: int, drawn: Draw, shelves: dict[str, Shelf]) -> None:
        """One training, unless an earlier attempt of this case has it already."""
        if self._path(where, mode.name).exists():
            return
        seed = self.config.seed + where["seed"]
        model = task_model(self.source, mode, head, keep_own=self.drawing.extensive, seed=seed)
        if not (mode.pretrained and self.drawing.extensive):
            model.scale[0] = drawn.scaling.unit
        parameters = trained_parameters(model, mode)
        ended = Fitted(0, 0, float("nan"), 0.0)
        if mode.trains:
            if not mode.encoder and not self.drawing.with_forces:
                for shelf in shelves.values():
                    shelf.remember(model)
            ended = fit(
                model, parameters, drawn.scaling, shelves["train"], shelves["validation"], self.config.budget, seed
            )
        if not mode.trains:
            drawn = self._anchored(model, drawn, shelves["train"])
        found = self._tested(model, drawn, shelves["test"], self._path(where, mode.name).with_suffix(".npz"))
        for shelf in shelves.values():
            shelf.pooled = None
        row = {
            "mode": mode.name, "train": len(drawn.train), "validation": len(drawn.validation),
            "parameters": sum(p.numel() for p in parameters), "head": head, "steps": ended.steps,
            "best_step": ended.best_step, "seconds": round(ended.seconds, 3), **found,
        }  # fmt: skip
        self._keep("fit", where, row, mode.name)

    def _anchored(self, model: FoundationModel, drawn: Draw, shelf: Shelf) -> Draw:
        """The draw with reference energies for what the model, as it is, leaves of the training labels."""
        with torch.no_grad():
            told = [predicted(model, drawn.scaling, p)[0].double().cpu().numpy() for p in shelf.in_order()]
        frames, target = self.drawing.labelled.frames[drawn.train], self.drawing.labelled.target[drawn.train]
        return replace(drawn, scaling=fitted(frames, target - np.concatenate(told), extensive=True))

    def _tested(self, model: FoundationModel, drawn: Draw, shelf: Shelf, path: Path) -> dict[str, Any]:
        """Errors on the test set, each prediction being kept."""
        values, off = [], []
        with torch.no_grad():
            for piece in shelf.in_order():
                told, forces = predicted(model, drawn.scaling, piece)
                values.append(told.double().cpu().numpy())
                if forces is not None and piece.forces is not None:
                    off.append((forces - piece.forces).double().cpu().numpy())
        labelled = self.drawing.labelled
        frames, target = labelled.frames[drawn.test], labelled.target[drawn.test]
        value = np.concatenate(values) + drawn.scaling.baseline(frames)
        np.savez_compressed(path, ids=labelled.official_ids[drawn.test], target=target, predicted=value)
        error = (value - target) / (frames.sizes if self.drawing.task.per_atom else 1)
        return {
            "test": len(target),
            "mae": float(np.abs(error).mean()),
            "rmse": float(np.sqrt((error**2).mean())),
            "force_mae": float(np.abs(np.concatenate(off)).mean()) if off else None,
        }


SHELVES = ("train", "validation", "test")
