"""PaiNN's messages as operators that never hold a tensor of edges x features, differentiable any number of times.

The messages are linear in each of phi, v, radial, weight and (in one term) unit. So the derivative of their gradient in
some direction is the gradient of messages with one argument replaced by its direction, and the same three operators
serve every order. The second derivatives that a loss of forces takes, from which nothing further is derived, have two
operators of their own, which go over the edges once in place of once a direction.

n atoms, e edges, F width, C columns of radial, P parts: 3, or 2 without v. phi [n, P F], v [3, n, F] or None, radial
[e, C], weight [C, P F], unit [e, 3], receiver and sender [e]. What runs them: painn/kernels.h, triton_kernels.py.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, library

from harness.reference.ops import jit_build

SOURCES = Path(__file__).with_name("painn")
BACKBONES = ("painn", "pnaeq")
GPUS = ("cuda", "xpu")  # as torch calls them: cuda is AMD's too
INPUTS = "Tensor phi, Tensor? v, Tensor radial, Tensor weight, Tensor unit, Tensor receiver, Tensor sender"
UNWEIGHTED = "Tensor phi, Tensor? v, Tensor radial, Tensor unit, Tensor receiver, Tensor sender"
DIRECTIONS = "Tensor? d_phi, Tensor? d_v, Tensor d_radial, Tensor d_unit"
SCHEMAS = {
    "messages": f"({INPUTS}) -> (Tensor, Tensor)",
    "messages_backward": f"(Tensor to_s, Tensor to_v, {INPUTS}, bool nodes) -> (Tensor, Tensor, Tensor, Tensor)",
    "messages_second": f"(Tensor to_s, Tensor to_v, {INPUTS}, {DIRECTIONS})"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    "filter_backward": f"(Tensor to_s, Tensor to_v, {UNWEIGHTED}) -> Tensor",
    "filter_second": f"(Tensor to_s, Tensor to_v, {UNWEIGHTED}, {DIRECTIONS}) -> Tensor",
}
for _name, _schema in SCHEMAS.items():
    library.define(f"gfm_harness::{_name}", _schema, tags=torch.Tag.pt2_compliant_tag)
_operators = torch.ops.gfm_harness


class NoSuchKernel(RuntimeError):
    """There is no operator for this model or device."""


def check(backbone: str, device: torch.device) -> None:
    """Raise NoSuchKernel for what the operators are not made for."""
    if backbone not in BACKBONES:
        raise NoSuchKernel(f"only {' and '.join(BACKBONES)} have fused messages, not {backbone}")
    if device.type not in ("cpu", *GPUS):
        raise NoSuchKernel(f"fused messages are for CPUs, and for GPUs that Triton knows, not for {device.type}")


def load(device: torch.device) -> None:
    """Have the operators ready on devices of this type.

    On CPUs this takes a compiler the first time, and raises jit_build.CannotBuild; on GPUs Triton compiles them when
    they are first called. Raises NoSuchKernel without Triton, or where it finds no device.
    """
    if device.type == "cpu":
        jit_build.load(SOURCES)
    else:
        _load_triton()


@functools.cache
def _load_triton() -> None:
    try:
        from harness.reference.ops import triton_messages

        triton_messages.find_device()
    except (ImportError, RuntimeError) as error:
        raise NoSuchKernel(f"no Triton here: {error}") from error
    triton_messages.register(GPUS)


class Terms(NamedTuple):
    """What the messages are made of."""

    phi: Tensor
    v: Tensor | None
    radial: Tensor
    weight: Tensor
    unit: Tensor
    receiver: Tensor
    sender: Tensor

    @property
    def parts(self) -> int:
        """3 with v, else 2."""
        return 2 if self.v is None else 3


def messages(terms: Terms) -> tuple[Tensor, Tensor]:
    """What each atom hears: s [n, F], v [3, n, F]. Needs load(device)."""
    return _operators.messages(*terms)


def _gradients(to_s: Tensor, to_v: Tensor, terms: Terms, wanted: Sequence[bool]) -> list[Tensor | None]:
    """Of sum(to_s s) + sum(to_v v) by phi, v, radial, weight, unit; None where not wanted."""
    phi, v, radial, weight, unit = wanted
    found: list[Tensor | None] = [None] * 5
    if phi or v or radial or unit:
        by = _operators.messages_backward(to_s, to_v, *terms, phi or v)
        found = [by[0] if phi else None, by[1] if v else None, by[2] if radial else None, None, by[3] if unit else None]
    if weight:
        found[3] = _operators.filter_backward(to_s, to_v, *terms[:3], *terms[4:])
    return found


def _in_directions(terms: Terms, towards: dict[str, Tensor]) -> Iterator[tuple[Terms, set[str]]]:
    """Terms whose messages add up to the derivative in the given directions, with the names of what was replaced."""
    for name in ("phi", "radial", "weight"):
        if name in towards:
            yield terms._replace(**{name: towards[name]}), {name}
    if "v" in towards or "unit" in towards:
        # v and unit stand in one part of the messages each, so that both directions go at once; the part for s has none
        v = terms.v if terms.v is None else towards.get("v", torch.zeros_like(terms.v))
        unit = towards.get("unit", torch.zeros_like(terms.unit))
        yield terms._replace(v=v, weight=_without_s(terms.weight, terms), unit=unit), {"v", "unit"}


def _without_s(weight: Tensor, terms: Terms) -> Tensor:
    """The weight, 0 in its part for s."""
    width = terms.phi.shape[1] // terms.parts
    return torch.cat([torch.zeros_like(weight[:, :width]), weight[:, width:]], dim=1)


def _second(
    to_s: Tensor, to_v: Tensor, terms: Terms, towards: dict[str, Tensor], wanted: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients, of the derivative of sum(to_s s) + sum(to_v v) in some directions, by to_s, to_v and as _gradients."""
    found: list[Tensor | None] = [None] * 7
    for along, replaced in _in_directions(terms, towards):
        if wanted[0] or wanted[1]:
            s, v = _operators.messages(*along)
            found[0], found[1] = _sum(found[0], s), _sum(found[1], v)
        own = [w and name not in replaced for w, name in zip(wanted[2:], Terms._fields, strict=False)]
        by = _gradients(to_s, to_v, along, own)
        if "unit" in replaced and by[3] is not None:
            by[3] = _without_s(by[3], terms)
        found[2:] = [_sum(a, b) for a, b in zip(found[2:], by, strict=True)]
    return found


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _by_messages(ctx: Any, to_s: Tensor, to_v: Tensor) -> tuple[Tensor | None, ...]:
    return *_gradients(to_s, to_v, Terms(*ctx.saved_tensors), ctx.needs_input_grad[:5]), None, None


