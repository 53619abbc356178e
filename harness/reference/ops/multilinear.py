"""Operators for functions that are linear in each of their arguments.

The operators are the derivatives of such a function F with respect to each argument. As F is linear in each, they are
each other's derivatives, of any order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, library

from harness.reference.ops.segment_sums import NAMESPACE

Values = Mapping[str, Tensor | None]


class Multilinear:
    """The operators of a function, with PyTorch's functions for those that no library implements.

    Each operator has all other arguments as inputs, then the parameters.

    Args:
        operators: The arguments of the function, each with the name of the derivative with respect to it.
        optional: Arguments that may be None, one letter each.
        parameters: The schema of the parameters: the last is a list of tensors, which has no gradient, and the others
            are neither tensors nor None.
        get_shape: Return the shape of an argument for the others by name and the parameters.
        compute: Compute the derivative with respect to an argument by PyTorch's functions.

    Attributes:
        operators: The arguments, each with the name of its operator.
        defaults: The arguments, each with its operator in PyTorch's functions.
    """

    def __init__(
        self,
        operators: Mapping[str, str],
        optional: str,
        parameters: str,
        get_shape: Callable[..., tuple[int, ...]],
        compute: Callable[..., Tensor],
    ) -> None:
        self.operators = operators
        self.defaults = {argument: self._bind(argument, compute) for argument in operators}
        for argument, operator in operators.items():
            inputs = ", ".join(f"Tensor{'?' if x in optional else ''} {x}" for x in self._list_others(argument))
            name = f"{NAMESPACE}::{operator}"
            library.define(name, f"({inputs}, {parameters}) -> Tensor", tags=torch.Tag.pt2_compliant_tag)
            library.impl(name, "CompositeExplicitAutograd", self.defaults[argument])
            library.register_fake(
                name,
                self._bind(argument, lambda *inputs: _find_tensor(inputs[1]).new_empty(get_shape(*inputs))),
            )
            library.register_autograd(name, self._build_derivative(argument), setup_context=_save_inputs)

    def differentiate(self, argument: str, others: Values, *parameters: Any) -> Tensor:
        """Return the derivative of the function with respect to an argument.

        Args:
            argument: The name of the argument.
            others: The other arguments by name.
            parameters: The parameters.
        """
        operator = getattr(torch.ops.gfm_harness, self.operators[argument])
        result: Tensor = operator(*(others[x] for x in self._list_others(argument)), *parameters)
        return result

    def _list_others(self, argument: str) -> list[str]:
        return [x for x in self.operators if x != argument]

    def _bind(self, argument: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        names = self._list_others(argument)

        def call(*inputs: Any) -> Tensor:
            tensors, parameters = inputs[: len(names)], inputs[len(names) :]
            return function(argument, dict(zip(names, tensors, strict=True)), *parameters)

        return call

    def _build_derivative(self, argument: str) -> Callable[..., Any]:
        names = self._list_others(argument)

        def differentiate(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
            tensors, ends = ctx.saved_tensors[: len(names)], list(ctx.saved_tensors[len(names) :])
            values = dict(zip(names, tensors, strict=True)) | {argument: grad}
            gradients = [
                self.differentiate(x, {y: v for y, v in values.items() if y != x}, *ctx.parameters, ends)
                if needed
                else None
                for x, needed in zip(names, ctx.needs_input_grad, strict=False)
            ]
            return *gradients, *(None for _ in ctx.parameters), [None] * len(ends)

        return differentiate


def _find_tensor(values: Values) -> Tensor:
    return next(x for x in values.values() if x is not None)


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    *others, ends = inputs
    tensors = [x for x in others if x is None or isinstance(x, Tensor)]
    ctx.parameters = others[len(tensors) :]
    ctx.save_for_backward(*tensors, *ends)
