// Gradients by the weights of the filters, of the messages and of the derivative of their gradients.

#pragma once

#include "kernels.h"

namespace fused {

// Directions in which the gradients by phi, v, radial and unit are derived: the cotangents of those gradients.
template <class T>
struct Directions {
  const T *phi, *v, *radial, *unit;
};

// Which directions there are: none (the first derivative), those of the edges, or those of the atoms too.
enum class Along { NONE, EDGES, ALL };

// One vector of features of every atom, each atom's in a row: as sender (phi_s, phi_r, phi_v v, and the same of the
// directions), as receiver (to_s, to_v). So that what all edges gather from stays in the second cache.
template <class T, bool WITH_V, bool TWICE>
struct Slice {
  using V = Vector<T>;
  static constexpr int ONE = WITH_V ? 5 : 2, SENT = TWICE ? 2 * ONE : ONE, HEARD = 4;
  std::vector<V> sent, heard;

  explicit Slice(int64_t atoms) : sent(atoms * SENT), heard(atoms * HEARD) {}

  void take(const Inputs<T>& in, const Gradients<T>& g, const Directions<T>& along, int64_t t) {
    const int64_t F = in.width, all = in.atoms * F, P = in.parts;
    for (int64_t j = 0; j < in.atoms; ++j) {
      V *to = sent.data() + j * SENT, *from = heard.data() + j * HEARD;
      const T* phi = in.phi_of(j, t);
      const int64_t at = j * F + in.at(t);
      to[0] = load(phi);
      to[1] = load(phi + F);
      from[0] = load(g.to_s + at);
      for (int a = 0; a < 3; ++a) {
        from[1 + a] = load(g.to_v + a * all + at);
        if constexpr (WITH_V) to[2 + a] = load(phi + 2 * F) * load(in.v_of(a, j, t));
      }
      if constexpr (TWICE) {
        const T* d_phi = along.phi + j * P * F + in.at(t);
        to[ONE] = load(d_phi);
        to[ONE + 1] = load(d_phi + F);
        if constexpr (WITH_V)
          for (int a = 0; a < 3; ++a)
            to[ONE + 2 + a] = load(d_phi + 2 * F) * load(in.v_of(a, j, t)) +
                              load(phi + 2 * F) * load(along.v + a * all + at);
      }
    }
  }
};

// by_weight: packed like the weights. Threads share out the features, each of which takes all edges in their order.
template <class T, int C, bool WITH_V, Along ALONG>
void filter_kernel(const Inputs<T>& in, const Gradients<T>& g, const Directions<T>& along, int64_t edges,
                   T* by_weight) {
  using V = Vector<T>;
  constexpr int P = WITH_V ? 3 : 2;
  constexpr bool EDGES = ALONG != Along::NONE, ALL = ALONG == Along::ALL;
  using Atoms = Slice<T, WITH_V, ALL>;
  at::parallel_for(0, in.vectors, 1, [&](int64_t first, int64_t last) {
    Atoms atoms(in.atoms);
    for (int64_t t = first; t < last; ++t) {
      atoms.take(in, g, along, t);
      V sum[P * C]{};
      for (int64_t e = 0; e < edges; ++e) {
        const V *sent = atoms.sent.data() + in.sender[e] * Atoms::SENT, *d_sent = sent + Atoms::ONE;
        const V* heard = atoms.heard.data() + in.receiver[e] * Atoms::HEARD;
        const T *r = in.radial + e * in.pitch, *u = in.unit + 3 * e;
        const V x = heard[1], y = heard[2], z = heard[3], straight = x * u[0] + y * u[1] + z * u[2];
        V of_s = heard[0] * sent[0], of_r = straight * sent[1], of_v{}, d_s{}, d_r{}, d_v{};
        if constexpr (WITH_V) of_v = x * sent[2] + y * sent[3] + z * sent[4];
        if constexpr (ALL) {
          d_s = heard[0] * d_sent[0];
          d_r = straight * d_sent[1];
          if constexpr (WITH_V) d_v = x * d_sent[2] + y * d_sent[3] + z * d_sent[4];
        }
        if constexpr (EDGES) {
          const T* d_u = along.unit + 3 * e;
          d_r += (x * d_u[0] + y * d_u[1] + z * d_u[2]) * sent[1];
        }
        const T* d = EDGES ? along.radial + e * in.pitch : r;
#pragma GCC unroll 32
        for (int c = 0; c < C; ++c) {
          sum[c] += d[c] * of_s;
          sum[C + c] += d[c] * of_r;
          if constexpr (WITH_V) sum[2 * C + c] += d[c] * of_v;
          if constexpr (EDGES) sum[C + c] += r[c] * d_r;
          if constexpr (ALL) sum[c] += r[c] * d_s;
          if constexpr (ALL && WITH_V) sum[2 * C + c] += r[c] * d_v;
        }
      }
      std::memcpy(by_weight + t * P * C * LANES<T>, sum, sizeof sum);
    }
  });
}

}  // namespace fused
