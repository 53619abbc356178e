"""A downstream task trained on few labels, from a pretrained model in several modes, and from scratch.

A draw is a random selection of labelled structures; the ranks share the draws (suites/transfer.yaml). Each baseline and
each fit is written to a file in fits/ at once, and is logged as an event when all ranks have finished; the predictions
of each fit on the test set are in fits/ too.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from harness.protocol.events import CaseLog
from harness.protocol.programs.transfer import (
    MIN_LABELS,
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
from harness.protocol.upgrade import convert_event
from harness.reference.data.batch import build_batch
from harness.reference.data.structure import Array
from harness.reference.data.structure_table import StructureTable
from harness.reference.distributed import launch
from harness.reference.distributed.group import process_group, select_device
from harness.reference.distributed.launch import shard
from harness.reference.errors import InputError, NotFinite
from harness.reference.inference.precision import find_precision
from harness.reference.models import checkpoints
from harness.reference.models.foundation import FoundationModel
from harness.reference.models.message_backend import use_fused_messages
from harness.reference.ops import segment_sums
from harness.reference.programs.transfer.finetune import (
    FitResult,
    TaskData,
    fit,
    predict,
)
from harness.reference.programs.transfer.modes import (
    MODES_BY_NAME,
    Mode,
    build_task_model,
    find_best_head,
    select_parameters,
)
from harness.reference.programs.transfer.splits import LabelSplit, TaskSplits
from harness.reference.programs.transfer.target_scaling import fit_scaling, predict_from_composition
from harness.reference.tasks.catalog import find_task
from harness.reference.tasks.load import MissingTaskData, load_task

FITS = "fits"
SPLITS = ("train", "validation", "test")


def run(config: TransferParameters, log: CaseLog, folder: Path) -> None:
    """Train every mode on each number and draw of labels of one task."""
    task = find_task(config.task)
    description: dict[str, Any] = {k: getattr(task, k) for k in ("title", "target", "unit")} | {"task": task.name}
    try:
        dataset = load_task(task.name, Path(config.task_folder).expanduser() if config.task_folder else None)
    except MissingTaskData as error:
        log.write(TaskEvent(**description, available=False, needs=str(error)))
        return
    source, notes = checkpoints.load_named(config.checkpoint)
    source = find_precision(config.precision).apply(source).eval().requires_grad_(False)
    unseen = sum(not bool(source.elements[s.numbers].all()) for s in dataset.table.structures())
    log.write(
        TaskEvent(
            **description, available=True, data_origin=dataset.data_origin, level_of_theory=dataset.level,
            kind=task.kind, per_atom=task.error_per_atom, structures=len(dataset), excluded=dict(dataset.left_out),
            folds=len(dataset.folds), splits=task.splits, structures_with_unseen_elements=unseen,
            published=[PublishedResult(**asdict(p)) for p in task.published],
        )
    )  # fmt: skip
    budget = msgspec.convert({k: getattr(config, k) for k in Budget.__struct_fields__}, Budget)
    (folder / FITS).mkdir(exist_ok=True)
    rank_info = launch.detect_rank(os.environ)
    device = select_device(config.device, config.backend, rank_info)
    splits = TaskSplits(task, dataset, source.config, config.test_fraction, config.max_test_structures, config.seed)
    study = TransferStudy(config, budget, splits, source.to(device), folder / FITS)
    message_backend = use_fused_messages(source, device)
    model = TransferModel(
        checkpoint=config.checkpoint, config=source.config.asdict(), notes=sorted(notes),
        message_backend=message_backend.name, unfused_reason=message_backend.unfused_reason,
        default_sums_reason=segment_sums.find_default_reason(device),
    )  # fmt: skip
    log.record_facts(TransferFacts(model=model, budget=budget))
    with process_group(rank_info, backend=config.backend, device=device, timeout_s=config.timeout_s) as world:
        draws = study.list_draws()
        for k, draw in enumerate(shard(draws, rank_info.rank, rank_info.size), start=1):
            study.run_draw(*draw)
            log.write(Progress(done=min(len(draws), k * rank_info.size), total=len(draws), activity="draws of labels"))
        world.barrier()
    for path in sorted((folder / FITS).glob("*.json")):
        log.write_plain(convert_event("transfer", json.loads(path.read_text(encoding="utf-8"))))


@dataclass
class TransferStudy:
    """The draws and fits of one task.

    Attributes:
        config: Parameters of the case.
        budget: The budget of each fit.
        splits: The dataset and its splits.
        source: The pretrained model on its device.
        folder: The folder of the files of baselines and fits.
    """

    config: TransferParameters
    budget: Budget
    splits: TaskSplits
    source: FoundationModel
    folder: Path

    def list_draws(self) -> list[tuple[str, int, int]]:
        """Return (subset, number of labels, seed) of each draw.

        The number is at most that of the smallest pool, as official folds differ in size, and each number occurs once.

        Raises:
            InputError: A pool has fewer than MIN_LABELS structures.
        """
        seeds, subsets = range(self.config.seeds), self.splits.subsets[: self.config.subsets]
        pools = {subset: min(self.splits.count_labels(subset, seed) for seed in seeds) for subset in subsets}
        for subset, count in pools.items():
            if count < MIN_LABELS:
                name = f"{self.config.task} {subset}".strip()
                raise InputError(f"{name}: {count} structures to draw labels from, expected at least {MIN_LABELS}")
        draws = [
            (subset, min(labels, pools[subset]), seed)
            for labels in self.config.labels
            for subset in subsets
            for seed in seeds
        ]
        return list(dict.fromkeys(draws))

    def run_draw(self, subset: str, labels: int, seed: int) -> None:
        """Write the baselines and the fits of all modes on one draw of labels."""
        split = self.splits.draw(subset, labels, seed)
        key: dict[str, Any] = {"subset": subset, "labels": labels, "seed": seed}
        part = next((name for name in ("test", "validation") if not len(getattr(split, name))), None)
        if part is not None:
            reason = f"the {part} set has no structure whose elements all occur in the training set"
            self._write(Baseline(**key, test=len(split.test), reason=reason), self._build_path(key, "baseline"))
            return
        self._write(Baseline(**key, **self._compute_baseline_errors(split)), self._build_path(key, "baseline"))
        like = next(self.source.parameters())
        data = {name: self.splits.build_data(getattr(split, name), split.scaling, like) for name in SPLITS}
        head = find_best_head(self.source, build_batch(data["train"].graphs).composition)
        for name in self.config.modes:
            mode = MODES_BY_NAME[name]
            if mode.is_trained or self.splits.extensive:  # no pretrained head predicts a new property
                self._fit_mode(mode, key, head, split, data)

    def _write(self, event: Baseline | Fit, path: Path) -> None:
        """Write an event to its file."""
        part = path.with_suffix(".part")
        part.write_text(json.dumps(msgspec.to_builtins(event), allow_nan=False), encoding="utf-8")
        os.replace(part, path)

    def _build_path(self, key: dict[str, Any], name: str) -> Path:
        parts = [key["subset"], f"{key['labels']:06d}", str(key["seed"]), name]
        return self.folder / f"{'-'.join(p for p in parts if p)}.json"

    def _compute_baseline_errors(self, split: LabelSplit) -> dict[str, Any]:
        """Return the test errors of predictors that ignore the geometry."""
        table, target = self.splits.dataset.table, self.splits.dataset.target
        train, test = table[split.train], table[split.test]
        labels, expected = target[split.train], target[split.test]
        extensive = self.splits.extensive
        by_composition = predict_from_composition(train, labels, test, extensive=extensive)
        per_atom = test.sizes * (labels / train.sizes).mean() if extensive else None
        mean = np.full(len(expected), labels.mean()) if per_atom is None else per_atom
        zero = float(np.abs(test.forces).mean()) if self.splits.with_forces and test.forces is not None else None
        return {
            "train": len(labels), "test": len(expected),
            "composition_mae": self._compute_mae(by_composition - expected, test),
            "mean_mae": self._compute_mae(mean - expected, test), "zero_force_mae": zero,
        }  # fmt: skip

    def _compute_mae(self, errors: Array, table: StructureTable) -> float:
        """Return the mean absolute error in the unit of the task, per atom if the task's error is per atom."""
        return float(np.abs(errors / table.sizes if self.splits.task.error_per_atom else errors).mean())

    def _fit_mode(
        self, mode: Mode, key: dict[str, Any], head: int, split: LabelSplit, data: dict[str, TaskData]
    ) -> None:
        """Train and test one mode, unless an earlier attempt of this case has done so."""
        path = self._build_path(key, mode.name)
        if path.exists():
            return
        seed = self.config.seed + key["seed"]
        model = build_task_model(self.source, mode, head, keep_task_layers=self.splits.extensive, seed=seed)
        if not (mode.pretrained and self.splits.extensive):
            model.scale[0] = split.scaling.unit
        parameters = select_parameters(model, mode)
        result: FitResult | None = FitResult(0, 0, 0.0)
        if mode.is_trained:
            if not mode.trains_encoder and not self.splits.with_forces:
                for task_data in data.values():
                    task_data.cache_features(model)
            try:
                result = fit(
                    model,
                    parameters,
                    scaling=split.scaling,
                    train=data["train"],
                    validation=data["validation"],
                    budget=self.budget,
                    seed=seed,
                )
            except NotFinite:
                result = None
        else:
            split = self._refit_scaling(model, split, data["train"])
        errors = self._test(model, split, data["test"], path.with_suffix(".npz"))
        if result is None:
            errors |= dict.fromkeys(("mae", "rmse", "force_mae"))
        for task_data in data.values():
            task_data.cached_features = None
        event = Fit(
            **key, mode=mode.name, train=len(split.train), validation=len(split.validation),
            parameters=sum(p.numel() for p in parameters), head=head, **errors,
        )  # fmt: skip
        if result is not None:
            event = msgspec.structs.replace(
                event, steps=result.steps, best_step=result.best_step, skipped_steps=result.skipped_steps,
                duration_s=round(result.seconds, 3),
            )  # fmt: skip
        self._write(event, path)

    def _refit_scaling(self, model: FoundationModel, split: LabelSplit, data: TaskData) -> LabelSplit:
        """Return the split with reference energies fitted to the training labels minus the model's predictions."""
        with torch.no_grad():
            values = [predict(model, split.scaling, b)[0].double().cpu().numpy() for b in data.batches()]
        table, target = self.splits.dataset.table[split.train], self.splits.dataset.target[split.train]
        return replace(split, scaling=fit_scaling(table, target - np.concatenate(values), extensive=True))

    def _test(self, model: FoundationModel, split: LabelSplit, data: TaskData, path: Path) -> dict[str, Any]:
        """Return the errors on the test set, None where they are not finite, and write the predictions to a file."""
        values, force_errors = [], []
        with torch.no_grad():
            for labelled in data.batches():
                value, forces = predict(model, split.scaling, labelled)
                values.append(value.double().cpu().numpy())
                if forces is not None and labelled.forces is not None:
                    force_errors.append((forces - labelled.forces).double().cpu().numpy())
        dataset = self.splits.dataset
        table, target = dataset.table[split.test], dataset.target[split.test]
        predicted = np.concatenate(values) + split.scaling.baseline(table)
        np.savez_compressed(path, ids=dataset.official_ids[split.test], target=target, predicted=predicted)
        error = (predicted - target) / (table.sizes if self.splits.task.error_per_atom else 1)
        errors = {
            "mae": float(np.abs(error).mean()),
            "rmse": float(np.sqrt((error**2).mean())),
            "force_mae": float(np.abs(np.concatenate(force_errors)).mean()) if force_errors else math.nan,
        }
        return {"test": len(target), **{k: x if math.isfinite(x) else None for k, x in errors.items()}}
