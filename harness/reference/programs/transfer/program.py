"""A downstream task learned from few labels, in ways of using a pretrained model and without (suites/transfer.yaml).

Ranks share the draws of labels. The events of baselines and fits are files of fits/ as soon as they are known, and are
logged when all ranks are done; predictions on the test set are there too, one file for each fit.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from harness.protocol.events import CaseLog
from harness.protocol.programs.transfer import (
    Baseline,
    Budget,
    Fit,
    PublishedResult,
    TaskEvent,
    TransferFacts,
    TransferModel,
    TransferParameters,
)
from harness.protocol.records import Progress
from harness.reference.data.batch import build_batch
from harness.reference.data.structure import Array
from harness.reference.data.structure_table import StructureTable
from harness.reference.distributed import launch
from harness.reference.distributed.group import local_device, process_group
from harness.reference.distributed.launch import shard
from harness.reference.inference.precision import precision
from harness.reference.models import checkpoints
from harness.reference.models.foundation import FoundationModel
from harness.reference.programs.transfer.finetune import Fitted, TaskData, fit, predicted
from harness.reference.programs.transfer.modes import MODES_BY_NAME, Mode, best_head, task_model, trained_parameters
from harness.reference.programs.transfer.splits import LabelSplit, TaskSplits
from harness.reference.programs.transfer.target_scaling import composition_baseline, fit_scaling
from harness.reference.tasks.catalog import find_task
from harness.reference.tasks.load import TaskDataUnavailable, load_task

FITS = "fits"


def run(config: TransferParameters, log: CaseLog, folder: Path) -> None:
    """Fit every mode, number of labels and draw of one task."""
    entry = find_task(config.task)
    described: dict[str, Any] = {k: getattr(entry, k) for k in ("title", "target", "unit")} | {"task": entry.name}
    try:
        labelled = load_task(entry.name, Path(config.files).expanduser() if config.files else None)
    except TaskDataUnavailable as absent:
        log.write(TaskEvent(**described, available=False, needs=str(absent)))
        return
    source, notes = checkpoints.load_named(config.checkpoint)
    source = precision(config.precision).apply(source).eval().requires_grad_(False)
    unseen = sum(not bool(source.elements[s.numbers].all()) for s in labelled.frames.structures())
    log.write(
        TaskEvent(
            **described, available=True, role=labelled.role, level=labelled.level, kind=entry.kind,
            per_atom=entry.per_atom, structures=len(labelled), left_out=dict(labelled.left_out),
            folds=len(labelled.folds), splits=entry.splits, unseen_elements=unseen,
            published=[PublishedResult(**asdict(p)) for p in entry.published],
        )
    )  # fmt: skip
    budget = msgspec.convert({k: getattr(config, k) for k in Budget.__struct_fields__}, Budget)
    model = TransferModel(checkpoint=config.checkpoint, config=source.config.asdict(), notes=sorted(notes))
    log.record_facts(TransferFacts(model=model, budget=budget))
    (folder / FITS).mkdir(exist_ok=True)
    place = launch.detect_rank(os.environ)
    device = local_device(config.device, config.backend, place)
    drawing = TaskSplits(entry, labelled, source.config, config.test_share, config.test_limit, config.seed)
    study = TransferStudy(config, budget, drawing, source.to(device), folder / FITS)
    with process_group(place, backend=config.backend, device=device, timeout_s=config.timeout_s) as team:
        cases = study.cases()
        for done, case in enumerate(shard(cases, place.rank, place.size)):
            study.draw(*case)
            ended = min(len(cases), (done + 1) * place.size)
            log.write(Progress(done=ended, total=len(cases), what="draws of labels"))
        team.barrier()
    for path in sorted((folder / FITS).glob("*.json")):
        log.replay(json.loads(path.read_text(encoding="utf-8")))


@dataclass
class TransferStudy:
    """A task at work."""

    config: TransferParameters
    budget: Budget
    drawing: TaskSplits
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
        where: dict[str, Any] = {"subset": subset, "labels": labels, "seed": number}
        if not len(drawn.test) or not len(drawn.validation):
            why = "no structure is left whose elements have labels"
            self._save(Baseline(**where, test=len(drawn.test), why=why), self._path(where, "baseline"))
            return
        self._save(Baseline(**where, **self._baselines(drawn)), self._path(where, "baseline"))
        like = next(self.source.parameters())
        shelves = {name: self.drawing.shelf(getattr(drawn, name), drawn.scaling, like) for name in SHELVES}
        head = best_head(self.source, build_batch(shelves["train"].graphs).composition)
        for name in self.config.modes:
            mode = MODES_BY_NAME[name]
            if mode.trains or self.drawing.extensive:  # of a new property no head knows anything
                self._fit(mode, where, head, drawn, shelves)

    def _save(self, event: Baseline | Fit, path: Path) -> None:
        """Write an event to a file of its own."""
        part = path.with_suffix(".part")
        part.write_text(json.dumps(msgspec.to_builtins(event), allow_nan=False), encoding="utf-8")
        os.replace(part, path)

    def _path(self, where: dict[str, Any], word: str) -> Path:
        parts = [where["subset"], f"{where['labels']:06d}", str(where["seed"]), word]
        return self.folder / f"{'-'.join(p for p in parts if p)}.json"

    def _baselines(self, drawn: LabelSplit) -> dict[str, Any]:
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

    def _mae(self, off: Array, frames: StructureTable) -> float:
        """In the unit that the task is reported in."""
        return float(np.abs(off / frames.sizes if self.drawing.task.per_atom else off).mean())

    def _fit(
        self, mode: Mode, where: dict[str, Any], head: int, drawn: LabelSplit, shelves: dict[str, TaskData]
    ) -> None:
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
                model,
                parameters,
                scaling=drawn.scaling,
                train=shelves["train"],
                validation=shelves["validation"],
                budget=self.budget,
                seed=seed,
            )
        if not mode.trains:
            drawn = self._anchored(model, drawn, shelves["train"])
        found = self._tested(model, drawn, shelves["test"], self._path(where, mode.name).with_suffix(".npz"))
        for shelf in shelves.values():
            shelf.pooled = None
        event = Fit(
            **where, mode=mode.name, train=len(drawn.train), validation=len(drawn.validation),
            parameters=sum(p.numel() for p in parameters), head=head, steps=ended.steps, best_step=ended.best_step,
            seconds=round(ended.seconds, 3), **found,
        )  # fmt: skip
        self._save(event, self._path(where, mode.name))

    def _anchored(self, model: FoundationModel, drawn: LabelSplit, shelf: TaskData) -> LabelSplit:
        """The draw with reference energies for what the model, as it is, leaves of the training labels."""
        with torch.no_grad():
            told = [predicted(model, drawn.scaling, p)[0].double().cpu().numpy() for p in shelf.in_order()]
        frames, target = self.drawing.labelled.frames[drawn.train], self.drawing.labelled.target[drawn.train]
        return replace(drawn, scaling=fit_scaling(frames, target - np.concatenate(told), extensive=True))

    def _tested(self, model: FoundationModel, drawn: LabelSplit, shelf: TaskData, path: Path) -> dict[str, Any]:
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
