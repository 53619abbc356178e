"""Evaluate only the head of its own dataset for each structure, in one operator with the derivatives for training.

A head is a multilayer perceptron: z_k = a_(k-1) W_k + b_k, a_0 = x, a_k = f(z_k), and its output is z_L. The operator
returns the output and its gradient with respect to x, so that the loss may depend on both; they can be differentiated
once. Only the heads that have structures are evaluated; the gradients of the parameters of the others are zero.

There are g structures, h heads and L layers. The parameters are, in this order, W_1 [h, in, out],
b_1 [h, 1, out], W_2, ..., b_L; the last layer has one output.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, library
from torch.nn.functional import relu, silu


@library.custom_op("gfm_harness::evaluate_own_heads", mutates_args=())
def evaluate_own_heads(x: Tensor, head: Tensor, parameters: Sequence[Tensor], activation: str) -> tuple[Tensor, Tensor]:
    """Return the output [g] of the head of each structure, and its gradient with respect to x, [g, in].

    Args:
        x: [g, in] the features of each structure.
        head: [g] the number of the head of each structure.
        parameters: The weights and biases of all heads, in the order above.
        activation: The function f, `silu` or `relu`.
    """
    output, slope = torch.empty_like(x[:, 0]), torch.empty_like(x)
    for k, rows in _group_by_head(head, len(parameters[0])):
        weights, biases = _select_head(parameters, k)
        a = x[rows]
        slopes: list[Tensor] = []
        for weight, bias in zip(weights, biases, strict=True):
            z = torch.addmm(bias, a, weight)
            a, first, _ = _activate(z, activation, order=1)
            slopes.append(first)
        output[rows] = z.squeeze(1)
        d = torch.ones_like(z)
        for layer in reversed(range(1, len(weights))):
            d = (d @ weights[layer].T) * slopes[layer - 1]
        slope[rows] = d @ weights[0].T
    return output, slope


@library.custom_op("gfm_harness::differentiate_own_heads", mutates_args=())
def differentiate_own_heads(
    output_grad: Tensor, slope_grad: Tensor, x: Tensor, head: Tensor, parameters: Sequence[Tensor], activation: str
) -> tuple[Tensor, list[Tensor]]:
    """Return the gradients of sum(output_grad output) + sum(slope_grad slope) with respect to x and the parameters.

    The second sum is the derivative of the output along the tangent slope_grad of x. Below, `values` has the rows of
    values and then those of their tangents, so that each layer needs one product forward and two products back.

    Args:
        output_grad: [g] the gradient of the loss with respect to the output.
        slope_grad: [g, in] the gradient of the loss with respect to the slope, which is the gradient of the output.
        x: [g, in] the features of each structure.
        head: [g] the number of the head of each structure.
        parameters: The weights and biases of all heads.
        activation: The function f, `silu` or `relu`.
    """
    groups = dict(_group_by_head(head, len(parameters[0])))
    x_grad, gradients = torch.zeros_like(x), [torch.empty_like(p) for p in parameters]
    for k in set(range(len(parameters[0]))) - groups.keys():
        for gradient in gradients:
            gradient[k].zero_()
    for k, rows in groups.items():
        weights, biases = _select_head(parameters, k)
        count = len(rows)
        values = torch.cat([x[rows], slope_grad[rows]])
        inputs: list[Tensor] = []
        factors: list[tuple[Tensor, Tensor]] = []
        for weight, bias in zip(weights, biases, strict=True):
            inputs.append(values)
            z = values @ weight
            z[:count] += bias
            value, first, second = _activate(z[:count], activation, order=2)
            values = torch.cat([value, first * z[count:]])
            factors.append((first, second * z[count:]))
        adjoints = torch.cat([output_grad[rows].unsqueeze(1), torch.ones_like(z[:count])])
        for layer in reversed(range(len(weights))):
            torch.mm(inputs[layer].T, adjoints, out=gradients[2 * layer][k])
            torch.sum(adjoints[:count], 0, keepdim=True, out=gradients[2 * layer + 1][k])
            adjoints = adjoints @ weights[layer].T
            if layer:
                first, second = factors[layer - 1]
                of_value, of_tangent = adjoints.split(count)
                adjoints = torch.cat([of_value * first + of_tangent * second, of_tangent * first])
        x_grad[rows] = adjoints[:count]
    return x_grad, gradients


def _group_by_head(head: Tensor, count: int) -> Iterator[tuple[int, Tensor]]:
    """Yield each head that has structures, and their indices; raise IndexError if a head is not among `count`."""
    sizes = Counter(head.tolist())
    for k in sizes:
        if not 0 <= k < count:
            raise IndexError(f"there is no head {k} among {count}")
    heads = sorted(sizes)
    return zip(heads, torch.argsort(head, stable=True).split([sizes[k] for k in heads]), strict=True)


def _select_head(parameters: Sequence[Tensor], k: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return the weights [in, out] and the biases [1, out] of one head."""
    return [p[k] for p in parameters[0::2]], [p[k] for p in parameters[1::2]]


def _activate(z: Tensor, activation: str, *, order: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return f(z), its first derivative and, for order 2, its second derivative (otherwise 0)."""
    if activation == "relu":
        return relu(z), (z > 0).to(z.dtype), torch.zeros_like(z)
    sigmoid = torch.sigmoid(z)
    first = sigmoid * (1.0 + z * (1.0 - sigmoid))
    second = sigmoid * (1.0 - sigmoid) * (2.0 + z * (1.0 - 2.0 * sigmoid)) if order == 2 else torch.zeros_like(z)
    return silu(z), first, second


@evaluate_own_heads.register_fake
def _(x: Tensor, head: Tensor, parameters: Sequence[Tensor], activation: str) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0]), x.new_empty(x.shape)


@differentiate_own_heads.register_fake
def _(
    output_grad: Tensor, slope_grad: Tensor, x: Tensor, head: Tensor, parameters: Sequence[Tensor], activation: str
) -> tuple[Tensor, list[Tensor]]:
    return x.new_empty(x.shape), [p.new_empty(p.shape) for p in parameters]


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    x, head, parameters, ctx.activation = inputs
    ctx.save_for_backward(x, head, *parameters)


def _differentiate(ctx: Any, output_grad: Tensor, slope_grad: Tensor) -> tuple[Tensor, None, list[Tensor], None]:
    x, head, *parameters = ctx.saved_tensors
    x_grad, gradients = differentiate_own_heads(output_grad, slope_grad, x, head, parameters, ctx.activation)
    return x_grad, None, gradients, None


evaluate_own_heads.register_autograd(_differentiate, setup_context=_save_inputs)
