// PaiNN's messages (eqs. 7 and 8 of arXiv 2102.03150) from senders to receivers, and their derivatives, for CPUs.
//
//   s_i = sum_j W_s phi_s_j        v_ia = sum_j W_r phi_r_j u_a + W_v phi_v_j v_ja        W = radial weight
//
// There are n atoms, e edges, F features and C columns of radial. phi [n, P F] and weight [C, P F] have P = 3 parts
// (s, r, v), or two if there is no v [3, n, F]. No tensor of e rows and F columns exists: W is held in vector registers
// and computed anew wherever it is needed. One thread computes each sum, in an order that depends on the graph alone.
// plane is the size of one of the three components of v.

#pragma once

#include "rows.h"
#include "../segments/vectors.h"

namespace fused {

// Pointers to the tensors that the kernels read. t is the index of a vector of features; the last vector overlaps the
// one before. pitch is the length of a row of radial.
template <class T>
struct Inputs {
  int64_t atoms, width, parts, vectors, pitch;
  const T *phi, *v, *radial, *unit, *weight;
  const int64_t *receiver, *sender;

  int64_t offset(int64_t t) const { return std::min(t * LANES<T>, width - LANES<T>); }
  const T* phi_at(int64_t j, int64_t t) const { return phi + j * parts * width + offset(t); }
  const T* v_at(int64_t a, int64_t j, int64_t t) const { return v + (a * atoms + j) * width + offset(t); }
};

constexpr int64_t CHUNK = 64;           // number of atoms that use a block of weights in turn
constexpr int64_t BLOCK_BYTES = 16384;  // size of a block of weights, which must fit into the L1 cache

template <class T>
int64_t vectors_per_block(int64_t parts, int64_t columns) {
  return std::max<int64_t>(1, BLOCK_BYTES / (parts * columns * VECTOR_BYTES));
}

// Call f(first atom, end of the atoms, first vector, end of the vectors) for each chunk of atoms and block of vectors.
template <class F>
void for_each_block(int64_t from, int64_t to, int64_t vectors, int64_t block, const F& f) {
  for (int64_t i = from; i < to; i += CHUNK)
    for (int64_t t = 0; t < vectors; t += block) f(i, std::min(i + CHUNK, to), t, std::min(t + block, vectors));
}

// Add the messages of all neighbours to s and v.
template <class T, int C, bool WITH_V>
void messages_kernel(const Inputs<T>& in, const EdgesByAtom& edges, T* s, T* v) {
  using V = Vector<T>;
  constexpr int P = WITH_V ? 3 : 2;
  const int64_t F = in.width;
  const auto sum_block = [&](int64_t first, int64_t last, int64_t t0, int64_t t1) {
    for (int64_t i = first; i < last; ++i) {
      for (int64_t t = t0; t < t1; ++t) {
        const V* w = reinterpret_cast<const V*>(in.weight) + t * P * C;
        V sum_s{}, sum_x{}, sum_y{}, sum_z{};
        for (int64_t k = edges.start[i]; k < edges.start[i + 1]; ++k) {
          const int64_t e = edges.order[k], j = in.sender[e];
          const T *r = in.radial + e * in.pitch, *u = in.unit + 3 * e, *phi = in.phi_at(j, t);
          V w_s{}, w_r{}, w_v{};
#pragma GCC unroll 32
          for (int c = 0; c < C; ++c) {
            w_s += r[c] * w[c];
            w_r += r[c] * w[C + c];
            if constexpr (WITH_V) w_v += r[c] * w[2 * C + c];
          }
          sum_s += w_s * load(phi);
          w_r *= load(phi + F);
          sum_x += w_r * u[0];
          sum_y += w_r * u[1];
          sum_z += w_r * u[2];
          if constexpr (WITH_V) {
            w_v *= load(phi + 2 * F);
            sum_x += w_v * load(in.v_at(0, j, t));
            sum_y += w_v * load(in.v_at(1, j, t));
            sum_z += w_v * load(in.v_at(2, j, t));
          }
        }
        const int64_t offset = i * F + in.offset(t), plane = in.atoms * F;
        add_to(s + offset, sum_s);
        add_to(v + offset, sum_x);
        add_to(v + offset + plane, sum_y);
        add_to(v + offset + 2 * plane, sum_z);
      }
    }
  };
  edges.parallel([&](int64_t first, int64_t last) {
    for_each_block(first, last, in.vectors, vectors_per_block<T>(P, C), sum_block);
  });
}

template <class T>
struct Gradients {
  const T *grad_s, *grad_v;                          // with respect to the outputs, which the kernels read
  T *phi_grad, *v_grad, *radial_grad, *unit_grad;  // with respect to the arguments, to which the kernels add
};

// Add to the gradients of radial and unit and, with NODES, of phi and v. For each sender and vector of features, sums
// over the edges are collected first: of phi_s, of phi_r and, with v, of the three components of W_v grad_v.
template <class T, int C, bool WITH_V, bool NODES>
void backward_kernel(const Inputs<T>& in, const EdgesByAtom& edges, const Gradients<T>& g) {
  using V = Vector<T>;
  constexpr int P = WITH_V ? 3 : 2, SUMS = WITH_V ? 5 : 2;
  const int64_t F = in.width, plane = in.atoms * F;
  const auto add_sender = [&](V* sums, int64_t j, int64_t t0, int64_t t1) {
    if (NODES) std::fill_n(sums, (t1 - t0) * SUMS, V{});
    for (int64_t k = edges.start[j]; k < edges.start[j + 1]; ++k) {
      const int64_t e = edges.order[k], i = in.receiver[e];
      const T *r = in.radial + e * in.pitch, *u = in.unit + 3 * e;
      V radial_grad[C]{}, unit_grad[3]{};
      for (int64_t t = t0; t < t1; ++t) {
        const V* w = reinterpret_cast<const V*>(in.weight) + t * P * C;
        const T* phi = in.phi_at(j, t);
        const int64_t offset = i * F + in.offset(t);
        V w_s{}, w_r{}, w_v{};
#pragma GCC unroll 32
        for (int c = 0; c < C; ++c) {
          if (NODES) w_s += r[c] * w[c];
          w_r += r[c] * w[C + c];
          if constexpr (WITH_V && NODES) w_v += r[c] * w[2 * C + c];
        }
        const V grad_s = load(g.grad_s + offset);
        const V x = load(g.grad_v + offset), y = load(g.grad_v + offset + plane);
        const V z = load(g.grad_v + offset + 2 * plane);
        const V phi_r = load(phi + F), projection = x * u[0] + y * u[1] + z * u[2];
        const V length = w_r * phi_r, w_s_grad = grad_s * load(phi), w_r_grad = projection * phi_r;
        unit_grad[0] += length * x;
        unit_grad[1] += length * y;
        unit_grad[2] += length * z;
        if (NODES) {
          V* sum = sums + (t - t0) * SUMS;
          sum[0] += w_s * grad_s;
          sum[1] += w_r * projection;
          if constexpr (WITH_V) {
            sum[2] += w_v * x;
            sum[3] += w_v * y;
            sum[4] += w_v * z;
          }
        }
        V w_v_grad{};
        if constexpr (WITH_V)
          w_v_grad = load(phi + 2 * F) *
                   (x * load(in.v_at(0, j, t)) + y * load(in.v_at(1, j, t)) + z * load(in.v_at(2, j, t)));
#pragma GCC unroll 32
        for (int c = 0; c < C; ++c) {
          radial_grad[c] += w_s_grad * w[c] + w_r_grad * w[C + c];
          if constexpr (WITH_V) radial_grad[c] += w_v_grad * w[2 * C + c];
        }
      }
      for (int c = 0; c < C; ++c) g.radial_grad[e * in.pitch + c] += sum_lanes<T, VECTOR_BYTES>(radial_grad[c]);
      for (int a = 0; a < 3; ++a) g.unit_grad[3 * e + a] += sum_lanes<T, VECTOR_BYTES>(unit_grad[a]);
    }
    if (!NODES) return;
    for (int64_t t = t0; t < t1; ++t) {
      const V* sum = sums + (t - t0) * SUMS;
      T* phi_grad = g.phi_grad + j * P * F + in.offset(t);
      add_to(phi_grad, sum[0]);
      add_to(phi_grad + F, sum[1]);
      if constexpr (WITH_V) {
        const V phi_v = load(in.phi_at(j, t) + 2 * F);
        V phi_v_grad{};
        for (int a = 0; a < 3; ++a) {
          phi_v_grad += sum[2 + a] * load(in.v_at(a, j, t));
          add_to(g.v_grad + a * plane + j * F + in.offset(t), sum[2 + a] * phi_v);
        }
        add_to(phi_grad + 2 * F, phi_v_grad);
      }
    }
  };
  const int64_t block = 2 * vectors_per_block<T>(P, C);
  edges.parallel([&](int64_t first, int64_t last) {
    std::vector<V> sums(NODES ? block * SUMS : 0);
    for_each_block(first, last, in.vectors, block, [&](int64_t from, int64_t to, int64_t t0, int64_t t1) {
      for (int64_t j = from; j < to; ++j) add_sender(sums.data(), j, t0, t1);
    });
  });
}

}  // namespace fused
