// The gradient with respect to the weight, for messages_backward (first derivative) and messages_second (second
// derivative).

#pragma once

#include "kernels.h"

namespace fused {

// The tangents of phi, v, radial and unit along which the first gradients are differentiated.
template <class T>
struct Tangents {
  const T *phi, *v, *radial, *unit;
};

// The tangents that exist: none (first derivative), those of radial and unit, or those of phi and v too.
enum class TangentKind { NONE, EDGES, ALL };

// One vector of features of every atom, with the values of an atom next to each other, so that the values that all
// edges gather stay in the L2 cache. As a sender, an atom has phi_s, phi_r and phi_v v, then the tangents of these; as
// a receiver, it has grad_s and grad_v.
template <class T, bool WITH_V, bool WITH_TANGENTS>
struct AtomSlice {
  using V = Vector<T>;
  static constexpr int VALUES = WITH_V ? 5 : 2, SENDER_SIZE = WITH_TANGENTS ? 2 * VALUES : VALUES, RECEIVER_SIZE = 4;
  std::vector<V> senders, receivers;

  explicit AtomSlice(int64_t atoms) : senders(atoms * SENDER_SIZE), receivers(atoms * RECEIVER_SIZE) {}

  void fill(const Inputs<T>& in, const Gradients<T>& g, const Tangents<T>& tangents, int64_t t) {
    const int64_t F = in.width, plane = in.atoms * F, P = in.parts;
    for (int64_t j = 0; j < in.atoms; ++j) {
      V *sender = senders.data() + j * SENDER_SIZE, *receiver = receivers.data() + j * RECEIVER_SIZE;
      const T* phi = in.phi_at(j, t);
      const int64_t offset = j * F + in.offset(t);
      sender[0] = load(phi);
      sender[1] = load(phi + F);
      receiver[0] = load(g.grad_s + offset);
      for (int a = 0; a < 3; ++a) {
        receiver[1 + a] = load(g.grad_v + a * plane + offset);
        if constexpr (WITH_V) sender[2 + a] = load(phi + 2 * F) * load(in.v_at(a, j, t));
      }
      if constexpr (WITH_TANGENTS) {
        const T* d_phi = tangents.phi + j * P * F + in.offset(t);
        sender[VALUES] = load(d_phi);
        sender[VALUES + 1] = load(d_phi + F);
        if constexpr (WITH_V)
          for (int a = 0; a < 3; ++a)
            sender[VALUES + 2 + a] = load(d_phi + 2 * F) * load(in.v_at(a, j, t)) +
                              load(phi + 2 * F) * load(tangents.v + a * plane + offset);
      }
    }
  }
};

// Compute weight_grad, packed like the weight. The threads divide the features; each vector of features loops over all
// edges in their order.
template <class T, int C, bool WITH_V, TangentKind TANGENTS>
void filter_kernel(const Inputs<T>& in, const Gradients<T>& g, const Tangents<T>& tangents, int64_t edges,
                   T* weight_grad) {
  using V = Vector<T>;
  constexpr int P = WITH_V ? 3 : 2;
  constexpr bool EDGES = TANGENTS != TangentKind::NONE, ALL = TANGENTS == TangentKind::ALL;
  using Atoms = AtomSlice<T, WITH_V, ALL>;
  at::parallel_for(0, in.vectors, 1, [&](int64_t first, int64_t last) {
    Atoms atoms(in.atoms);
    for (int64_t t = first; t < last; ++t) {
      atoms.fill(in, g, tangents, t);
      V sum[P * C]{};
      for (int64_t e = 0; e < edges; ++e) {
        const V *sender = atoms.senders.data() + in.sender[e] * Atoms::SENDER_SIZE, *d_sender = sender + Atoms::VALUES;
        const V* receiver = atoms.receivers.data() + in.receiver[e] * Atoms::RECEIVER_SIZE;
        const T *r = in.radial + e * in.pitch, *u = in.unit + 3 * e;
        const V x = receiver[1], y = receiver[2], z = receiver[3], projection = x * u[0] + y * u[1] + z * u[2];
        V w_s_grad = receiver[0] * sender[0], w_r_grad = projection * sender[1], w_v_grad{};
        V d_w_s_grad{}, d_w_r_grad{}, d_w_v_grad{};
        if constexpr (WITH_V) w_v_grad = x * sender[2] + y * sender[3] + z * sender[4];
        if constexpr (ALL) {
          d_w_s_grad = receiver[0] * d_sender[0];
          d_w_r_grad = projection * d_sender[1];
          if constexpr (WITH_V) d_w_v_grad = x * d_sender[2] + y * d_sender[3] + z * d_sender[4];
        }
        if constexpr (EDGES) {
          const T* d_u = tangents.unit + 3 * e;
          d_w_r_grad += (x * d_u[0] + y * d_u[1] + z * d_u[2]) * sender[1];
        }
        const T* d_r = EDGES ? tangents.radial + e * in.pitch : r;
#pragma GCC unroll 32
        for (int c = 0; c < C; ++c) {
          sum[c] += d_r[c] * w_s_grad;
          sum[C + c] += d_r[c] * w_r_grad;
          if constexpr (WITH_V) sum[2 * C + c] += d_r[c] * w_v_grad;
          if constexpr (EDGES) sum[C + c] += r[c] * d_w_r_grad;
          if constexpr (ALL) sum[c] += r[c] * d_w_s_grad;
          if constexpr (ALL && WITH_V) sum[2 * C + c] += r[c] * d_w_v_grad;
        }
      }
      std::memcpy(weight_grad + t * P * C * LANES<T>, sum, sizeof sum);
    }
  });
}

}  // namespace fused
