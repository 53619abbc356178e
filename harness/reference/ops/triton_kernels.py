"""PaiNN's messages and their derivatives for GPUs, in Triton (eqs. 7 and 8 of arXiv 2102.03150).

s_i = sum_j W_s phi_s_j        v_ia = sum_j W_r phi_r_j u_a + W_v phi_v_j v_ja        W = radial weight

Sizes and layouts are those of messages.py, all contiguous: F features, C columns of radial, P = 3 parts (s, r, v), or
two without v. Edges x features exist only as tiles in registers, EDGES x BLOCK, and each recomputes W. One program sums
each number, in an order that depends on the graph alone: there are no atomics. order and start give the edges of an
atom: order[start[atom]] .. order[start[atom + 1] - 1].
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


@triton.jit
def _features(F: tl.tensor, BLOCK: tl.constexpr) -> Any:
    """Return the features of this program, and which of them exist."""
    f = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    return f, f < F


@triton.jit
def _rows(x: tl.tensor, row: tl.tensor, pitch: tl.tensor, f: tl.tensor, inside: tl.tensor) -> Any:
    """Load x[row, f] where inside, else 0: a tile [EDGES, BLOCK]."""
    return tl.load(x + (row * pitch)[:, None] + f[None, :], mask=inside, other=0.0)


@triton.jit
def _filters(
    radial: tl.tensor, weight: tl.tensor, e: tl.tensor, valid: tl.tensor, f: tl.tensor, real: tl.tensor, F: tl.tensor,
    C: tl.constexpr, P: tl.constexpr,
) -> Any:  # fmt: skip
    """Compute W_s, W_r and W_v of edges e and features f, [EDGES, BLOCK] each; W_v is 0 if there are two parts."""
    zero = tl.zeros([e.shape[0], f.shape[0]], radial.dtype.element_ty)
    w_s, w_r, w_v = zero, zero, zero
    for c in tl.static_range(C):
        r = tl.load(radial + e * C + c, mask=valid, other=0.0)[:, None]
        row = weight + c * P * F + f
        w_s += r * tl.load(row, mask=real, other=0.0)[None, :]
        w_r += r * tl.load(row + F, mask=real, other=0.0)[None, :]
        if P == 3:
            w_v += r * tl.load(row + 2 * F, mask=real, other=0.0)[None, :]
    return w_s, w_r, w_v


@triton.jit
def _unit(unit: tl.tensor, e: tl.tensor, valid: tl.tensor) -> Any:
    """Load x, y and z of the directions of edges, [EDGES, 1] each."""
    at = unit + 3 * e
    x = tl.load(at, mask=valid, other=0.0)
    y = tl.load(at + 1, mask=valid, other=0.0)
    z = tl.load(at + 2, mask=valid, other=0.0)
    return x[:, None], y[:, None], z[:, None]


@triton.jit(do_not_specialize=["atoms"])
def messages_kernel(
    s: tl.tensor, v_sum: tl.tensor, phi: tl.tensor, v: tl.tensor, radial: tl.tensor, weight: tl.tensor, unit: tl.tensor,
    sender: tl.tensor, order: tl.tensor, start: tl.tensor, atoms: tl.tensor, F: tl.tensor, C: tl.constexpr,
    P: tl.constexpr, EDGES: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Compute s [n, F] and v_sum [3, n, F], with one program per receiver and block of features."""
    i = tl.program_id(0).to(tl.int64)
    f, real = _features(F, BLOCK)
    zero = tl.zeros([EDGES, BLOCK], phi.dtype.element_ty)
    of_s, of_x, of_y, of_z = zero, zero, zero, zero
    plane = atoms.to(tl.int64) * F
    last = tl.load(start + i + 1)
    for k in range(tl.load(start + i), last, EDGES):
        at = k + tl.arange(0, EDGES)
        valid = at < last
        inside = valid[:, None] & real[None, :]
        e = tl.load(order + at, mask=valid, other=0)
        j = tl.load(sender + e, mask=valid, other=0)
        w_s, w_r, w_v = _filters(radial, weight, e, valid, f, real, F, C, P)
        x, y, z = _unit(unit, e, valid)
        of_s += w_s * _rows(phi, j, P * F, f, inside)
        along = w_r * _rows(phi + F, j, P * F, f, inside)
        of_x += along * x
        of_y += along * y
        of_z += along * z
        if P == 3:
            across = w_v * _rows(phi + 2 * F, j, P * F, f, inside)
            of_x += across * _rows(v, j, F, f, inside)
            of_y += across * _rows(v + plane, j, F, f, inside)
            of_z += across * _rows(v + 2 * plane, j, F, f, inside)
    to = i * F + f
    tl.store(s + to, tl.sum(of_s, axis=0), mask=real)
    tl.store(v_sum + to, tl.sum(of_x, axis=0), mask=real)
    tl.store(v_sum + plane + to, tl.sum(of_y, axis=0), mask=real)
    tl.store(v_sum + 2 * plane + to, tl.sum(of_z, axis=0), mask=real)


