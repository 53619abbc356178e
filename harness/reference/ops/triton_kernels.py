"""PaiNN's messages and their derivatives for GPUs, in Triton (eqs. 7 and 8 of arXiv 2102.03150).

s_i = sum_j W_s phi_s_j        v_ia = sum_j W_r phi_r_j u_a + W_v phi_v_j v_ja        W = radial weight

Sizes, names and layouts are those of messages.py, and all tensors are contiguous: F features, C columns of radial, P =
3 parts (s, r, v), or two without v. Tensors of edges and features exist only as tiles [EDGES, BLOCK] in registers; each
program computes W anew. A single program computes each sum, in an order that depends on the graph alone, without
atomics. The edges of an atom are order[start[atom]] .. order[start[atom + 1] - 1]. plane is the size of one of the
three components of v.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


@triton.jit
def _select_features(F: tl.tensor, BLOCK: tl.constexpr) -> Any:
    """Return the indices of the features of this program, and the mask of those that exist, [BLOCK] each."""
    f = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    return f, f < F


@triton.jit
def _load_rows(x: tl.tensor, row: tl.tensor, stride: tl.tensor, f: tl.tensor, mask: tl.tensor) -> Any:
    """Load the tile x[row, f], [EDGES, BLOCK], with 0 where the mask is false."""
    return tl.load(x + (row * stride)[:, None] + f[None, :], mask=mask, other=0.0)


@triton.jit
def _compute_filters(
    radial: tl.tensor, weight: tl.tensor, e: tl.tensor, edge_mask: tl.tensor, f: tl.tensor, feature_mask: tl.tensor,
    F: tl.tensor, C: tl.constexpr, P: tl.constexpr,
) -> Any:  # fmt: skip
    """Compute W_s, W_r and W_v of edges e and features f, [EDGES, BLOCK] each; W_v is 0 if there are two parts."""
    zero = tl.zeros([e.shape[0], f.shape[0]], radial.dtype.element_ty)
    w_s, w_r, w_v = zero, zero, zero
    for c in tl.static_range(C):
        r = tl.load(radial + e * C + c, mask=edge_mask, other=0.0)[:, None]
        row = weight + c * P * F + f
        w_s += r * tl.load(row, mask=feature_mask, other=0.0)[None, :]
        w_r += r * tl.load(row + F, mask=feature_mask, other=0.0)[None, :]
        if P == 3:
            w_v += r * tl.load(row + 2 * F, mask=feature_mask, other=0.0)[None, :]
    return w_s, w_r, w_v


@triton.jit
def _load_unit(unit: tl.tensor, e: tl.tensor, edge_mask: tl.tensor) -> Any:
    """Load x, y and z of the directions of edges, [EDGES, 1] each."""
    x = tl.load(unit + 3 * e, mask=edge_mask, other=0.0)
    y = tl.load(unit + 3 * e + 1, mask=edge_mask, other=0.0)
    z = tl.load(unit + 3 * e + 2, mask=edge_mask, other=0.0)
    return x[:, None], y[:, None], z[:, None]


@triton.jit(do_not_specialize=["atoms"])
def messages_kernel(
    s: tl.tensor, v_sum: tl.tensor, phi: tl.tensor, v: tl.tensor, radial: tl.tensor, weight: tl.tensor, unit: tl.tensor,
    sender: tl.tensor, order: tl.tensor, start: tl.tensor, atoms: tl.tensor, F: tl.tensor, C: tl.constexpr,
    P: tl.constexpr, EDGES: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Compute s [n, F] and v_sum [3, n, F], with one program per receiver and block of features."""
    i = tl.program_id(0).to(tl.int64)
    f, feature_mask = _select_features(F, BLOCK)
    zero = tl.zeros([EDGES, BLOCK], phi.dtype.element_ty)
    sum_s, sum_x, sum_y, sum_z = zero, zero, zero, zero
    plane = atoms.to(tl.int64) * F
    last = tl.load(start + i + 1)
    for k in range(tl.load(start + i), last, EDGES):
        position = k + tl.arange(0, EDGES)
        edge_mask = position < last
        mask = edge_mask[:, None] & feature_mask[None, :]
        e = tl.load(order + position, mask=edge_mask, other=0)
        j = tl.load(sender + e, mask=edge_mask, other=0)
        w_s, w_r, w_v = _compute_filters(radial, weight, e, edge_mask, f, feature_mask, F, C, P)
        x, y, z = _load_unit(unit, e, edge_mask)
        sum_s += w_s * _load_rows(phi, j, P * F, f, mask)
        length = w_r * _load_rows(phi + F, j, P * F, f, mask)
        sum_x += length * x
        sum_y += length * y
        sum_z += length * z
        if P == 3:
            factor = w_v * _load_rows(phi + 2 * F, j, P * F, f, mask)
            sum_x += factor * _load_rows(v, j, F, f, mask)
            sum_y += factor * _load_rows(v + plane, j, F, f, mask)
            sum_z += factor * _load_rows(v + 2 * plane, j, F, f, mask)
    target = i * F + f
    tl.store(s + target, tl.sum(sum_s, axis=0), mask=feature_mask)
    tl.store(v_sum + target, tl.sum(sum_x, axis=0), mask=feature_mask)
    tl.store(v_sum + plane + target, tl.sum(sum_y, axis=0), mask=feature_mask)
    tl.store(v_sum + 2 * plane + target, tl.sum(sum_z, axis=0), mask=feature_mask)


