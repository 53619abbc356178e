"""PaiNN's messages as operators that never store a tensor of edges x features, differentiable any number of times.

The messages are linear in each of phi, v, radial, weight and (in one term) unit. The derivative of their gradient along
a tangent is therefore the gradient of messages with one argument replaced by its tangent, and the same three operators
serve every order. Two more operators compute the second derivatives of a loss of forces, if nothing differentiates them
further: they pass over the edges once instead of once for each tangent.

n atoms, e edges, F width, C columns of radial, P parts: 3, or 2 without v. phi [n, P F], v [3, n, F] or None, radial
[e, C], weight [C, P F], unit [e, 3], receiver and sender [e]. The kernels are in painn/kernels.h, triton_kernels.py.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, library

from harness.protocol import backbones
from harness.reference.ops import jit_build

SOURCES = Path(__file__).with_name("painn")
BACKBONES = tuple(str(name) for name, backbone in backbones.BACKBONES.items() if backbone.has_fused_messages)
GPUS = ("cuda", "xpu")  # device types of torch: cuda includes AMD's
NAMESPACE = "gfm_harness"
INPUTS = "Tensor phi, Tensor? v, Tensor radial, Tensor weight, Tensor unit, Tensor receiver, Tensor sender"
UNWEIGHTED = "Tensor phi, Tensor? v, Tensor radial, Tensor unit, Tensor receiver, Tensor sender"
TANGENTS = "Tensor? d_phi, Tensor? d_v, Tensor d_radial, Tensor d_unit"
SCHEMAS = {
    "messages": f"({INPUTS}) -> (Tensor, Tensor)",
    "messages_backward": f"(Tensor grad_s, Tensor grad_v, {INPUTS}, bool needs_nodes)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    "messages_second": f"(Tensor grad_s, Tensor grad_v, {INPUTS}, {TANGENTS})"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    "filter_backward": f"(Tensor grad_s, Tensor grad_v, {UNWEIGHTED}) -> Tensor",
    "filter_second": f"(Tensor grad_s, Tensor grad_v, {UNWEIGHTED}, {TANGENTS}) -> Tensor",
}
for _name, _schema in SCHEMAS.items():
    library.define(f"{NAMESPACE}::{_name}", _schema, tags=torch.Tag.pt2_compliant_tag)
_operators = torch.ops.gfm_harness


class UnsupportedKernel(RuntimeError):
    """There are no fused messages for this model or device."""


def check(backbone: str, device: torch.device) -> None:
    """Raise UnsupportedKernel if the operators do not support a backbone or device."""
    if backbone not in BACKBONES:
        raise UnsupportedKernel(f"only {' and '.join(BACKBONES)} have fused messages, not {backbone}")
    if device.type not in ("cpu", *GPUS):
        raise UnsupportedKernel(f"fused messages are for CPUs, and for GPUs that Triton knows, not for {device.type}")


def load(device: torch.device) -> None:
    """Load the operators for devices of this type.

    On CPUs a compiler builds them the first time; on GPUs Triton compiles them when they are first called.

    Raises:
        jit_build.BuildError: There is no compiler, or it fails.
        UnsupportedKernel: Triton is not installed, or finds no device.
    """
    if device.type == "cpu":
        jit_build.load(SOURCES)
    else:
        _load_triton()


@functools.cache
def _load_triton() -> None:
    try:
        from harness.reference.ops import triton_messages

        triton_messages.require_device()
    except (ImportError, RuntimeError) as error:
        raise UnsupportedKernel(f"no Triton here: {error}") from error
    triton_messages.register(GPUS)


class MessageInputs(NamedTuple):
    """The arguments of the messages; the module documents their shapes."""

    phi: Tensor
    v: Tensor | None
    radial: Tensor
    weight: Tensor
    unit: Tensor
    receiver: Tensor
    sender: Tensor

    @property
    def parts(self) -> int:
        """Return the number of parts of phi and of the filters: 3 with v, else 2."""
        return 2 if self.v is None else 3


def messages(inputs: MessageInputs) -> tuple[Tensor, Tensor]:
    """Return the sums of messages to each atom: s [n, F], v [3, n, F]. Call `load` for the device first."""
    return _operators.messages(*inputs)


def _gradients(grad_s: Tensor, grad_v: Tensor, inputs: MessageInputs, needed: Sequence[bool]) -> list[Tensor | None]:
    """Return the gradients of sum(grad_s s) + sum(grad_v v) with respect to phi, v, radial, weight, unit.

    They are None if not needed.
    """
    phi, v, radial, weight, unit = needed
    gradients: list[Tensor | None] = [None] * 5
    if phi or v or radial or unit:
        by_phi, by_v, by_radial, by_unit = _operators.messages_backward(grad_s, grad_v, *inputs, phi or v)
        values = (by_phi, by_v, by_radial, None, by_unit)
        gradients = [value if need else None for value, need in zip(values, needed, strict=True)]
    if weight:
        gradients[3] = _operators.filter_backward(grad_s, grad_v, *inputs[:3], *inputs[4:])
    return gradients


def _along_tangents(inputs: MessageInputs, tangents: dict[str, Tensor]) -> Iterator[tuple[MessageInputs, set[str]]]:
    """Yield inputs whose messages add up to the derivative along the tangents, and the names of the replaced ones."""
    for name in ("phi", "radial", "weight"):
        if name in tangents:
            yield inputs._replace(**{name: tangents[name]}), {name}
    if "v" in tangents or "unit" in tangents:
        # v and unit each occur in one part of the messages, so both tangents go at once; the part for s has neither
        v = inputs.v if inputs.v is None else tangents.get("v", torch.zeros_like(inputs.v))
        unit = tangents.get("unit", torch.zeros_like(inputs.unit))
        yield inputs._replace(v=v, weight=_without_s(inputs.weight, inputs), unit=unit), {"v", "unit"}


def _without_s(weight: Tensor, inputs: MessageInputs) -> Tensor:
    """Return the weight with zeros in its part for s."""
    width = inputs.phi.shape[1] // inputs.parts
    return torch.cat([torch.zeros_like(weight[:, :width]), weight[:, width:]], dim=1)


def _double_backward(
    grad_s: Tensor, grad_v: Tensor, inputs: MessageInputs, tangents: dict[str, Tensor], needed: Sequence[bool]
) -> list[Tensor | None]:
    """Return the gradients of the derivative of sum(grad_s s) + sum(grad_v v) along tangents, differentiable further.

    The gradients are with respect to grad_s, grad_v and, as in `_gradients`, to the inputs; None if not needed.
    """
    gradients: list[Tensor | None] = [None] * 7
    for along, replaced in _along_tangents(inputs, tangents):
        if needed[0] or needed[1]:
            s, v = _operators.messages(*along)
            gradients[0], gradients[1] = _add(gradients[0], s), _add(gradients[1], v)
        names = zip(needed[2:], MessageInputs._fields, strict=False)
        by = _gradients(grad_s, grad_v, along, [need and name not in replaced for need, name in names])
        if "unit" in replaced and by[3] is not None:
            by[3] = _without_s(by[3], inputs)
        gradients[2:] = [_add(a, b) for a, b in zip(gradients[2:], by, strict=True)]
    return gradients


def _add(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _backward_of_messages(ctx: Any, grad_s: Tensor, grad_v: Tensor) -> tuple[Tensor | None, ...]:
    return *_gradients(grad_s, grad_v, MessageInputs(*ctx.saved_tensors), ctx.needs_input_grad[:5]), None, None


def _fused_double_backward(
    grad_s: Tensor, grad_v: Tensor, inputs: MessageInputs, tangents: dict[str, Tensor], needed: Sequence[bool]
) -> list[Tensor | None]:
    """As `_double_backward`, for tangents of radial and unit, with or without phi and v; not differentiable."""
    nodes = "phi" in tangents or "v" in tangents
    d_phi = tangents.get("phi", torch.zeros_like(inputs.phi)) if nodes else None
    d_v = tangents.get("v", torch.zeros_like(inputs.v)) if nodes and inputs.v is not None else None
    directions = (d_phi, d_v, tangents["radial"], tangents["unit"])
    gradients: list[Tensor | None] = [None] * 7
    if any(needed[:5]) or needed[6]:
        by = _operators.messages_second(grad_s, grad_v, *inputs, *directions)
        gradients = [x if need else None for x, need in zip((*by[:5], None, by[5]), needed, strict=True)]
    if needed[5]:
        gradients[5] = _operators.filter_second(grad_s, grad_v, *inputs[:3], *inputs[4:], *directions)
    return gradients


def _has_fused_double_backward(device: torch.device) -> bool:
    """Return whether the device has the operators that pass over the edges once; Triton does not."""
    names = ("messages_second", "filter_second")
    key = device.type.upper()
    return all(torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{name}", key) for name in names)


def _backward_of_messages_backward(ctx: Any, *directions: Tensor | None) -> tuple[Tensor | None, ...]:
    grad_s, grad_v, *rest = ctx.saved_tensors
    inputs = MessageInputs(*rest)
    # gradients that were not computed have no tangent
    constant = () if ctx.needs_nodes and inputs.v is not None else ("v",) if ctx.needs_nodes else ("phi", "v")
    pairs = zip(("phi", "v", "radial", "unit"), directions, strict=True)
    tangents = {name: x for name, x in pairs if x is not None and name not in constant}
    differentiable = torch.is_grad_enabled() or not {"radial", "unit"} <= tangents.keys()
    fused = not differentiable and _has_fused_double_backward(grad_s.device)
    double_backward = _fused_double_backward if fused else _double_backward
    return *double_backward(grad_s, grad_v, inputs, tangents, ctx.needs_input_grad[:7]), None, None, None


def _backward_of_filter_backward(ctx: Any, weight: Tensor) -> tuple[Tensor | None, ...]:
    grad_s, grad_v, phi, v, radial, unit, receiver, sender = ctx.saved_tensors
    inputs = MessageInputs(phi, v, radial, weight, unit, receiver, sender)
    needed = [*ctx.needs_input_grad[:5], False, ctx.needs_input_grad[5]]
    by = _double_backward(grad_s, grad_v, inputs, {"weight": weight}, needed)
    return *by[:5], by[6], None, None


def _save(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    ctx.save_for_backward(*(x for x in inputs if not isinstance(x, bool)))
    ctx.needs_nodes = inputs[-1] is True  # the last input of messages_backward; of the others it is a tensor


def _save_without_materializing(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    """Save the inputs, and receive None instead of zeros for outputs that no gradient reaches."""
    _save(ctx, inputs, output)
    ctx.set_materialize_grads(False)


def _shape_of_messages(
    phi: Tensor, v: Tensor | None, radial: Tensor, weight: Tensor, *_: Tensor
) -> tuple[Tensor, Tensor]:
    width = phi.shape[1] // (2 if v is None else 3)
    return phi.new_empty(phi.shape[0], width), phi.new_empty(3, phi.shape[0], width)


def _shape_of_messages_backward(
    grad_s: Tensor, grad_v: Tensor, phi: Tensor, v: Tensor | None, radial: Tensor, weight: Tensor, unit: Tensor,
    receiver: Tensor, sender: Tensor, needs_nodes: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    by_phi = phi.new_empty(phi.shape if needs_nodes else (0,))
    by_v = phi.new_empty(v.shape if needs_nodes and v is not None else (0,))
    return by_phi, by_v, phi.new_empty(radial.shape), phi.new_empty(unit.shape)


def _shape_of_filter_backward(
    grad_s: Tensor, grad_v: Tensor, phi: Tensor, v: Tensor | None, radial: Tensor, *_: Tensor
) -> Tensor:
    return phi.new_empty(radial.shape[1], phi.shape[1])


def _shape_of_messages_second(
    grad_s: Tensor, grad_v: Tensor, phi: Tensor, v: Tensor | None, radial: Tensor, weight: Tensor, unit: Tensor,
    *_: Tensor | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    by_v = phi.new_empty((0,) if v is None else v.shape)
    return (
        *(phi.new_empty(x.shape) for x in (grad_s, grad_v, phi)),
        by_v,
        *(phi.new_empty(x.shape) for x in (radial, unit)),
    )


for _name, _shape, _derivative in (
    ("messages", _shape_of_messages, (_backward_of_messages, _save)),
    ("messages_backward", _shape_of_messages_backward, (_backward_of_messages_backward, _save_without_materializing)),
    ("messages_second", _shape_of_messages_second, None),
    ("filter_backward", _shape_of_filter_backward, (_backward_of_filter_backward, _save)),
    ("filter_second", _shape_of_filter_backward, None),
):
    library.register_fake(f"{NAMESPACE}::{_name}", _shape)
    if _derivative is not None:
        library.register_autograd(f"{NAMESPACE}::{_name}", _derivative[0], setup_context=_derivative[1])