@triton.jit(do_not_specialize=["atoms"])
def messages_of_nodes_kernel(
    by_phi: tl.tensor, by_v: tl.tensor, grad_s: tl.tensor, grad_v: tl.tensor, phi: tl.tensor, v: tl.tensor,
    radial: tl.tensor, weight: tl.tensor, unit: tl.tensor, receiver: tl.tensor, order: tl.tensor, start: tl.tensor,
    atoms: tl.tensor, F: tl.tensor, C: tl.constexpr, P: tl.constexpr, EDGES: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Compute by_phi [n, P F] and by_v [3, n, F], with one program per sender and block of features."""
    j = tl.program_id(0).to(tl.int64)
    f, real = _features(F, BLOCK)
    zero = tl.zeros([EDGES, BLOCK], phi.dtype.element_ty)
    by_s, by_r, by_x, by_y, by_z = zero, zero, zero, zero, zero
    plane = atoms.to(tl.int64) * F
    last = tl.load(start + j + 1)
    for k in range(tl.load(start + j), last, EDGES):
        at = k + tl.arange(0, EDGES)
        valid = at < last
        inside = valid[:, None] & real[None, :]
        e = tl.load(order + at, mask=valid, other=0)
        i = tl.load(receiver + e, mask=valid, other=0)
        w_s, w_r, w_v = _filters(radial, weight, e, valid, f, real, F, C, P)
        x, y, z = _unit(unit, e, valid)
        of_x = _rows(grad_v, i, F, f, inside)
        of_y = _rows(grad_v + plane, i, F, f, inside)
        of_z = _rows(grad_v + 2 * plane, i, F, f, inside)
        by_s += w_s * _rows(grad_s, i, F, f, inside)
        by_r += w_r * (of_x * x + of_y * y + of_z * z)
        if P == 3:
            by_x += w_v * of_x
            by_y += w_v * of_y
            by_z += w_v * of_z
    of_phi = j * P * F + f
    tl.store(by_phi + of_phi, tl.sum(by_s, axis=0), mask=real)
    tl.store(by_phi + of_phi + F, tl.sum(by_r, axis=0), mask=real)
    if P == 3:
        # phi_v and v are the same on all edges of a sender, so each multiplies the sum over the edges of the other
        to = j * F + f
        x, y, z = tl.sum(by_x, axis=0), tl.sum(by_y, axis=0), tl.sum(by_z, axis=0)
        v_x = tl.load(v + to, mask=real, other=0.0)
        v_y = tl.load(v + plane + to, mask=real, other=0.0)
        v_z = tl.load(v + 2 * plane + to, mask=real, other=0.0)
        phi_v = tl.load(phi + of_phi + 2 * F, mask=real, other=0.0)
        tl.store(by_phi + of_phi + 2 * F, x * v_x + y * v_y + z * v_z, mask=real)
        tl.store(by_v + to, phi_v * x, mask=real)
        tl.store(by_v + plane + to, phi_v * y, mask=real)
        tl.store(by_v + 2 * plane + to, phi_v * z, mask=real)


@triton.jit(do_not_specialize=["atoms", "edges"])
def messages_of_edges_kernel(
    partial: tl.tensor, grad_s: tl.tensor, grad_v: tl.tensor, phi: tl.tensor, v: tl.tensor, radial: tl.tensor,
    weight: tl.tensor, unit: tl.tensor, receiver: tl.tensor, sender: tl.tensor, edges: tl.tensor, atoms: tl.tensor,
    F: tl.tensor, C: tl.constexpr, P: tl.constexpr, EDGES: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Compute partial [blocks, e, C + 3], by_radial and by_unit of each block of features, per tile of edges."""
    f, real = _features(F, BLOCK)
    plane = atoms.to(tl.int64) * F
    e = tl.program_id(0).to(tl.int64) * EDGES + tl.arange(0, EDGES)
    valid = e < edges
    inside = valid[:, None] & real[None, :]
    i = tl.load(receiver + e, mask=valid, other=0)
    j = tl.load(sender + e, mask=valid, other=0)
    x, y, z = _unit(unit, e, valid)
    of_x = _rows(grad_v, i, F, f, inside)
    of_y = _rows(grad_v + plane, i, F, f, inside)
    of_z = _rows(grad_v + 2 * plane, i, F, f, inside)
    phi_r = _rows(phi + F, j, P * F, f, inside)
    by_w_s = _rows(grad_s, i, F, f, inside) * _rows(phi, j, P * F, f, inside)
    by_w_r = (of_x * x + of_y * y + of_z * z) * phi_r
    by_w_v = tl.zeros([EDGES, BLOCK], phi.dtype.element_ty)
    if P == 3:
        by_w_v = of_x * _rows(v, j, F, f, inside) + of_y * _rows(v + plane, j, F, f, inside)
        by_w_v += of_z * _rows(v + 2 * plane, j, F, f, inside)
        by_w_v *= _rows(phi + 2 * F, j, P * F, f, inside)
    to = partial + (tl.program_id(1) * edges.to(tl.int64) + e) * (C + 3)
    w_r = tl.zeros([EDGES, BLOCK], phi.dtype.element_ty)
    for c in tl.static_range(C):
        r = tl.load(radial + e * C + c, mask=valid, other=0.0)[:, None]
        row = weight + c * P * F + f
        of_r = tl.load(row + F, mask=real, other=0.0)[None, :]
        w_r += r * of_r
        by_r = by_w_s * tl.load(row, mask=real, other=0.0)[None, :] + by_w_r * of_r
        if P == 3:
            by_r += by_w_v * tl.load(row + 2 * F, mask=real, other=0.0)[None, :]
        tl.store(to + c, tl.sum(by_r, axis=1), mask=valid)
    through = w_r * phi_r
    tl.store(to + C, tl.sum(through * of_x, axis=1), mask=valid)
    tl.store(to + C + 1, tl.sum(through * of_y, axis=1), mask=valid)
    tl.store(to + C + 2, tl.sum(through * of_z, axis=1), mask=valid)


@triton.jit(do_not_specialize=["atoms", "edges", "chunk"])
def messages_of_filter_kernel(
    partial: tl.tensor, grad_s: tl.tensor, grad_v: tl.tensor, phi: tl.tensor, v: tl.tensor, radial: tl.tensor,
    unit: tl.tensor, receiver: tl.tensor, sender: tl.tensor, edges: tl.tensor, chunk: tl.tensor, atoms: tl.tensor,
    F: tl.tensor, C: tl.constexpr, P: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Compute partial [chunks, C, P F], by_weight of each chunk of edges, by programs per chunk and block of features.

    COLUMNS is the smallest power of two that is at least C.
    """
    f, real = _features(F, BLOCK)
    plane = atoms.to(tl.int64) * F
    c = tl.arange(0, COLUMNS)
    zero = tl.zeros([COLUMNS, BLOCK], phi.dtype.element_ty)
    of_s, of_r, of_v = zero, zero, zero
    first = tl.program_id(0).to(tl.int64) * chunk
    for e in range(first, tl.minimum(first + chunk, edges), 1):
        i, j = tl.load(receiver + e) * F + f, tl.load(sender + e)
        r = tl.load(radial + e * C + c, mask=c < C, other=0.0)[:, None]
        x = tl.load(grad_v + i, mask=real, other=0.0)
        y = tl.load(grad_v + plane + i, mask=real, other=0.0)
        z = tl.load(grad_v + 2 * plane + i, mask=real, other=0.0)
        of_phi = phi + j * P * F + f
        along = x * tl.load(unit + 3 * e) + y * tl.load(unit + 3 * e + 1) + z * tl.load(unit + 3 * e + 2)
        by_w_s = tl.load(grad_s + i, mask=real, other=0.0) * tl.load(of_phi, mask=real, other=0.0)
        of_s += r * by_w_s[None, :]
        of_r += r * (along * tl.load(of_phi + F, mask=real, other=0.0))[None, :]
        if P == 3:
            at = v + j * F + f
            by_w_v = x * tl.load(at, mask=real, other=0.0) + y * tl.load(at + plane, mask=real, other=0.0)
            by_w_v += z * tl.load(at + 2 * plane, mask=real, other=0.0)
            of_v += r * (by_w_v * tl.load(of_phi + 2 * F, mask=real, other=0.0))[None, :]
    to = partial + (tl.program_id(0).to(tl.int64) * C + c[:, None]) * P * F + f[None, :]
    inside = (c < C)[:, None] & real[None, :]
    tl.store(to, of_s, mask=inside)
    tl.store(to + F, of_r, mask=inside)
    if P == 3:
        tl.store(to + 2 * F, of_v, mask=inside)
