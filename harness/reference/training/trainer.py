"""The training loop of one rank: steps, validation, states on disk, stopping and resuming."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from harness.protocol.events import CaseLog
from harness.protocol.programs.train import HeadErrors, Resumed, SkippedStep, Stopped, TrainEpoch
from harness.protocol.records import EventRecord, Progress
from harness.protocol.upgrade import convert_event
from harness.reference.data.batch import Batch
from harness.reference.datasets.catalog import HEADS
from harness.reference.distributed.group import ProcessGroup
from harness.reference.errors import InputError, NotFinite
from harness.reference.models.foundation import FoundationModel
from harness.reference.profiling import fom_client
from harness.reference.storage.prefetch import Prefetch
from harness.reference.storage.sampling.sampler import SampleIndices
from harness.reference.training import state as training_state
from harness.reference.training.head_groups import HeadGroups
from harness.reference.training.loader import BatchLoader, LabelledBatch
from harness.reference.training.loss import Errors, Labels, MultiTaskLoss, backpropagate
from harness.reference.training.meters import ErrorMeter, TrainingLimits, TrainingProgress, measure_errors
from harness.reference.training.optimizer import OptimizerState

PROGRESS_S = 2.0
# The ranks agree on whether to save only every AGREEMENT_STEPS steps, since the agreement is a collective operation.
AGREEMENT_STEPS = 50
# An unusual structure may overflow a gradient occasionally; this many in a row mean that the model has diverged.
MAX_SKIPPED = 10


class Trainer:
    """The trainer of one model on all ranks. Every method is collective: all ranks must call it.

    Args:
        replica: (batch, labels) -> Errors; its gradients are averaged over the ranks.
        model: The model inside the replica.
        optimizer_state: The optimizer with its schedule and average of weights.
        objective: The loss.
        loader: The batches of this rank.
        validation: Returns an iterator over this rank's share of the validation batches.
        world: The ranks.
        log: The event log.
        folder: The folder of states on disk.
        limits: When to stop and to save.
        groups: The heads of each rank if ranks hold different heads.
        identity: Plain data on model and options; a state on disk is resumed only if its identity is the same.
    """

    def __init__(
        self,
        *,
        replica: nn.Module,
        model: FoundationModel,
        optimizer_state: OptimizerState,
        objective: MultiTaskLoss,
        loader: BatchLoader,
        validation: Callable[[], Iterator[LabelledBatch]],
        world: ProcessGroup,
        log: CaseLog,
        folder: Path,
        limits: TrainingLimits,
        groups: HeadGroups | None = None,
        identity: dict[str, Any] | None = None,
    ) -> None:
        self.replica, self.model, self.optimizer_state, self.objective = replica, model, optimizer_state, objective
        self.loader, self.validation, self.world, self.log = loader, validation, world, log
        self.folder, self.limits, self.groups, self.identity = folder, limits, groups, identity or {}
        self.progress = TrainingProgress()
        self.best: dict[str, Tensor] = {}
        self.is_out_of_time = False
        self._started = self._reported = self._saved = time.monotonic()

    @property
    def total_steps(self) -> int:
        """The number of steps of the whole run."""
        return self.limits.epochs * self.loader.steps_per_epoch

    def run(self, prefetch_depth: int) -> None:
        """Train until the limits are reached, and give the model its best weights.

        If the time limit is reached first, the state is on disk and `is_finished` is False.

        Args:
            prefetch_depth: Number of batches to prepare in advance.
        """
        while not self.is_finished and not self.is_out_of_time:
            self.run_epoch(prefetch_depth)
        if self.is_finished:
            self.model.load_state_dict(self.best)
        else:
            reason = f"{self.limits.time_limit_minutes:g} minutes have passed, the time limit"
            self.log.write(Stopped(reason=reason, epoch=self.progress.epoch, step=self.progress.step))

    @property
    def is_finished(self) -> bool:
        """Whether all epochs are done, or the validation loss no longer improves."""
        return self.progress.epoch >= self.limits.epochs or self.has_stopped_improving

    @property
    def has_stopped_improving(self) -> bool:
        """Whether the validation loss has not improved for `early_stopping_patience` epochs."""
        return (
            self.limits.early_stopping_patience is not None
            and self.progress.since_best >= self.limits.early_stopping_patience
        )

    def write(self, event: EventRecord) -> None:
        """Write an event to the log, and to the history that a resumed run replays."""
        self.log.write(event)
        self.progress.history.append(msgspec.to_builtins(event))

    def run_epoch(self, prefetch_depth: int) -> None:
        """Run the remaining steps of the current epoch, validate, and save the state.

        Args:
            prefetch_depth: Number of batches to prepare in advance.
        """
        sampler, progress = self.loader.sampler, self.progress
        steps, first = sampler.steps, progress.step
        structures = sampler.position + steps * sampler.ranks * sampler.batch_size
        started, seconds, waited_s = time.monotonic(), progress.seconds, progress.waited_s
        meter = ErrorMeter(progress.error_sums)

        def load(step: int) -> tuple[SampleIndices, LabelledBatch]:
            indices = self.loader.select_indices(step, self.world.rank)
            return indices, self.loader.load_batch(indices, self.world.device)

        with Prefetch(load, range(steps), depth=prefetch_depth, samples=self.loader.collection.samples) as batches:
            before = time.perf_counter()
            for indices, (batch, labels) in batches:
                self.take_step(indices, batch, labels, meter)
                progress.step += 1
                now = time.perf_counter()
                fom_client.post_figure_of_merit("structures_per_s", self.world.size * len(batch.head) / (now - before))
                before = now
                progress.seconds = seconds + time.monotonic() - started
                progress.waited_s = waited_s + batches.waited_s
                self._after_step(progress.step - first)
                if self.is_out_of_time and progress.step - first < steps:
                    return
        progress.seconds = seconds + time.monotonic() - started  # also without a step
        sampler.advance(steps)
        self._end_epoch(meter, structures)
        self.save(0)

    def take_step(self, indices: SampleIndices, batch: Batch, labels: Labels, meter: ErrorMeter) -> None:
        """Take one step, or skip the step and log an event if its gradient is not finite.

        Args:
            indices: The dataset and index of each structure.
            batch: The structures.
            labels: Their labels.
            meter: The meter to which the errors are added.

        Raises:
            NotFinite: The loss is not finite, or MAX_SKIPPED steps in a row were skipped; the batch is on disk.
        """
        self.optimizer_state.optimizer.zero_grad()
        leaf = batch._replace(positions=batch.positions.detach().requires_grad_())
        graph_errors: Errors = self.replica(leaf, labels)
        loss = self.objective(graph_errors, batch.head)
        if not math.isfinite(loss.item()):
            self._raise_not_finite("loss", indices, batch, labels, graph_errors)
        backpropagate(loss, self.replica)
        squared = None
        if self.groups is not None:
            self.groups.reduce_gradients(self.model.heads)
            squared = self.groups.compute_squared_norm(self.model.encoder, self.model.heads)
        if self.optimizer_state.step(squared):
            self.progress.skipped = 0
            meter.add(graph_errors, batch, labels)
            return
        self.progress.skipped += 1
        if self.progress.skipped == MAX_SKIPPED:
            self._raise_not_finite("gradient", indices, batch, labels, graph_errors)
        worst = int(self.objective.per_graph(graph_errors, batch.head).argmax())
        self.write(SkippedStep(step=self.progress.step, worst=self._name_structures(indices)[worst]))

    def _name_structures(self, indices: SampleIndices) -> list[str]:
        """Return names of the form dataset/index."""
        return [
            f"{self.loader.collection.datasets[d].name}/{k}"
            for d, k in zip(indices.dataset, indices.index, strict=True)
        ]

    def _raise_not_finite(
        self, quantity: str, indices: SampleIndices, batch: Batch, labels: Labels, graph_errors: Errors
    ) -> NoReturn:
        names = self._name_structures(indices)
        faulty = ~(graph_errors.energy.isfinite() & graph_errors.force.isfinite()).cpu().numpy()
        path = training_state.save_batch(self.folder, batch, labels, names)
        examples = ", ".join(np.array(names)[faulty if faulty.any() else ~faulty][:5].tolist())
        raise NotFinite(
            f"the {quantity} is not finite at step {self.progress.step} (rank {self.world.rank}): {examples};"
            f" the batch is in {path.name}"
        )

    def _after_step(self, steps: int) -> None:
        """Report the progress, and save the state if it is due or the time is up.

        Args:
            steps: Number of steps since the sampler last advanced.
        """
        now = time.monotonic()
        if now - self._reported > PROGRESS_S:
            self.log.write(Progress(done=self.progress.step, total=self.total_steps, activity="training steps"))
            self._reported = now
        is_due = now - self._saved > self.limits.checkpoint_interval_s
        is_out_of_time = (
            self.limits.time_limit_minutes is not None and now - self._started > 60.0 * self.limits.time_limit_minutes
        )
        if self.world.size > 1:
            # all ranks must save at the same step
            if self.progress.step % AGREEMENT_STEPS:
                return
            flags = self.world.all_reduce_max(torch.tensor([float(is_due), float(is_out_of_time)]))
            is_due, is_out_of_time = (bool(flag) for flag in flags)
        self.is_out_of_time = is_out_of_time
        if (is_due or is_out_of_time) and steps < self.loader.sampler.steps:
            self.save(steps)

    def _end_epoch(self, meter: ErrorMeter, structures: int) -> None:
        """Validate, log the errors of the epoch, and update the schedule.

        Args:
            meter: The errors of this rank.
            structures: Number of structures of all ranks in the epoch, including those of skipped steps.

        Raises:
            InputError: There is no validation structure.
            NotFinite: The validation loss is not finite.
        """
        progress = self.progress
        model = self.optimizer_state.eval_model
        assert isinstance(model, FoundationModel)
        trained = self._sum_over_ranks(meter)
        validated = self._sum_over_ranks(measure_errors(model, self.validation()))
        shares = self.loader.head_weights
        loss, validation_loss = trained.compute_loss(self.objective), validated.compute_loss(self.objective, shares)
        if validation_loss is None:
            raise InputError("no structure of the validation sets has only elements of the training set of its head")
        if not math.isfinite(validation_loss):
            raise NotFinite(f"the validation loss is not finite after epoch {progress.epoch}")
        is_best = validation_loss < progress.best
        if is_best:
            self.best = {k: v.detach().clone() for k, v in self.optimizer_state.eval_model.state_dict().items()}
            progress.best = validation_loss
        progress.since_best = 0 if is_best else progress.since_best + 1
        for split, errors in (("train", trained), ("validation", validated)):
            for head, (mean_energy, mean_force, count) in errors.compute_head_means().items():
                self.write(
                    HeadErrors(
                        epoch=progress.epoch, head=HEADS[head], dataset=self._find_dataset(head), split=split,
                        energy_mae_ev_per_atom=mean_energy, force_mae_ev_per_angstrom=mean_force, structures=count,
                    )
                )  # fmt: skip
        (energy, force), (v_energy, v_force) = trained.compute_means(), validated.compute_means(shares)
        self.write(
            TrainEpoch(
                epoch=progress.epoch, step=progress.step, loss=loss, energy_mae_ev_per_atom=energy,
                force_mae_ev_per_angstrom=force, validation_loss=validation_loss,
                validation_energy_mae_ev_per_atom=v_energy, validation_force_mae_ev_per_angstrom=v_force,
                learning_rate=self.optimizer_state.learning_rate,
                duration_s=progress.seconds, wait_s=self._find_longest_wait(),
                structures_per_s=structures / progress.seconds, best=is_best,
            )
        )  # fmt: skip
        if self.has_stopped_improving:
            self.write(
                Stopped(reason=f"no improvement for {self.limits.early_stopping_patience} epochs", epoch=progress.epoch)
            )
        self.optimizer_state.end_epoch(validation_loss)
        progress.epoch, progress.seconds, progress.waited_s = progress.epoch + 1, 0.0, 0.0
        progress.error_sums = ErrorMeter().sums

    def _find_longest_wait(self) -> float:
        """Return the seconds for which the slowest rank has waited for data in the current epoch."""
        return float(self.world.all_reduce_max(torch.tensor([self.progress.waited_s])))

    def _sum_over_ranks(self, meter: ErrorMeter) -> ErrorMeter:
        return ErrorMeter(self.world.all_reduce_sum(meter.sums))

    def _find_dataset(self, head: int) -> str:
        """Return the name of the dataset of a head."""
        return next(d.name for d in self.loader.collection.datasets if d.head == head)

    def save(self, steps: int) -> None:
        """Write the state to disk, in one part per group if ranks hold different heads.

        Args:
            steps: Number of steps since the sampler last advanced.
        """
        sampler = copy.copy(self.loader.sampler)
        sampler.advance(steps)
        error_sums = self._sum_over_ranks(ErrorMeter(self.progress.error_sums)).sums
        waited_s = self._find_longest_wait()
        part = {
            "optimization": self.optimizer_state.state(),
            "best": self.best,
            "random": training_state.get_random_state(),
        }
        if self.groups is not None:
            if self.groups.is_leader:
                training_state.save_part(self.folder, self.groups.index, self.progress.step, part)
            self.world.barrier()
        if self.world.rank == 0:
            progress: dict[str, Any] = {k: v for k, v in self.progress.__dict__.items() if k != "error_sums"}
            progress["waited_s"] = waited_s
            state = {"progress": progress, "error_sums": error_sums, "sampler": sampler.state()}
            training_state.save(
                self.folder, state | ({"own": part} if self.groups is None else {}), identity=self.identity
            )
        self._saved = time.monotonic()

    def resume(self) -> bool:
        """Restore the state in the folder, and write its events to the log; return whether there was a state."""
        is_first = self.world.rank == 0
        state = self.world.broadcast_object(
            training_state.load(self.folder, identity=self.identity) if is_first else None
        )
        if state is None:
            return False
        step = state["progress"]["step"]
        groups = self.groups
        part = state["own"] if groups is None else training_state.load_part(self.folder, groups.index, step)
        self.optimizer_state.load(part["optimization"])
        self.best = part["best"]
        training_state.set_random_state(part["random"])
        # the saved sums are those of all ranks together, so only rank 0 continues from them
        error_sums = state["error_sums"] if self.world.rank == 0 else ErrorMeter().sums
        self.progress = TrainingProgress(**state["progress"], error_sums=error_sums)
        self.loader.sampler.resume(state["sampler"])
        for event in self.progress.history:
            self.log.write_plain(convert_event("train", event))
        self.log.write(Resumed(step=self.progress.step, epoch=self.progress.epoch))
        return True
