"""One training step, and the error of its loss and gradient relative to another formulation of it."""

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
    """One formulation of a training step."""

    name: StepStageName
    fused: bool = False
    compiled: bool = False


STAGES = tuple(Stage(name, fused=name == "fused_messages", compiled=name != "baseline") for name in STEP_STAGES)


class Result(NamedTuple):
    """The result of a step.

    Attributes:
        loss: The loss.
        gradient: [p] the gradient of all parameters.
    """

    loss: float
    gradient: Tensor


class TimedStep:
    """A stage with its model, ready to be timed: a call takes one step, and `last` is its result."""

    def __init__(self, name: str, module: PerGraphErrors, model: FoundationModel, objective: MultiTaskLoss) -> None:
        self.name = name
        self._module, self._model, self._objective = module, model, objective
        self._loss: Tensor | None = None

    def __call__(self, labelled: LabelledBatch) -> None:
        """Run forward pass, loss and backward pass."""
        batch, labels = labelled
        self._model.zero_grad()
        leaf = batch._replace(positions=batch.positions.detach().requires_grad_())
        self._loss = self._objective(self._module(leaf, labels), batch.head)
        self._loss.backward()

    @property
    def last(self) -> Result:
        """Return the result of the last step; valid until another stage takes a step on the same model."""
        assert self._loss is not None
        return Result(self._loss.item(), flatten([p.grad for p in self._model.parameters() if p.grad is not None]))

    def result(self, labelled: LabelledBatch) -> Result:
        """Take a step and return its result."""
        self(labelled)
        return self.last


def step_errors(result: Result, expected: Result) -> dict[str, Any]:
    """Return the relative errors of loss and gradient, or only finite=False if the result is not finite."""
    if not math.isfinite(result.loss) or not bool(result.gradient.isfinite().all()):
        return {"finite": False}
    difference = torch.linalg.vector_norm((result.gradient - expected.gradient).double())
    return {
        "finite": True,
        "loss_error": abs(result.loss - expected.loss) / abs(expected.loss),
        "gradient_error": float(difference / torch.linalg.vector_norm(expected.gradient.double())),
    }