def _at_once(
    to_s: Tensor, to_v: Tensor, terms: Terms, towards: dict[str, Tensor], wanted: Sequence[bool]
) -> list[Tensor | None]:
    """As _second, for directions of radial and unit, and of the atoms or not; not to be differentiated."""
    nodes = "phi" in towards or "v" in towards
    d_phi = towards.get("phi", torch.zeros_like(terms.phi)) if nodes else None
    d_v = towards.get("v", torch.zeros_like(terms.v)) if nodes and terms.v is not None else None
    directions = (d_phi, d_v, towards["radial"], towards["unit"])
    found: list[Tensor | None] = [None] * 7
    if any(wanted[:5]) or wanted[6]:
        by = _operators.messages_second(to_s, to_v, *terms, *directions)
        found = [x if w else None for x, w in zip((*by[:5], None, by[5]), wanted, strict=True)]
    if wanted[5]:
        found[5] = _operators.filter_second(to_s, to_v, *terms[:3], *terms[4:], *directions)
    return found


def _have_second(device: torch.device) -> bool:
    """Whether the operators that go over the edges once are there for the device; those of Triton are not."""
    names = ("messages_second", "filter_second")
    key = device.type.upper()
    return all(torch._C._dispatch_has_kernel_for_dispatch_key(f"gfm_harness::{name}", key) for name in names)


