"""The optimizer: AdamW with a schedule, gradient clipping and an average of the weights, whose state can be saved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel

from harness.protocol.programs.train import OptimizerParameters

FINAL_LR_FACTOR = 0.01  # the learning rate at the end of the cosine schedule, relative to the initial one


def _update_average(averages: list[Tensor], current: list[Tensor], count: Tensor, *, decay: float) -> None:
    """Move the averages towards the current weights; the decay is smaller at first, so that initial weights fade."""
    weight = 1.0 - min(decay, (1.0 + float(count)) / (10.0 + float(count)))
    torch._foreach_lerp_(averages, current, weight)


class OptimizerState:
    """The optimizer of one model with its schedule and average of weights.

    Args:
        model: The model.
        parameters: The parameters of the model to train.
        config: Learning rate, schedule, clipping and averaging.
        steps: Number of steps of the whole run.
    """

    def __init__(
        self, model: nn.Module, parameters: Sequence[nn.Parameter], config: OptimizerParameters, steps: int
    ) -> None:
        self.model, self.parameters, self.config = model, list(parameters), config
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.average: AveragedModel | None = None
        if config.ema_decay is not None:
            self.average = AveragedModel(model, multi_avg_fn=partial(_update_average, decay=config.ema_decay))
        self.plateau = ReduceLROnPlateau(self.optimizer, factor=config.plateau_factor, patience=config.plateau_patience)
        self.steps = steps
        self.plateau_factor = 1.0
        self.warmup = LambdaLR(self.optimizer, self._compute_lr_factor)

    def _compute_lr_factor(self, step: int) -> float:
        """Return the factor of the learning rate by warm-up and cosine decay, before plateau reductions."""
        warmup_steps = self.config.warmup_steps
        warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
        if self.config.schedule == "plateau":
            return warmup
        progress = min(1.0, max(0.0, (step - warmup_steps) / max(1, self.steps - warmup_steps)))
        decay = FINAL_LR_FACTOR + (1.0 - FINAL_LR_FACTOR) * 0.5 * (1.0 + math.cos(math.pi * progress))
        return warmup * decay

    @property
    def eval_model(self) -> nn.Module:
        """The model to evaluate: the one with averaged weights if averaging is on."""
        return self.model if self.average is None else self.average.module

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def step(self, squared_norm: Tensor | None = None) -> bool:
        """Take a step with the gradients, or change nothing and return False if their norm is not finite.

        Args:
            squared_norm: Squared norm of the gradient, a scalar, if other ranks hold some of the parameters.
        """
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients) if squared_norm is None else squared_norm.sqrt()
        if not norm.isfinite():
            return False
        if self.config.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, self.config.clip_norm, norm)
        self.optimizer.step()
        self.warmup.step()
        for group in self.optimizer.param_groups:
            group["lr"] *= self.plateau_factor
        if self.average is not None:
            self.average.update_parameters(self.model)
        return True

    def end_epoch(self, validation_loss: float) -> None:
        """Reduce the learning rate if the validation loss has reached a plateau."""
        if self.config.schedule == "plateau":
            before = self.learning_rate
            self.plateau.step(validation_loss)
            self.plateau_factor *= self.learning_rate / before

    def state(self) -> dict[str, Any]:
        """Return the state of all parts, including the weights of the model."""
        parts: dict[str, Any] = {"model": self.model, "optimizer": self.optimizer, "ramp": self.warmup}
        parts |= {"plateau": self.plateau} | ({} if self.average is None else {"average": self.average})
        return {name: part.state_dict() for name, part in parts.items()} | {"reduced": self.plateau_factor}

    def load(self, state: dict[str, Any]) -> None:
        """Restore the result of `state`; raise KeyError or RuntimeError if it does not match."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.warmup.load_state_dict(state["ramp"])
        self.plateau.load_state_dict(state["plateau"])
        self.plateau_factor = state["reduced"]
        if self.average is not None:
            self.average.load_state_dict(state["average"])
