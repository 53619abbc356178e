"""One step of training, and how far what it gives is from what another gives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harness.protocol.programs.training_steps import STEP_STAGES, StepStageName
from harness.reference.models.foundation import FoundationModel
from harness.reference.training.loader import LabelledBatch, flatten
from harness.reference.training.loss import MultiTaskLoss, PerGraphErrors


@dataclass(frozen=True)
class Stage:
    """One way to take a step."""

    name: StepStageName
    fused: bool = False
    compiled: bool = False


STAGES = tuple(Stage(name, fused=name == "fused_messages", compiled=name != "baseline") for name in STEP_STAGES)


class Result(NamedTuple):
    """What a step gives: the loss, and the gradient of all parameters in one row."""

    loss: float
    gradient: Tensor


class TimedStep:
    """A stage at work: a call is a step, all of which is to be timed; `last` is what it gave."""

    def __init__(self, name: str, module: PerGraphErrors, model: FoundationModel, objective: MultiTaskLoss) -> None:
        self.name = name
        self._module, self._model, self._objective = module, model, objective
        self._loss: Tensor | None = None

    def __call__(self, labelled: LabelledBatch) -> None:
        """Forward, loss, backward."""
        batch, labels = labelled
        self._model.zero_grad()
        leaf = batch._replace(positions=batch.positions.detach().requires_grad_())
        self._loss = self._objective(self._module(leaf, labels), batch.head)
        self._loss.backward()

    @property
    def last(self) -> Result:
        """Of the last step, as long as no other stage has taken one."""
        assert self._loss is not None
        return Result(self._loss.item(), flatten([p.grad for p in self._model.parameters() if p.grad is not None]))

    def result(self, labelled: LabelledBatch) -> Result:
        """Take a step and return what it gives."""
        self(labelled)
        return self.last


def step_errors(got: Result, expected: Result) -> dict[str, Any]:
    """Relative differences of loss and gradient; only finite=False where there is no number."""
    if not math.isfinite(got.loss) or not bool(got.gradient.isfinite().all()):
        return {"finite": False}
    apart = torch.linalg.vector_norm((got.gradient - expected.gradient).double())
    return {
        "finite": True,
        "loss_error": abs(got.loss - expected.loss) / abs(expected.loss),
        "gradient_error": float(apart / torch.linalg.vector_norm(expected.gradient.double())),
    }
