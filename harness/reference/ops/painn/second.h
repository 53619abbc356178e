// Second derivatives: the gradients of B with respect to all its arguments, where B is the sum of the first gradients
// of the messages with respect to phi, v, radial and unit, each times its tangent (marked by a prime, in code by d_).
//
//   B = sum_e grad_s (W'_s phi_s + W_s phi'_s) + grad_v . u (W'_r phi_r + W_r phi'_r) + grad_v . u' W_r phi_r
//             + grad_v . (W'_v phi_v v + W_v (phi'_v v + phi_v v'))             W' = radial' weight
//
// Without tangents of the atoms (phi', v'), their terms are absent.

#pragma once

#include "filters.h"

namespace fused {

// Add the gradients of B with respect to grad_s and grad_v to s and v, one receiver after the other.
template <class T, int C, bool WITH_V, bool ATOMS>
void second_kernel_receivers(const Inputs<T>& in, const Tangents<T>& tangents, const EdgesByAtom& edges, T* s, T* v) {
  using V = Vector<T>;
  constexpr int P = WITH_V ? 3 : 2;
  const int64_t F = in.width, plane = in.atoms * F;
  const auto sum_block = [&](int64_t first, int64_t last, int64_t t0, int64_t t1) {
    for (int64_t i = first; i < last; ++i) {
      for (int64_t t = t0; t < t1; ++t) {
        const V* w = reinterpret_cast<const V*>(in.weight) + t * P * C;
        V sum_s{}, sum_v[3]{};
        for (int64_t k = edges.start[i]; k < edges.start[i + 1]; ++k) {
          const int64_t e = edges.order[k], j = in.sender[e], offset = j * F + in.offset(t);
          const T *r = in.radial + e * in.pitch, *d_r = tangents.radial + e * in.pitch;
          const T *u = in.unit + 3 * e, *d_u = tangents.unit + 3 * e;
          const T *phi = in.phi_at(j, t), *d_phi = ATOMS ? tangents.phi + (phi - in.phi) : phi;
          V w_s{}, w_r{}, w_v{}, d_w_s{}, d_w_r{}, d_w_v{};
#pragma GCC unroll 32
          for (int c = 0; c < C; ++c) {
            if constexpr (ATOMS) w_s += r[c] * w[c];
            d_w_s += d_r[c] * w[c];
            w_r += r[c] * w[C + c];
            d_w_r += d_r[c] * w[C + c];
            if constexpr (WITH_V) w_v += r[c] * w[2 * C + c];
            if constexpr (WITH_V) d_w_v += d_r[c] * w[2 * C + c];
          }
          sum_s += d_w_s * load(phi);
          V length = d_w_r * load(phi + F);
          if constexpr (ATOMS) {
            sum_s += w_s * load(d_phi);
            length += w_r * load(d_phi + F);
          }
          w_r *= load(phi + F);
          for (int a = 0; a < 3; ++a) sum_v[a] += length * u[a] + w_r * d_u[a];
          if constexpr (WITH_V) {
            V factor = d_w_v * load(phi + 2 * F);
            if constexpr (ATOMS) {
              factor += w_v * load(d_phi + 2 * F);
              w_v *= load(phi + 2 * F);
            }
            for (int a = 0; a < 3; ++a) {
              sum_v[a] += factor * load(in.v + a * plane + offset);
              if constexpr (ATOMS) sum_v[a] += w_v * load(tangents.v + a * plane + offset);
            }
          }
        }
        const int64_t offset = i * F + in.offset(t);
        add_to(s + offset, sum_s);
        for (int a = 0; a < 3; ++a) add_to(v + a * plane + offset, sum_v[a]);
      }
    }
  };
  edges.parallel([&](int64_t first, int64_t last) {
    for_each_block(first, last, in.vectors, vectors_per_block<T>(P, C), sum_block);
  });
}

// Add the gradients of B with respect to phi, v, radial and unit, one sender after the other.
template <class T, int C, bool WITH_V, bool ATOMS>
void second_kernel_senders(const Inputs<T>& in, const Tangents<T>& tangents, const EdgesByAtom& edges,
                           const Gradients<T>& g) {
  using V = Vector<T>;
  constexpr int P = WITH_V ? 3 : 2, SUMS = WITH_V ? 8 : 2;
  const int64_t F = in.width, plane = in.atoms * F;
  const auto add_sender = [&](V* sums, int64_t j, int64_t t0, int64_t t1) {
    std::fill_n(sums, (t1 - t0) * SUMS, V{});
    for (int64_t k = edges.start[j]; k < edges.start[j + 1]; ++k) {
      const int64_t e = edges.order[k], i = in.receiver[e];
      const T *r = in.radial + e * in.pitch, *d_r = tangents.radial + e * in.pitch;
      const T *u = in.unit + 3 * e, *d_u = tangents.unit + 3 * e;
      V radial_grad[C]{}, unit_grad[3]{};
      for (int64_t t = t0; t < t1; ++t) {
        const V* w = reinterpret_cast<const V*>(in.weight) + t * P * C;
        const T *phi = in.phi_at(j, t), *d_phi = ATOMS ? tangents.phi + (phi - in.phi) : phi;
        const int64_t receiver_offset = i * F + in.offset(t), sender_offset = j * F + in.offset(t);
        V d_w_s{}, w_r{}, d_w_r{}, w_v{}, d_w_v{};
#pragma GCC unroll 32
        for (int c = 0; c < C; ++c) {
          d_w_s += d_r[c] * w[c];
          w_r += r[c] * w[C + c];
          d_w_r += d_r[c] * w[C + c];
          if constexpr (WITH_V && ATOMS) w_v += r[c] * w[2 * C + c];
          if constexpr (WITH_V) d_w_v += d_r[c] * w[2 * C + c];
        }
        const V grad_s = load(g.grad_s + receiver_offset);
        const T* grad_v_row = g.grad_v + receiver_offset;
        const V grad_v[3] = {load(grad_v_row), load(grad_v_row + plane), load(grad_v_row + 2 * plane)};
        const V projection = grad_v[0] * u[0] + grad_v[1] * u[1] + grad_v[2] * u[2];
        const V d_projection = grad_v[0] * d_u[0] + grad_v[1] * d_u[1] + grad_v[2] * d_u[2];
        const V phi_r = load(phi + F);
        V w_s_grad{}, w_r_grad = d_projection * phi_r, w_v_grad{}, length = d_w_r * phi_r;
        V* sum = sums + (t - t0) * SUMS;
        sum[0] += d_w_s * grad_s;
        sum[1] += d_w_r * projection + w_r * d_projection;
        if constexpr (ATOMS) {
          const V d_phi_r = load(d_phi + F);
          w_s_grad = grad_s * load(d_phi);
          w_r_grad += projection * d_phi_r;
          length += w_r * d_phi_r;
        }
        if constexpr (WITH_V) {
          V v_projection{}, d_v_projection{};
          for (int a = 0; a < 3; ++a) {
            sum[2 + a] += d_w_v * grad_v[a];
            if constexpr (ATOMS) {
              sum[5 + a] += w_v * grad_v[a];
              v_projection += grad_v[a] * load(in.v + a * plane + sender_offset);
              d_v_projection += grad_v[a] * load(tangents.v + a * plane + sender_offset);
            }
          }
          if constexpr (ATOMS) w_v_grad = v_projection * load(d_phi + 2 * F) + d_v_projection * load(phi + 2 * F);
        }
        for (int a = 0; a < 3; ++a) unit_grad[a] += length * grad_v[a];
#pragma GCC unroll 32
        for (int c = 0; c < C; ++c) {
          radial_grad[c] += w_r_grad * w[C + c];
          if constexpr (ATOMS) radial_grad[c] += w_s_grad * w[c];
          if constexpr (ATOMS && WITH_V) radial_grad[c] += w_v_grad * w[2 * C + c];
        }
      }
      for (int c = 0; c < C; ++c) g.radial_grad[e * in.pitch + c] += sum_lanes<T, VECTOR_BYTES>(radial_grad[c]);
      for (int a = 0; a < 3; ++a) g.unit_grad[3 * e + a] += sum_lanes<T, VECTOR_BYTES>(unit_grad[a]);
    }
    for (int64_t t = t0; t < t1; ++t) {
      const V* sum = sums + (t - t0) * SUMS;
      const int64_t phi_offset = j * P * F + in.offset(t), sender_offset = j * F + in.offset(t);
      add_to(g.phi_grad + phi_offset, sum[0]);
      add_to(g.phi_grad + phi_offset + F, sum[1]);
      if constexpr (WITH_V) {
        const V phi_v = load(in.phi + phi_offset + 2 * F);
        V phi_v_grad{};
        for (int a = 0; a < 3; ++a) {
          V v_grad = sum[2 + a] * phi_v;
          phi_v_grad += sum[2 + a] * load(in.v + a * plane + sender_offset);
          if constexpr (ATOMS) {
            v_grad += sum[5 + a] * load(tangents.phi + phi_offset + 2 * F);
            phi_v_grad += sum[5 + a] * load(tangents.v + a * plane + sender_offset);
          }
          add_to(g.v_grad + a * plane + sender_offset, v_grad);
        }
        add_to(g.phi_grad + phi_offset + 2 * F, phi_v_grad);
      }
    }
  };
  const int64_t block = 2 * vectors_per_block<T>(P, C);
  edges.parallel([&](int64_t first, int64_t last) {
    std::vector<V> sums(block * SUMS);
    for_each_block(first, last, in.vectors, block, [&](int64_t from, int64_t to, int64_t t0, int64_t t1) {
      for (int64_t j = from; j < to; ++j) add_sender(sums.data(), j, t0, t1);
    });
  });
}

}  // namespace fused
