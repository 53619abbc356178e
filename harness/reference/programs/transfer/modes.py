"""What of a pretrained model a task starts from, and what of it the task may change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.protocol.programs.transfer import ModeName
from harness.reference.models.foundation import FoundationModel


@dataclass(frozen=True)
class Mode:
    """pretrained: starts from the checkpoint's weights; else from random ones. encoder, shared, own: whether message
    passing, the layers that all of a head's tasks share, and the layers of this task alone are trained."""

    name: ModeName
    title: str
    pretrained: bool
    encoder: bool
    shared: bool
    own: bool

    @property
    def trains(self) -> bool:
        """Whether anything but reference energies is fitted."""
        return self.encoder or self.shared or self.own


MODES: tuple[Mode, ...] = (
    Mode("as_pretrained", "as pretrained", True, encoder=False, shared=False, own=False),
    Mode("head_only", "head only", True, encoder=False, shared=False, own=True),
    Mode("frozen_encoder", "frozen encoder", True, encoder=False, shared=True, own=True),
    Mode("full", "everything", True, encoder=True, shared=True, own=True),
    Mode("scratch", "from scratch", False, encoder=True, shared=True, own=True),
)
MODES_BY_NAME: dict[ModeName, Mode] = {mode.name: mode for mode in MODES}


def best_head(model: FoundationModel, composition: Tensor) -> int:
    """Return the trained head that the gate trusts most for these compositions, [g, 119].

    Only heads that know all elements of the most structures are asked.
    """
    composition = composition.to(next(model.parameters()).dtype)
    with torch.no_grad():
        weights = model.gate(composition).mean(0)
        known = model.heads_knowing_all_elements(composition).sum(0).masked_fill(~model.trained, -1)
    return int(weights.masked_fill(known < known.max(), -1.0).argmax())


def task_model(source: FoundationModel, mode: Mode, head: int, *, keep_own: bool, seed: int) -> FoundationModel:
    """A model of one head for a task, in the type of the source.

    head: the branch whose layers it starts from. keep_own: also those after the shared ones, which tell energies of
    that branch; a new property gets random ones.
    """
    torch.manual_seed(seed)
    weight = next(source.parameters())
    model = FoundationModel(source.config.replace(heads=1)).to(weight.device, weight.dtype)
    if not mode.pretrained:
        return model
    model.encoder.load_state_dict(source.encoder.state_dict())
    shared = source.config.num_sharedlayers
    for k, (mine, theirs) in enumerate(zip(model.heads.layers, source.heads.layers, strict=True)):
        if k < shared or keep_own:
            mine.load_state_dict({name: value[[head]] for name, value in theirs.state_dict().items()})
    if keep_own:
        model.scale[0] = source.scale[head]
    return model


def trained_parameters(model: FoundationModel, mode: Mode) -> list[nn.Parameter]:
    """What the mode trains; everything else no longer asks for gradients."""
    model.requires_grad_(False)
    shared = model.config.num_sharedlayers
    parts: list[tuple[bool, Callable[[], list[nn.Module]]]] = [
        (mode.encoder, lambda: [model.encoder]),
        (mode.shared, lambda: list(model.heads.layers)[:shared]),
        (mode.own, lambda: list(model.heads.layers)[shared:]),
    ]
    chosen = [module for wanted, modules in parts if wanted for module in modules()]
    for module in chosen:
        module.requires_grad_(True)
    return [p for module in chosen for p in module.parameters()]