@triton.jit(do_not_specialize=["atoms"])
def node_gradients_kernel(
    phi_grad: tl.tensor, v_grad: tl.tensor, grad_s: tl.tensor, grad_v: tl.tensor, phi: tl.tensor, v: tl.tensor,
    radial: tl.tensor, weight: tl.tensor, unit: tl.tensor, receiver: tl.tensor, order: tl.tensor, start: tl.tensor,
    atoms: tl.tensor, F: tl.tensor, C: tl.constexpr, P: tl.constexpr, EDGES: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Compute phi_grad [n, P F] and v_grad [3, n, F], with one program per sender and block of features."""
    j = tl.program_id(0).to(tl.int64)
    f, feature_mask = _select_features(F, BLOCK)
    zero = tl.zeros([EDGES, BLOCK], phi.dtype.element_ty)
    phi_s_grad, phi_r_grad, weighted_x, weighted_y, weighted_z = zero, zero, zero, zero, zero
    plane = atoms.to(tl.int64) * F
    last = tl.load(start + j + 1)
    for k in range(tl.load(start + j), last, EDGES):
        position = k + tl.arange(0, EDGES)
        edge_mask = position < last
        mask = edge_mask[:, None] & feature_mask[None, :]
        e = tl.load(order + position, mask=edge_mask, other=0)
        i = tl.load(receiver + e, mask=edge_mask, other=0)
        w_s, w_r, w_v = _compute_filters(radial, weight, e, edge_mask, f, feature_mask, F, C, P)
        x, y, z = _load_unit(unit, e, edge_mask)
        grad_x = _load_rows(grad_v, i, F, f, mask)
        grad_y = _load_rows(grad_v + plane, i, F, f, mask)
        grad_z = _load_rows(grad_v + 2 * plane, i, F, f, mask)
        phi_s_grad += w_s * _load_rows(grad_s, i, F, f, mask)
        phi_r_grad += w_r * (grad_x * x + grad_y * y + grad_z * z)
        if P == 3:
            weighted_x += w_v * grad_x
            weighted_y += w_v * grad_y
            weighted_z += w_v * grad_z
    phi_row = j * P * F + f
    tl.store(phi_grad + phi_row, tl.sum(phi_s_grad, axis=0), mask=feature_mask)
    tl.store(phi_grad + phi_row + F, tl.sum(phi_r_grad, axis=0), mask=feature_mask)
    if P == 3:
        # phi_v and v are the same on all edges of a sender, so they are factors of the sum over the edges
        target = j * F + f
        x, y, z = tl.sum(weighted_x, axis=0), tl.sum(weighted_y, axis=0), tl.sum(weighted_z, axis=0)
        v_x = tl.load(v + target, mask=feature_mask, other=0.0)
        v_y = tl.load(v + plane + target, mask=feature_mask, other=0.0)
        v_z = tl.load(v + 2 * plane + target, mask=feature_mask, other=0.0)
        phi_v = tl.load(phi + phi_row + 2 * F, mask=feature_mask, other=0.0)
        tl.store(phi_grad + phi_row + 2 * F, x * v_x + y * v_y + z * v_z, mask=feature_mask)
        tl.store(v_grad + target, phi_v * x, mask=feature_mask)
        tl.store(v_grad + plane + target, phi_v * y, mask=feature_mask)
        tl.store(v_grad + 2 * plane + target, phi_v * z, mask=feature_mask)


@triton.jit(do_not_specialize=["atoms", "edges"])
def edge_gradients_kernel(
    partial: tl.tensor, grad_s: tl.tensor, grad_v: tl.tensor, phi: tl.tensor, v: tl.tensor, radial: tl.tensor,
    weight: tl.tensor, unit: tl.tensor, receiver: tl.tensor, sender: tl.tensor, edges: tl.tensor, atoms: tl.tensor,
    F: tl.tensor, C: tl.constexpr, P: tl.constexpr, EDGES: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Compute partial [blocks, e, C + 3], the contributions of each block of features to radial_grad and unit_grad.

    There is one program per tile of edges and block of features.
    """
    f, feature_mask = _select_features(F, BLOCK)
    plane = atoms.to(tl.int64) * F
    e = tl.program_id(0).to(tl.int64) * EDGES + tl.arange(0, EDGES)
    edge_mask = e < edges
    mask = edge_mask[:, None] & feature_mask[None, :]
    i = tl.load(receiver + e, mask=edge_mask, other=0)
    j = tl.load(sender + e, mask=edge_mask, other=0)
    x, y, z = _load_unit(unit, e, edge_mask)
    grad_x = _load_rows(grad_v, i, F, f, mask)
    grad_y = _load_rows(grad_v + plane, i, F, f, mask)
    grad_z = _load_rows(grad_v + 2 * plane, i, F, f, mask)
    phi_r = _load_rows(phi + F, j, P * F, f, mask)
    w_s_grad = _load_rows(grad_s, i, F, f, mask) * _load_rows(phi, j, P * F, f, mask)
    w_r_grad = (grad_x * x + grad_y * y + grad_z * z) * phi_r
    w_v_grad = tl.zeros([EDGES, BLOCK], phi.dtype.element_ty)
    if P == 3:
        w_v_grad = grad_x * _load_rows(v, j, F, f, mask) + grad_y * _load_rows(v + plane, j, F, f, mask)
        w_v_grad += grad_z * _load_rows(v + 2 * plane, j, F, f, mask)
        w_v_grad *= _load_rows(phi + 2 * F, j, P * F, f, mask)
    target = partial + (tl.program_id(1) * edges.to(tl.int64) + e) * (C + 3)
    w_r = tl.zeros([EDGES, BLOCK], phi.dtype.element_ty)
    for c in tl.static_range(C):
        r = tl.load(radial + e * C + c, mask=edge_mask, other=0.0)[:, None]
        row = weight + c * P * F + f
        weight_r = tl.load(row + F, mask=feature_mask, other=0.0)[None, :]
        w_r += r * weight_r
        r_grad = w_s_grad * tl.load(row, mask=feature_mask, other=0.0)[None, :] + w_r_grad * weight_r
        if P == 3:
            r_grad += w_v_grad * tl.load(row + 2 * F, mask=feature_mask, other=0.0)[None, :]
        tl.store(target + c, tl.sum(r_grad, axis=1), mask=edge_mask)
    length = w_r * phi_r
    tl.store(target + C, tl.sum(length * grad_x, axis=1), mask=edge_mask)
    tl.store(target + C + 1, tl.sum(length * grad_y, axis=1), mask=edge_mask)
    tl.store(target + C + 2, tl.sum(length * grad_z, axis=1), mask=edge_mask)


@triton.jit(do_not_specialize=["atoms", "edges", "chunk"])
def weight_gradient_kernel(
    partial: tl.tensor, grad_s: tl.tensor, grad_v: tl.tensor, phi: tl.tensor, v: tl.tensor, radial: tl.tensor,
    unit: tl.tensor, receiver: tl.tensor, sender: tl.tensor, edges: tl.tensor, chunk: tl.tensor, atoms: tl.tensor,
    F: tl.tensor, C: tl.constexpr, P: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Compute partial [chunks, C, P F], the contribution of each chunk of edges to weight_grad.

    There is one program per chunk and block of features. COLUMNS is the smallest power of two that is at least C.
    """
    f, feature_mask = _select_features(F, BLOCK)
    plane = atoms.to(tl.int64) * F
    c = tl.arange(0, COLUMNS)
    zero = tl.zeros([COLUMNS, BLOCK], phi.dtype.element_ty)
    sum_s, sum_r, sum_v = zero, zero, zero
    first = tl.program_id(0).to(tl.int64) * chunk
    for e in range(first, tl.minimum(first + chunk, edges), 1):
        i, j = tl.load(receiver + e) * F + f, tl.load(sender + e)
        r = tl.load(radial + e * C + c, mask=c < C, other=0.0)[:, None]
        x = tl.load(grad_v + i, mask=feature_mask, other=0.0)
        y = tl.load(grad_v + plane + i, mask=feature_mask, other=0.0)
        z = tl.load(grad_v + 2 * plane + i, mask=feature_mask, other=0.0)
        phi_row = phi + j * P * F + f
        projection = x * tl.load(unit + 3 * e) + y * tl.load(unit + 3 * e + 1) + z * tl.load(unit + 3 * e + 2)
        w_s_grad = tl.load(grad_s + i, mask=feature_mask, other=0.0) * tl.load(phi_row, mask=feature_mask, other=0.0)
        sum_s += r * w_s_grad[None, :]
        sum_r += r * (projection * tl.load(phi_row + F, mask=feature_mask, other=0.0))[None, :]
        if P == 3:
            v_row = v + j * F + f
            w_v_grad = x * tl.load(v_row, mask=feature_mask, other=0.0)
            w_v_grad += y * tl.load(v_row + plane, mask=feature_mask, other=0.0)
            w_v_grad += z * tl.load(v_row + 2 * plane, mask=feature_mask, other=0.0)
            sum_v += r * (w_v_grad * tl.load(phi_row + 2 * F, mask=feature_mask, other=0.0))[None, :]
    target = partial + (tl.program_id(0).to(tl.int64) * C + c[:, None]) * P * F + f[None, :]
    mask = (c < C)[:, None] & feature_mask[None, :]
    tl.store(target, sum_s, mask=mask)
    tl.store(target + F, sum_r, mask=mask)
    if P == 3:
        tl.store(target + 2 * F, sum_v, mask=mask)
