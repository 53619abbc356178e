// PaiNN's messages (eqs. 7 and 8 of arXiv 2102.03150) from senders to receivers, and their derivatives, for CPUs.
//
//   s_i = sum_j W_s phi_s_j        v_ia = sum_j W_r phi_r_j u_a + W_v phi_v_j v_ja        W = radial weight
//
// n atoms, e edges, width F, C columns of radial. phi [n, P F] and weight [C, P F] hold P = 3 parts (s, r, v), or two
// where there is no v [3, n, F]. No tensor of e rows and F columns exists: W lives in vector registers and is computed
// anew where it is needed. Each number is summed up by one thread in an order that the graph alone decides.

#pragma once

#include "rows.h"
#include "vectors.h"

namespace fused {

// Pointers into what the kernels read; vectors of features are counted by t, the last one overlapping the one before.
template <class T>
struct Inputs {
  int64_t atoms, width, parts, vectors, pitch;
  const T *phi, *v, *radial, *unit, *weight;
  const int64_t *receiver, *sender;

  int64_t at(int64_t t) const { return std::min(t * LANES<T>, width - LANES<T>); }
  const T* phi_of(int64_t j, int64_t t) const { return phi + j * parts * width + at(t); }
  const T* v_of(int64_t a, int64_t j, int64_t t) const { return v + (a * atoms + j) * width + at(t); }
};

constexpr int64_t CHUNK = 64;         // atoms that share a block of weights
constexpr int64_t BLOCK_BYTES = 16384;  // of weights, to stay in the nearest cache

template <class T>
int64_t block_of(int64_t parts, int64_t columns) {
  return std::max<int64_t>(1, BLOCK_BYTES / (parts * columns * BYTES));
}

// f(atoms first .. last, vectors first .. last)
template <class F>
void blocks(int64_t from, int64_t to, int64_t vectors, int64_t block, const F& f) {
  for (int64_t i = from; i < to; i += CHUNK)
    for (int64_t t = 0; t < vectors; t += block) f(i, std::min(i + CHUNK, to), t, std::min(t + block, vectors));
}

template <class T, int C, bool WITH_V>
void messages_kernel(const Inputs<T>& in, const Rows& rows, T* s, T* v) {
  using V = Vector<T>;
  constexpr int P = WITH_V ? 3 : 2;
  const int64_t F = in.width;
  const auto work = [&](int64_t first, int64_t last, int64_t t0, int64_t t1) {
    for (int64_t i = first; i < last; ++i) {
      for (int64_t t = t0; t < t1; ++t) {
        const V* w = reinterpret_cast<const V*>(in.weight) + t * P * C;
        V to_s{}, to_x{}, to_y{}, to_z{};
        for (int64_t k = rows.start[i]; k < rows.start[i + 1]; ++k) {
          const int64_t e = rows.order[k], j = in.sender[e];
          const T *r = in.radial + e * in.pitch, *u = in.unit + 3 * e, *phi = in.phi_of(j, t);
          V w_s{}, w_r{}, w_v{};
#pragma GCC unroll 32
          for (int c = 0; c < C; ++c) {
            w_s += r[c] * w[c];
            w_r += r[c] * w[C + c];
            if constexpr (WITH_V) w_v += r[c] * w[2 * C + c];
          }
          to_s += w_s * load(phi);
          w_r *= load(phi + F);
          to_x += w_r * u[0];
          to_y += w_r * u[1];
          to_z += w_r * u[2];
          if constexpr (WITH_V) {
            w_v *= load(phi + 2 * F);
            to_x += w_v * load(in.v_of(0, j, t));
            to_y += w_v * load(in.v_of(1, j, t));
            to_z += w_v * load(in.v_of(2, j, t));
          }
        }
        const int64_t at = i * F + in.at(t), all = in.atoms * F;
        add(s + at, to_s);
        add(v + at, to_x);
        add(v + at + all, to_y);
        add(v + at + 2 * all, to_z);
      }
    }
  };
  rows.parallel([&](int64_t first, int64_t last) {
    blocks(first, last, in.vectors, block_of<T>(P, C), work);
  });
}

template <class T>
struct Gradients {
  const T *to_s, *to_v;          // of what the messages go into
  T *phi, *v, *radial, *unit;  // of what they are made of
};

template <class T, int C, bool WITH_V, bool NODES>
void backward_kernel(const Inputs<T>& in, const Rows& rows, const Gradients<T>& g) {
  using V = Vector<T>;
  constexpr int P = WITH_V ? 3 : 2, ROW = WITH_V ? 5 : 2;
  const int64_t F = in.width, all = in.atoms * F;
  const auto work = [&](V* sums, int64_t j, int64_t t0, int64_t t1) {
    if (NODES) std::fill_n(sums, (t1 - t0) * ROW, V{});
    for (int64_t k = rows.start[j]; k < rows.start[j + 1]; ++k) {
      const int64_t e = rows.order[k], i = in.receiver[e];
      const T *r = in.radial + e * in.pitch, *u = in.unit + 3 * e;
      V by_radial[C]{}, by_unit[3]{};
      for (int64_t t = t0; t < t1; ++t) {
        const V* w = reinterpret_cast<const V*>(in.weight) + t * P * C;
        const T* phi = in.phi_of(j, t);
        const int64_t at = i * F + in.at(t);
        V w_s{}, w_r{}, w_v{};
#pragma GCC unroll 32
        for (int c = 0; c < C; ++c) {
          if (NODES) w_s += r[c] * w[c];
          w_r += r[c] * w[C + c];
          if constexpr (WITH_V && NODES) w_v += r[c] * w[2 * C + c];
        }
        const V of_s = load(g.to_s + at);
        const V x = load(g.to_v + at), y = load(g.to_v + at + all), z = load(g.to_v + at + 2 * all);
        const V phi_r = load(phi + F), along = x * u[0] + y * u[1] + z * u[2];
        const V through = w_r * phi_r, of_w_s = of_s * load(phi), of_w_r = along * phi_r;
        by_unit[0] += through * x;
        by_unit[1] += through * y;
        by_unit[2] += through * z;
        if (NODES) {
          V* sum = sums + (t - t0) * ROW;
          sum[0] += w_s * of_s;
          sum[1] += w_r * along;
          if constexpr (WITH_V) {
            sum[2] += w_v * x;
            sum[3] += w_v * y;
            sum[4] += w_v * z;
          }
        }
        V of_w_v{};
        if constexpr (WITH_V)
          of_w_v = load(phi + 2 * F) *
                   (x * load(in.v_of(0, j, t)) + y * load(in.v_of(1, j, t)) + z * load(in.v_of(2, j, t)));
#pragma GCC unroll 32
        for (int c = 0; c < C; ++c) {
          by_radial[c] += of_w_s * w[c] + of_w_r * w[C + c];
          if constexpr (WITH_V) by_radial[c] += of_w_v * w[2 * C + c];
        }
      }
      for (int c = 0; c < C; ++c) g.radial[e * in.pitch + c] += total<T, BYTES>(by_radial[c]);
      for (int a = 0; a < 3; ++a) g.unit[3 * e + a] += total<T, BYTES>(by_unit[a]);
    }
    if (!NODES) return;
    for (int64_t t = t0; t < t1; ++t) {
      const V* sum = sums + (t - t0) * ROW;
      T* phi = g.phi + j * P * F + in.at(t);
      add(phi, sum[0]);
      add(phi + F, sum[1]);
      if constexpr (WITH_V) {
        const V phi_v = load(in.phi_of(j, t) + 2 * F);
        V of_phi{};
        for (int a = 0; a < 3; ++a) {
          of_phi += sum[2 + a] * load(in.v_of(a, j, t));
          add(g.v + a * all + j * F + in.at(t), sum[2 + a] * phi_v);
        }
        add(phi + 2 * F, of_phi);
      }
    }
  };
  const int64_t block = 2 * block_of<T>(P, C);
  rows.parallel([&](int64_t first, int64_t last) {
    std::vector<V> sums(NODES ? block * ROW : 0);
    blocks(first, last, in.vectors, block, [&](int64_t from, int64_t to, int64_t t0, int64_t t1) {
      for (int64_t j = from; j < to; ++j) work(sums.data(), j, t0, t1);
    });
  });
}

}  // namespace fused