def _by_messages_backward(ctx: Any, *directions: Tensor | None) -> tuple[Tensor | None, ...]:
    to_s, to_v, *rest = ctx.saved_tensors
    terms = Terms(*rest)
    unknown = () if ctx.nodes and terms.v is not None else ("v",) if ctx.nodes else ("phi", "v")
    given = zip(("phi", "v", "radial", "unit"), directions, strict=True)
    towards = {name: x for name, x in given if x is not None and name not in unknown}
    further = torch.is_grad_enabled() or not {"radial", "unit"} <= towards.keys()
    second = _at_once if not further and _have_second(to_s.device) else _second
    return *second(to_s, to_v, terms, towards, ctx.needs_input_grad[:7]), None, None, None


def _by_filter_backward(ctx: Any, weight: Tensor) -> tuple[Tensor | None, ...]:
    to_s, to_v, phi, v, radial, unit, receiver, sender = ctx.saved_tensors
    terms = Terms(phi, v, radial, weight, unit, receiver, sender)
    wanted = [*ctx.needs_input_grad[:5], False, ctx.needs_input_grad[5]]
    by = _second(to_s, to_v, terms, {"weight": weight}, wanted)
    return *by[:5], by[6], None, None


def _keep(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    ctx.save_for_backward(*(x for x in inputs if not isinstance(x, bool)))
    ctx.nodes = inputs[-1] is True


def _keep_sparsely(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    """So that a gradient that nothing comes from is known to be none."""
    _keep(ctx, inputs, output)
    ctx.set_materialize_grads(False)


def _shape_of_messages(
    phi: Tensor, v: Tensor | None, radial: Tensor, weight: Tensor, *_: Tensor
) -> tuple[Tensor, Tensor]:
    width = phi.shape[1] // (2 if v is None else 3)
    return phi.new_empty(phi.shape[0], width), phi.new_empty(3, phi.shape[0], width)


def _shape_of_messages_backward(
    to_s: Tensor, to_v: Tensor, phi: Tensor, v: Tensor | None, radial: Tensor, weight: Tensor, unit: Tensor,
    receiver: Tensor, sender: Tensor, nodes: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    by_phi = phi.new_empty(phi.shape if nodes else (0,))
    by_v = phi.new_empty(v.shape if nodes and v is not None else (0,))
    return by_phi, by_v, phi.new_empty(radial.shape), phi.new_empty(unit.shape)


def _shape_of_filter_backward(
    to_s: Tensor, to_v: Tensor, phi: Tensor, v: Tensor | None, radial: Tensor, *_: Tensor
) -> Tensor:
    return phi.new_empty(radial.shape[1], phi.shape[1])


def _shape_of_messages_second(
    to_s: Tensor, to_v: Tensor, phi: Tensor, v: Tensor | None, radial: Tensor, weight: Tensor, unit: Tensor,
    *_: Tensor | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    by_v = phi.new_empty((0,) if v is None else v.shape)
    return *(phi.new_empty(x.shape) for x in (to_s, to_v, phi)), by_v, *(phi.new_empty(x.shape) for x in (radial, unit))


for _name, _shape, _derivative in (
    ("messages", _shape_of_messages, (_by_messages, _keep)),
    ("messages_backward", _shape_of_messages_backward, (_by_messages_backward, _keep_sparsely)),
    ("messages_second", _shape_of_messages_second, None),
    ("filter_backward", _shape_of_filter_backward, (_by_filter_backward, _keep)),
    ("filter_second", _shape_of_filter_backward, None),
):
    library.register_fake(f"gfm_harness::{_name}", _shape)
    if _derivative is not None:
        library.register_autograd(f"gfm_harness::{_name}", _derivative[0], setup_context=_derivative[1])
