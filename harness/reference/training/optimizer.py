"""How weights move: AdamW, its schedule, gradient clipping and the average of weights; all of it can be put on disk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel

Schedule = Literal["plateau", "cosine"]
FINAL_SHARE = 0.01


@dataclass(frozen=True)
class OptimizerConfig:
    """schedule: "plateau" halves the rate (factor) when the validation loss has not improved for `patience` epochs,
    as the paper's; "cosine" takes it to 1% over all steps. warmup_steps: the rate rises linearly before either.
    clip_norm: of the gradient of all parameters. ema_decay: of an average of the weights that is what is evaluated.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    schedule: Schedule = "plateau"
    factor: float = 0.5
    patience: int = 5
    warmup_steps: int = 0
    clip_norm: float | None = None
    ema_decay: float | None = None


def _average(averages: list[Tensor], current: list[Tensor], count: Tensor, *, decay: float) -> None:
    """Move the averages towards the current weights: by more at first, lest those of the start linger."""
    weight = 1.0 - min(decay, (1.0 + float(count)) / (10.0 + float(count)))
    torch._foreach_lerp_(averages, current, weight)


class Optimization:
    """One model's optimizer and all that goes with it; steps is how many there will be."""

    def __init__(
        self, model: nn.Module, parameters: Sequence[nn.Parameter], config: OptimizerConfig, steps: int
    ) -> None:
        self.model, self.parameters, self.config = model, list(parameters), config
        self.optimizer = torch.optim.AdamW(self.parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
        self.average: AveragedModel | None = None
        if config.ema_decay is not None:
            self.average = AveragedModel(model, multi_avg_fn=partial(_average, decay=config.ema_decay))
        self.plateau = ReduceLROnPlateau(self.optimizer, factor=config.factor, patience=config.patience)
        self.steps = steps
        self.reduced = 1.0
        self.ramp = LambdaLR(self.optimizer, self._share)

    def _share(self, step: int) -> float:
        """Of the full rate, at a step, before what the plateau takes off."""
        warm = self.config.warmup_steps
        rise = min(1.0, (step + 1) / warm) if warm else 1.0
        if self.config.schedule == "plateau":
            return rise
        part = min(1.0, max(0.0, (step - warm) / max(1, self.steps - warm)))
        return rise * (FINAL_SHARE + (1.0 - FINAL_SHARE) * 0.5 * (1.0 + math.cos(math.pi * part)))

    @property
    def evaluated(self) -> nn.Module:
        """The model whose errors count: the average of weights where there is one."""
        return self.model if self.average is None else self.average.module

    @property
    def learning_rate(self) -> float:
        """The rate of the next step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def step(self, squared_norm: Tensor | None = None) -> bool:
        """Use the gradients, or leave all as it is and return False where their norm is no number.

        squared_norm: theirs, where more than this rank's parameters count.
        """
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients) if squared_norm is None else squared_norm.sqrt()
        if not norm.isfinite():
            return False
        if self.config.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, self.config.clip_norm, norm)
        self.optimizer.step()
        self.ramp.step()
        for group in self.optimizer.param_groups:
            group["lr"] *= self.reduced
        if self.average is not None:
            self.average.update_parameters(self.model)
        return True

    def epoch(self, validation_loss: float) -> None:
        """What an epoch's end changes."""
        if self.config.schedule == "plateau":
            before = self.learning_rate
            self.plateau.step(validation_loss)
            self.reduced *= self.learning_rate / before

    def state(self) -> dict[str, Any]:
        """Everything, the model's weights included."""
        parts: dict[str, Any] = {"model": self.model, "optimizer": self.optimizer, "ramp": self.ramp}
        parts |= {"plateau": self.plateau} | ({} if self.average is None else {"average": self.average})
        return {name: part.state_dict() for name, part in parts.items()} | {"reduced": self.reduced}

    def load(self, state: dict[str, Any]) -> None:
        """Be as the one that gave the state; KeyError or RuntimeError where it is of another kind."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ramp.load_state_dict(state["ramp"])
        self.plateau.load_state_dict(state["plateau"])
        self.reduced = state["reduced"]
        if self.average is not None:
            self.average.load_state_dict(state["average"])
