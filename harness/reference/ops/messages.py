"""PaiNN's messages as operators that never store a tensor of edges x features, differentiable any number of times.

The messages are linear in each of phi, v, radial, weight and (in one term) unit. The derivative of their gradient along
a tangent is therefore the gradient of messages with one argument replaced by its tangent, and the same three operators
serve every order. Two more operators (messages_second, filter_second) compute the second derivatives of a loss on
forces if no further derivative is taken: they loop over the edges once instead of once for each tangent.

There are n atoms, e edges, F features, C columns of radial, and P parts: 3, or 2 without v. The arguments are phi
[n, P F], v [3, n, F] or None, radial [e, C], weight [C, P F], unit [e, 3], receiver and sender [e]. grad_s and grad_v
are the gradients with respect to the outputs s and v; x_grad is the gradient with respect to the argument x; d_x is the
tangent of x. The kernels are in painn/kernels.h and triton_kernels.py.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, library

from harness.protocol import backbones
from harness.reference.ops import jit_build, segment_sums

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
    """There is no fused kernel for this backbone or device."""


def check(backbone: str, device: torch.device) -> None:
    """Raise UnsupportedKernel if the operators do not support a backbone or device."""
    if backbone not in BACKBONES:
        raise UnsupportedKernel(f"only {' and '.join(BACKBONES)} have fused messages, not {backbone}")
    if device.type not in ("cpu", *GPUS):
        raise UnsupportedKernel(f"fused messages run on CPUs and on GPUs that Triton supports, not on {device.type}")


def load(device: torch.device) -> None:
    """Load the operators for devices of this type.

    On CPUs, a C++ compiler builds them the first time; on GPUs, Triton compiles them when they are first called.

    Raises:
        jit_build.BuildError: There is no compiler, or it fails.
        UnsupportedKernel: Triton is not installed, or finds no device.
    """
    if device.type == "cpu":
        jit_build.load(SOURCES)
        jit_build.load(segment_sums.SOURCES)
    else:
        _load_triton()


@functools.cache
def _load_triton() -> None:
    try:
        from harness.reference.ops import triton_messages

        triton_messages.require_device()
    except (ImportError, RuntimeError) as error:
        raise UnsupportedKernel(f"Triton cannot be used: {error}") from error
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
        """The number of parts of phi and of the filters: 3 with v, else 2."""
        return 2 if self.v is None else 3


def messages(inputs: MessageInputs) -> tuple[Tensor, Tensor]:
    """Return the sums of the messages that each atom receives: s [n, F] and v [3, n, F].

    The operators must have been loaded for the device by `load`.
    """
    return _operators.messages(*inputs)


def _compute_gradients(
    grad_s: Tensor, grad_v: Tensor, inputs: MessageInputs, needed: Sequence[bool]
) -> list[Tensor | None]:
    """Return the gradients of sum(grad_s s) + sum(grad_v v) with respect to phi, v, radial, weight and unit.

    A gradient that is not needed is None.
    """
    phi, v, radial, weight, unit = needed
    gradients: list[Tensor | None] = [None] * 5
    if phi or v or radial or unit:
        phi_grad, v_grad, radial_grad, unit_grad = _operators.messages_backward(grad_s, grad_v, *inputs, phi or v)
        values = (phi_grad, v_grad, radial_grad, None, unit_grad)
        gradients = [value if need else None for value, need in zip(values, needed, strict=True)]
    if weight:
        gradients[3] = _operators.filter_backward(grad_s, grad_v, *inputs[:3], *inputs[4:])
    return gradients


def _iter_replaced_inputs(
    inputs: MessageInputs, tangents: dict[str, Tensor]
) -> Iterator[tuple[MessageInputs, set[str]]]:
    """Yield inputs with some arguments replaced by their tangents, and the names of these arguments.

    The messages of all these inputs add up to the derivative of the messages along the tangents.
    """
    for name in ("phi", "radial", "weight"):
        if name in tangents:
            yield inputs._replace(**{name: tangents[name]}), {name}
    if "v" in tangents or "unit" in tangents:
        # v and unit occur in different parts of the messages, so one pass serves both; the part for s has neither
        v = inputs.v if inputs.v is None else tangents.get("v", torch.zeros_like(inputs.v))
        unit = tangents.get("unit", torch.zeros_like(inputs.unit))
        yield inputs._replace(v=v, weight=_zero_s_part(inputs.weight, inputs), unit=unit), {"v", "unit"}


def _zero_s_part(weight: Tensor, inputs: MessageInputs) -> Tensor:
    """Return a copy of the weight with zeros in its part for s."""
    width = inputs.phi.shape[1] // inputs.parts
    return torch.cat([torch.zeros_like(weight[:, :width]), weight[:, width:]], dim=1)


def _compute_double_backward(
    grad_s: Tensor, grad_v: Tensor, inputs: MessageInputs, tangents: dict[str, Tensor], needed: Sequence[bool]
) -> list[Tensor | None]:
    """Return the gradients of the derivative of sum(grad_s s) + sum(grad_v v) along tangents.

    The gradients are with respect to grad_s, grad_v and, as in `_compute_gradients`, the inputs; one that is not needed
    is None. They can be differentiated further.
    """
    gradients: list[Tensor | None] = [None] * 7
    for replaced_inputs, replaced in _iter_replaced_inputs(inputs, tangents):
        if needed[0] or needed[1]:
            s, v = _operators.messages(*replaced_inputs)
            gradients[0], gradients[1] = _add(gradients[0], s), _add(gradients[1], v)
        names = zip(needed[2:], MessageInputs._fields, strict=False)
        needed_inputs = [need and name not in replaced for need, name in names]
        input_gradients = _compute_gradients(grad_s, grad_v, replaced_inputs, needed_inputs)
        if "unit" in replaced and input_gradients[3] is not None:
            input_gradients[3] = _zero_s_part(input_gradients[3], inputs)
        gradients[2:] = [_add(a, b) for a, b in zip(gradients[2:], input_gradients, strict=True)]
    return gradients


def _add(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _differentiate_messages(ctx: Any, grad_s: Tensor, grad_v: Tensor) -> tuple[Tensor | None, ...]:
    return *_compute_gradients(grad_s, grad_v, MessageInputs(*ctx.saved_tensors), ctx.needs_input_grad[:5]), None, None


def _compute_fused_double_backward(
    grad_s: Tensor, grad_v: Tensor, inputs: MessageInputs, tangents: dict[str, Tensor], needed: Sequence[bool]
) -> list[Tensor | None]:
    """Compute as `_compute_double_backward` does, but by operators that cannot be differentiated further.

    There must be tangents of radial and unit; those of phi and v are optional.
    """
    nodes = "phi" in tangents or "v" in tangents
    d_phi = tangents.get("phi", torch.zeros_like(inputs.phi)) if nodes else None
    d_v = tangents.get("v", torch.zeros_like(inputs.v)) if nodes and inputs.v is not None else None
    tangent_values = (d_phi, d_v, tangents["radial"], tangents["unit"])
    gradients: list[Tensor | None] = [None] * 7
    if any(needed[:5]) or needed[6]:
        results = _operators.messages_second(grad_s, grad_v, *inputs, *tangent_values)
        gradients = [x if need else None for x, need in zip((*results[:5], None, results[5]), needed, strict=True)]
    if needed[5]:
        gradients[5] = _operators.filter_second(grad_s, grad_v, *inputs[:3], *inputs[4:], *tangent_values)
    return gradients


def _has_fused_double_backward(device: torch.device) -> bool:
    """Return whether messages_second and filter_second exist for the device; there are no Triton kernels for them."""
    names = ("messages_second", "filter_second")
    key = device.type.upper()
    return all(torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{name}", key) for name in names)


def _differentiate_messages_backward(ctx: Any, *tangent_values: Tensor | None) -> tuple[Tensor | None, ...]:
    grad_s, grad_v, *rest = ctx.saved_tensors
    inputs = MessageInputs(*rest)
    # messages_backward did not compute the gradients of these inputs, so they have no tangent
    constant = () if ctx.needs_nodes and inputs.v is not None else ("v",) if ctx.needs_nodes else ("phi", "v")
    pairs = zip(("phi", "v", "radial", "unit"), tangent_values, strict=True)
    tangents = {name: x for name, x in pairs if x is not None and name not in constant}
    differentiable = torch.is_grad_enabled() or not {"radial", "unit"} <= tangents.keys()
    fused = not differentiable and _has_fused_double_backward(grad_s.device)
    double_backward = _compute_fused_double_backward if fused else _compute_double_backward
    return *double_backward(grad_s, grad_v, inputs, tangents, ctx.needs_input_grad[:7]), None, None, None


def _differentiate_filter_backward(ctx: Any, weight: Tensor) -> tuple[Tensor | None, ...]:
    grad_s, grad_v, phi, v, radial, unit, receiver, sender = ctx.saved_tensors
    inputs = MessageInputs(phi, v, radial, weight, unit, receiver, sender)
    needed = [*ctx.needs_input_grad[:5], False, ctx.needs_input_grad[5]]
    input_gradients = _compute_double_backward(grad_s, grad_v, inputs, {"weight": weight}, needed)
    return *input_gradients[:5], input_gradients[6], None, None


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    ctx.save_for_backward(*(x for x in inputs if not isinstance(x, bool)))
    ctx.needs_nodes = inputs[-1] is True  # the last input of messages_backward; that of other operators is a tensor


def _save_without_materializing(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    """Save the inputs, and let autograd pass None instead of zeros for outputs without a gradient."""
    _save_inputs(ctx, inputs, output)
    ctx.set_materialize_grads(False)


def _allocate_messages(
    phi: Tensor, v: Tensor | None, radial: Tensor, weight: Tensor, *_: Tensor
) -> tuple[Tensor, Tensor]:
    width = phi.shape[1] // (2 if v is None else 3)
    return phi.new_empty(phi.shape[0], width), phi.new_empty(3, phi.shape[0], width)


def _allocate_messages_backward(
    grad_s: Tensor, grad_v: Tensor, phi: Tensor, v: Tensor | None, radial: Tensor, weight: Tensor, unit: Tensor,
    receiver: Tensor, sender: Tensor, needs_nodes: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    phi_grad = phi.new_empty(phi.shape if needs_nodes else (0,))
    v_grad = phi.new_empty(v.shape if needs_nodes and v is not None else (0,))
    return phi_grad, v_grad, phi.new_empty(radial.shape), phi.new_empty(unit.shape)


def _allocate_filter_backward(
    grad_s: Tensor, grad_v: Tensor, phi: Tensor, v: Tensor | None, radial: Tensor, *_: Tensor
) -> Tensor:
    return phi.new_empty(radial.shape[1], phi.shape[1])


def _allocate_messages_second(
    grad_s: Tensor, grad_v: Tensor, phi: Tensor, v: Tensor | None, radial: Tensor, weight: Tensor, unit: Tensor,
    *_: Tensor | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    v_grad = phi.new_empty((0,) if v is None else v.shape)
    return (
        *(phi.new_empty(x.shape) for x in (grad_s, grad_v, phi)),
        v_grad,
        *(phi.new_empty(x.shape) for x in (radial, unit)),
    )


for _name, _allocate, _derivative in (
    ("messages", _allocate_messages, (_differentiate_messages, _save_inputs)),
    ("messages_backward", _allocate_messages_backward, (_differentiate_messages_backward, _save_without_materializing)),
    ("messages_second", _allocate_messages_second, None),
    ("filter_backward", _allocate_filter_backward, (_differentiate_filter_backward, _save_inputs)),
    ("filter_second", _allocate_filter_backward, None),
):
    library.register_fake(f"{NAMESPACE}::{_name}", _allocate)
    if _derivative is not None:
        library.register_autograd(f"{NAMESPACE}::{_name}", _derivative[0], setup_context=_derivative[1])
