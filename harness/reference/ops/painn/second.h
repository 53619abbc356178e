// Second derivatives: of B = <gradients of the messages by phi, v, radial, unit; directions>, by all that it is made of.
//
//   B = sum_e to_s (W'_s phi_s + W_s phi'_s) + to_v . u (W'_r phi_r + W_r phi'_r) + to_v . u' W_r phi_r
//             + to_v . (W'_v phi_v v + W_v (phi'_v v + phi_v v'))               W' = radial' weight,  ' the directions
//
// Without directions of the atoms (phi', v') their terms are left out.

#pragma once

#include "filters.h"

namespace fused {

// By to_s and to_v, receiver by receiver.
template <class T, int C, bool WITH_V, bool ATOMS>
void second_of_receivers(const Inputs<T>& in, const Directions<T>& along, const Rows& rows, T* s, T* v) {
  using V = Vector<T>;
  constexpr int P = WITH_V ? 3 : 2;
  const int64_t F = in.width, all = in.atoms * F;
  const auto work = [&](int64_t first, int64_t last, int64_t t0, int64_t t1) {
    for (int64_t i = first; i < last; ++i) {
      for (int64_t t = t0; t < t1; ++t) {
        const V* w = reinterpret_cast<const V*>(in.weight) + t * P * C;
        V to_s{}, to[3]{};
        for (int64_t k = rows.start[i]; k < rows.start[i + 1]; ++k) {
          const int64_t e = rows.order[k], j = in.sender[e], at = j * F + in.at(t);
          const T *r = in.radial + e * in.pitch, *d = along.radial + e * in.pitch;
          const T *u = in.unit + 3 * e, *d_u = along.unit + 3 * e;
          const T *phi = in.phi_of(j, t), *d_phi = ATOMS ? along.phi + (phi - in.phi) : phi;
          V w_s{}, w_r{}, w_v{}, d_s{}, d_r{}, d_v{};
#pragma GCC unroll 32
          for (int c = 0; c < C; ++c) {
            if constexpr (ATOMS) w_s += r[c] * w[c];
            d_s += d[c] * w[c];
            w_r += r[c] * w[C + c];
            d_r += d[c] * w[C + c];
            if constexpr (WITH_V) w_v += r[c] * w[2 * C + c];
            if constexpr (WITH_V) d_v += d[c] * w[2 * C + c];
          }
          to_s += d_s * load(phi);
          V straight = d_r * load(phi + F);
          if constexpr (ATOMS) {
            to_s += w_s * load(d_phi);
            straight += w_r * load(d_phi + F);
          }
          w_r *= load(phi + F);
          for (int a = 0; a < 3; ++a) to[a] += straight * u[a] + w_r * d_u[a];
          if constexpr (WITH_V) {
            V of_v = d_v * load(phi + 2 * F);
            if constexpr (ATOMS) {
              of_v += w_v * load(d_phi + 2 * F);
              w_v *= load(phi + 2 * F);
            }
            for (int a = 0; a < 3; ++a) {
              to[a] += of_v * load(in.v + a * all + at);
              if constexpr (ATOMS) to[a] += w_v * load(along.v + a * all + at);
            }
          }
        }
        const int64_t at = i * F + in.at(t);
        add(s + at, to_s);
        for (int a = 0; a < 3; ++a) add(v + a * all + at, to[a]);
      }
    }
  };
  rows.parallel([&](int64_t first, int64_t last) { blocks(first, last, in.vectors, block_of<T>(P, C), work); });
}

// By phi, v, radial and unit, sender by sender.
template <class T, int C, bool WITH_V, bool ATOMS>
void second_of_senders(const Inputs<T>& in, const Directions<T>& along, const Rows& rows, const Gradients<T>& g) {
  using V = Vector<T>;
  constexpr int P = WITH_V ? 3 : 2, ROW = WITH_V ? 8 : 2;
  const int64_t F = in.width, all = in.atoms * F;
  const auto work = [&](V* sums, int64_t j, int64_t t0, int64_t t1) {
    std::fill_n(sums, (t1 - t0) * ROW, V{});
    for (int64_t k = rows.start[j]; k < rows.start[j + 1]; ++k) {
      const int64_t e = rows.order[k], i = in.receiver[e];
      const T *r = in.radial + e * in.pitch, *d = along.radial + e * in.pitch;
      const T *u = in.unit + 3 * e, *d_u = along.unit + 3 * e;
      V by_radial[C]{}, by_unit[3]{};
      for (int64_t t = t0; t < t1; ++t) {
        const V* w = reinterpret_cast<const V*>(in.weight) + t * P * C;
        const T *phi = in.phi_of(j, t), *d_phi = ATOMS ? along.phi + (phi - in.phi) : phi;
        const int64_t to = i * F + in.at(t), at = j * F + in.at(t);
        V d_s{}, w_r{}, d_r{}, w_v{}, d_v{};
#pragma GCC unroll 32
        for (int c = 0; c < C; ++c) {
          d_s += d[c] * w[c];
          w_r += r[c] * w[C + c];
          d_r += d[c] * w[C + c];
          if constexpr (WITH_V && ATOMS) w_v += r[c] * w[2 * C + c];
          if constexpr (WITH_V) d_v += d[c] * w[2 * C + c];
        }
        const V of_s = load(g.to_s + to);
        const V of[3] = {load(g.to_v + to), load(g.to_v + to + all), load(g.to_v + to + 2 * all)};
        const V straight = of[0] * u[0] + of[1] * u[1] + of[2] * u[2];
        const V turned = of[0] * d_u[0] + of[1] * d_u[1] + of[2] * d_u[2];
        const V phi_r = load(phi + F);
        V of_w_s{}, of_w_r = turned * phi_r, of_w_v{}, through = d_r * phi_r;
        V* sum = sums + (t - t0) * ROW;
        sum[0] += d_s * of_s;
        sum[1] += d_r * straight + w_r * turned;
        if constexpr (ATOMS) {
          const V d_phi_r = load(d_phi + F);
          of_w_s = of_s * load(d_phi);
          of_w_r += straight * d_phi_r;
          through += w_r * d_phi_r;
        }
        if constexpr (WITH_V) {
          V of_v{}, of_d_v{};
          for (int a = 0; a < 3; ++a) {
            sum[2 + a] += d_v * of[a];
            if constexpr (ATOMS) {
              sum[5 + a] += w_v * of[a];
              of_v += of[a] * load(in.v + a * all + at);
              of_d_v += of[a] * load(along.v + a * all + at);
            }
          }
          if constexpr (ATOMS) of_w_v = of_v * load(d_phi + 2 * F) + of_d_v * load(phi + 2 * F);
        }
        for (int a = 0; a < 3; ++a) by_unit[a] += through * of[a];
#pragma GCC unroll 32
        for (int c = 0; c < C; ++c) {
          by_radial[c] += of_w_r * w[C + c];
          if constexpr (ATOMS) by_radial[c] += of_w_s * w[c];
          if constexpr (ATOMS && WITH_V) by_radial[c] += of_w_v * w[2 * C + c];
        }
      }
      for (int c = 0; c < C; ++c) g.radial[e * in.pitch + c] += total<T, BYTES>(by_radial[c]);
      for (int a = 0; a < 3; ++a) g.unit[3 * e + a] += total<T, BYTES>(by_unit[a]);
    }
    for (int64_t t = t0; t < t1; ++t) {
      const V* sum = sums + (t - t0) * ROW;
      const int64_t of_phi = j * P * F + in.at(t), at = j * F + in.at(t);
      add(g.phi + of_phi, sum[0]);
      add(g.phi + of_phi + F, sum[1]);
      if constexpr (WITH_V) {
        const V phi_v = load(in.phi + of_phi + 2 * F);
        V by_phi_v{};
        for (int a = 0; a < 3; ++a) {
          V by_v = sum[2 + a] * phi_v;
          by_phi_v += sum[2 + a] * load(in.v + a * all + at);
          if constexpr (ATOMS) {
            by_v += sum[5 + a] * load(along.phi + of_phi + 2 * F);
            by_phi_v += sum[5 + a] * load(along.v + a * all + at);
          }
          add(g.v + a * all + at, by_v);
        }
        add(g.phi + of_phi + 2 * F, by_phi_v);
      }
    }
  };
  const int64_t block = 2 * block_of<T>(P, C);
  rows.parallel([&](int64_t first, int64_t last) {
    std::vector<V> sums(block * ROW);
    blocks(first, last, in.vectors, block, [&](int64_t from, int64_t to, int64_t t0, int64_t t1) {
      for (int64_t j = from; j < to; ++j) work(sums.data(), j, t0, t1);
    });
  });
}

}  // namespace fused
