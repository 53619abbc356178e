"""Modes of transfer: the weights from which a task starts, and the weights that it trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.protocol.programs.transfer import ModeName
from harness.reference.models.foundation import FoundationModel


@dataclass(frozen=True)
class Mode:
    """A mode of transfer.

    Attributes:
        name: Name of the mode.
        title: Name in reports.
        pretrained: Whether training starts from the weights of the checkpoint, rather than from random ones.
        trains_encoder: Whether message passing is trained.
        trains_shared_layers: Whether the first layers of the head, which the paper calls shared, are trained.
        trains_task_layers: Whether the other layers of the head are trained.
    """

    name: ModeName
    title: str
    pretrained: bool
    trains_encoder: bool
    trains_shared_layers: bool
    trains_task_layers: bool

    @property
    def is_trained(self) -> bool:
        """Whether any weights are trained; otherwise only reference energies are fitted."""
        return self.trains_encoder or self.trains_shared_layers or self.trains_task_layers


MODES: tuple[Mode, ...] = (
    #    name, title; whether: pretrained, encoder trained, shared layers trained, task layers trained
    Mode("as_pretrained", "as pretrained", True, False, False, False),
    Mode("head_only", "head only", True, False, False, True),
    Mode("frozen_encoder", "frozen encoder", True, False, True, True),
    Mode("full", "everything", True, True, True, True),
    Mode("scratch", "from scratch", False, True, True, True),
)
MODES_BY_NAME: dict[ModeName, Mode] = {mode.name: mode for mode in MODES}


def find_best_head(model: FoundationModel, composition: Tensor) -> int:
    """Return the trained head with the largest mean weight of the gate for these compositions, [g, 119].

    Only heads that know all elements of the largest number of structures are considered.
    """
    composition = composition.to(next(model.parameters()))
    with torch.no_grad():
        weights = model.gate(composition).mean(0)
        known = model.heads_knowing_all_elements(composition).sum(0).masked_fill(~model.trained, -1)
    return int(weights.masked_fill(known < known.max(), -1.0).argmax())


def build_task_model(
    source: FoundationModel, mode: Mode, head: int, *, keep_task_layers: bool, seed: int
) -> FoundationModel:
    """Return a model with one head for a task, in the data type and on the device of the source.

    Args:
        source: The pretrained model.
        mode: The mode.
        head: The head of the source from which the layers are copied.
        keep_task_layers: Whether the layers after the shared ones are copied too; they predict energies of the source's
            head, so for a new property they start from random weights.
        seed: Seed of random weights.
    """
    torch.manual_seed(seed)
    weight = next(source.parameters())
    model = FoundationModel(source.config.replace(heads=1)).to(weight.device, weight.dtype)
    model.fused = source.fused
    if not mode.pretrained:
        return model
    model.encoder.load_state_dict(source.encoder.state_dict())
    shared = source.config.num_sharedlayers
    for k, (target, origin) in enumerate(zip(model.heads.layers, source.heads.layers, strict=True)):
        if k < shared or keep_task_layers:
            target.load_state_dict({name: value[[head]] for name, value in origin.state_dict().items()})
    if keep_task_layers:
        model.scale[0] = source.scale[head]
    return model


def select_parameters(model: FoundationModel, mode: Mode) -> list[nn.Parameter]:
    """Return the parameters that the mode trains, and turn off the gradients of all others."""
    model.requires_grad_(False)
    shared = model.config.num_sharedlayers
    parts: list[tuple[bool, Callable[[], list[nn.Module]]]] = [
        (mode.trains_encoder, lambda: [model.encoder]),
        (mode.trains_shared_layers, lambda: list(model.heads.layers)[:shared]),
        (mode.trains_task_layers, lambda: list(model.heads.layers)[shared:]),
    ]
    trained = [module for is_trained, modules in parts if is_trained for module in modules()]
    for module in trained:
        module.requires_grad_(True)
    return [p for module in trained for p in module.parameters()]
