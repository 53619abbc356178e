"""One rank's way through a training run: steps, what is kept of them, validation, and stopping and going on."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from harness.protocol.events import EventLog
from harness.reference.data.batch import Batch
from harness.reference.datasets.heads import HEADS
from harness.reference.distributed.group import Team
from harness.reference.errors import NotFinite
from harness.reference.models import sealed
from harness.reference.models.foundation import FoundationModel
from harness.reference.profiling import fom_client
from harness.reference.storage.prefetch import Prefetch
from harness.reference.storage.sampling.sampler import Drawn
from harness.reference.training import state as resuming
from harness.reference.training.head_groups import HeadGroups
from harness.reference.training.loader import Feed, Labelled
from harness.reference.training.loss import Errors, Labels, Objective, compared, own_head
from harness.reference.training.meters import Length, Means, Progress
from harness.reference.training.optimizer import Optimization

PROGRESS_S = 2.0
ASKED_EVERY = 50
# One structure far from all others can overflow a gradient now and then; so many in a row are a diverged model.
MOST_SKIPPED = 10
BAD_BATCH = "bad-batch.safetensors"


class Learning:
    """Training of one model by all ranks together; every method must be called by all of them.

    replica: (batch, labels) -> Errors, whose gradients are exchanged. validation: batches of this rank's share, made
    anew on every call.
    """

    def __init__(
        self,
        replica: nn.Module,
        model: FoundationModel,
        optimization: Optimization,
        objective: Objective,
        feed: Feed,
        validation: Callable[[], Iterator[Labelled]],
        team: Team,
        log: EventLog,
        folder: Path,
        length: Length,
        groups: HeadGroups | None = None,
        of: dict[str, Any] | None = None,
    ) -> None:
        self.replica, self.model, self.optimization, self.objective = replica, model, optimization, objective
        self.feed, self.validation, self.team, self.log = feed, validation, team, log
        self.folder, self.length, self.groups, self.of = folder, length, groups, of or {}
        self.progress = Progress()
        self.best: dict[str, Tensor] = {}
        self.waited_s = 0.0
        self.out_of_time = False
        self._began = self._told = self._saved = time.monotonic()

    @property
    def shares(self) -> Tensor:
        """Of each head in what is trained on, [heads]: how much its validation set counts."""
        shares = torch.zeros(len(HEADS), dtype=torch.float64)
        for dataset, drawn in zip(self.feed.corpus.datasets, self.feed.sampler.draws.tolist(), strict=True):
            shares[dataset.head] += drawn
        return shares

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        sampler = self.feed.sampler
        return self.length.epochs * math.ceil(sampler.length / (sampler.ranks * sampler.batch_size))

    def run(self, ahead: int) -> None:
        """Train to the end, from wherever this run stands; the model ends with its best weights.

        Or until time is up: then the state is on disk, and `finished` says no.
        """
        while not self.finished and not self.out_of_time:
            self.epoch(ahead)
        if self.finished:
            self.model.load_state_dict(self.best)
        else:
            why = f"{self.length.minutes:g} minutes are up"
            self.log.write("stopped", why=why, epoch=self.progress.epoch, step=self.progress.step)

    @property
    def finished(self) -> bool:
        """Whether all epochs are behind this run, or more would be of no use."""
        return self.progress.epoch >= self.length.epochs or self.stale

    @property
    def stale(self) -> bool:
        """Whether the validation loss has not got better for so long that the run is over."""
        return self.length.stop_after is not None and self.progress.since_best >= self.length.stop_after

    def write(self, event: str, **fields: Any) -> None:
        """To the log, and to what a run that goes on tells again."""
        self.log.write(event, **fields)
        self.progress.history.append({"event": event} | fields)

    def epoch(self, ahead: int) -> None:
        """The rest of the epoch in which the run stands, its validation, and what follows from it."""
        sampler, progress = self.feed.sampler, self.progress
        steps, first = sampler.steps, progress.step
        began, waited = time.monotonic(), self.waited_s
        means = Means(progress.means)

        def made(step: int) -> tuple[Drawn, Labelled]:
            drawn = self.feed.dealt(step, self.team.place.rank)
            return drawn, self.feed.batch(drawn, self.team.device)

        with Prefetch(made, range(steps), depth=ahead, samples=self.feed.corpus.samples) as batches:
            before = time.perf_counter()
            for drawn, (batch, labels) in batches:
                self.step(drawn, batch, labels, means)
                progress.step += 1
                now = time.perf_counter()
                fom_client.post("graphs_per_s", self.team.place.size * len(batch.head) / (now - before))
                before = now
                self._between(progress.step - first, began)
                if self.out_of_time and progress.step - first < steps:
                    return
            self.waited_s += batches.waited_s
        sampler.advance(steps)
        progress.seconds += time.monotonic() - began
        self._end(means, self.waited_s - waited)
        self.save(0)

    def step(self, drawn: Drawn, batch: Batch, labels: Labels, means: Means) -> None:
        """One step; raises NotFinite, the batch put on disk, where the loss is no longer a number.

        Where the gradient alone is none, the step is left out and told of, but not MOST_SKIPPED times in a row.
        """
        self.optimization.optimizer.zero_grad()
        leaf = batch._replace(positions=batch.positions.detach().requires_grad_())
        of_graphs: Errors = self.replica(leaf, labels)
        loss = self.objective(of_graphs, batch.head)
        if not math.isfinite(loss.item()):
            self._dump("loss", drawn, batch, labels, of_graphs)
        loss.backward()
        squared = None
        if self.groups is not None:
            self.groups.reduce(self.model.heads)
            squared = self.groups.squared_norm(self.model.encoder, self.model.heads)
        if self.optimization.step(squared):
            self.progress.skipped = 0
            means.add(of_graphs, batch.head)
            return
        self.progress.skipped += 1
        if self.progress.skipped == MOST_SKIPPED:
            self._dump("gradient", drawn, batch, labels, of_graphs)
        worst = int(self.objective.each(of_graphs, batch.head).argmax())
        self.write("skipped", step=self.progress.step, worst=self._names(drawn)[worst])

    def _names(self, drawn: Drawn) -> list[str]:
        """What was drawn, as set/number."""
        return [f"{self.feed.corpus.datasets[d].name}/{k}" for d, k in zip(drawn.dataset, drawn.index, strict=True)]

    def _dump(self, what: str, drawn: Drawn, batch: Batch, labels: Labels, of_graphs: Errors) -> NoReturn:
        names = self._names(drawn)
        sick = ~(of_graphs.energy.isfinite() & of_graphs.force.isfinite()).cpu().numpy()
        path = self.folder / BAD_BATCH
        sealed.write(path, "gfm-harness batch", {**batch._asdict(), **labels._asdict()}, {"names": names})
        which = ", ".join(np.array(names)[sick if sick.any() else ~sick][:5].tolist())
        raise NotFinite(
            f"the {what} is no longer a number at step {self.progress.step} (rank {self.team.place.rank}): {which};"
            f" the batch is in {path.name}"
        )

    def _between(self, taken: int, began: float) -> None:
        """What comes between steps: word of the progress, and now and then a state on disk."""
        now = time.monotonic()
        if now - self._told > PROGRESS_S:
            self.log.write("progress", done=self.progress.step, total=self.total, what="training steps")
            self._told = now
        due = now - self._saved > self.length.checkpoint_s
        up = self.length.minutes is not None and now - self._began > 60.0 * self.length.minutes
        if self.team.place.size > 1:
            # All ranks must save at the same step; to ask after each would cost more than to save late.
            if self.progress.step % ASKED_EVERY:
                return
            due, up = (bool(flag) for flag in self.team.largest(torch.tensor([float(due), float(up)])))
        self.out_of_time = up
        if (due or up) and taken < self.feed.sampler.steps:
            self.save(taken, extra_s=now - began)

    def _end(self, means: Means, waited_s: float) -> None:
        """Validate, write what the epoch came to, and let the schedule know."""
        progress, team = self.progress, self.team
        trained, seen = self._shared(means), self._validated()
        shares = self.shares
        loss, validation_loss = trained.loss(self.objective), seen.loss(self.objective, shares)
        better = validation_loss < progress.best
        if better:
            self.best = {k: v.detach().clone() for k, v in self.optimization.evaluated.state_dict().items()}
            progress.best = validation_loss
        progress.since_best = 0 if better else progress.since_best + 1
        graphs = trained.sums[:, 2].sum().item()
        for split, of in (("train", trained), ("validation", seen)):
            for head, (energy, force, count) in of.rows().items():
                self.write(
                    "head", epoch=progress.epoch, head=HEADS[head], set=self._set(head), split=split,
                    energy_mae_ev_per_atom=energy, force_mae_ev_per_a=force, structures=count,
                )  # fmt: skip
        (energy, force), (v_energy, v_force) = trained.overall(), seen.overall(shares)
        self.write(
            "epoch", epoch=progress.epoch, step=progress.step, loss=loss, energy_mae_ev_per_atom=energy,
            force_mae_ev_per_a=force, validation_loss=validation_loss, validation_energy_mae_ev_per_atom=v_energy,
            validation_force_mae_ev_per_a=v_force, learning_rate=self.optimization.learning_rate,
            seconds=progress.seconds, wait_s=float(team.largest(torch.tensor([waited_s]))),
            graphs_per_s=graphs / progress.seconds, best=better,
        )  # fmt: skip
        if self.stale:
            self.write("stopped", why=f"no better for {self.length.stop_after} epochs", epoch=progress.epoch)
        self.optimization.epoch(validation_loss)
        progress.epoch, progress.seconds, progress.means = progress.epoch + 1, 0.0, Means().sums

    def _shared(self, means: Means) -> Means:
        """The sums of all ranks."""
        return Means(self.team.total(means.sums))

    def _validated(self) -> Means:
        """Errors of the validation sets by the weights that count."""
        model, means = self.optimization.evaluated, Means()
        assert isinstance(model, FoundationModel)
        for batch, labels in self.validation():
            means.add(compared(*own_head(model, batch, create_graph=False), batch, labels), batch.head)
        return self._shared(means)

    def _set(self, head: int) -> str:
        return next(d.name for d in self.feed.corpus.datasets if d.head == head)

    def save(self, taken: int, extra_s: float = 0.0) -> None:
        """Put the state on disk, `taken` steps into what the sampler has left; in parts where ranks have own heads."""
        sampler = copy.copy(self.feed.sampler)
        sampler.advance(taken)
        means = self._shared(Means(self.progress.means)).sums
        own = {"optimization": self.optimization.state(), "best": self.best, "random": resuming.random_state()}
        if self.groups is not None:
            if self.groups.leads:
                resuming.save_part(self.folder, self.groups.own, self.progress.step, own)
            self.team.meet()
        if self.team.place.rank == 0:
            progress: dict[str, Any] = {k: v for k, v in self.progress.__dict__.items() if k != "means"}
            progress["seconds"] += extra_s
            whole = {"progress": progress, "means": means, "sampler": sampler.state()}
            resuming.save(self.folder, whole | ({"own": own} if self.groups is None else {}), of=self.of)
        self._saved = time.monotonic()

    def resume(self) -> bool:
        """Go on from the state in the folder, if there is one, and tell what came before."""
        first = self.team.place.rank == 0
        state = self.team.told_by(0, resuming.load(self.folder, of=self.of) if first else None)
        if state is None:
            return False
        step = state["progress"]["step"]
        own = state["own"] if self.groups is None else resuming.load_part(self.folder, self.groups.own, step)
        self.optimization.load(own["optimization"])
        self.best = own["best"]
        resuming.set_random_state(own["random"])
        # sums of all ranks so far: rank 0 carries them on
        means = state["means"] if self.team.place.rank == 0 else Means().sums
        self.progress = Progress(**state["progress"], means=means)
        self.feed.sampler.resume(state["sampler"])
        for event in self.progress.history:
            self.log.write(**event)
        self.log.write("resumed", step=self.progress.step, epoch=self.progress.epoch)
        return True
