// The operators that ../radial_filters.py declares and documents.

#pragma once

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/softplus.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

#include "multiply_add.h"
#include "rows.h"
#include "vectors.h"

namespace fused {

constexpr int64_t FILTER_ROWS = 512;  // the arrays of as many distances fit into the L2 cache
// A multiple of the elements of two vectors: scalars, which round otherwise than vectors, are then the same for any
// number of threads, as are the products if this project computes them.
constexpr int64_t FILTER_UNIT = 32;

// Return the filters of each layer, then their derivatives; layers: weight and bias of both linear layers of each.
std::vector<Tensor> radial_filters(const Tensor& r, int64_t gaussians, double cutoff, double min_exponent,
                                   at::TensorList layers) {
  TORCH_CHECK_VALUE(r.dim() == 2 && r.size(1) == 1, "r is ", r.sizes(), ", not a column");
  TORCH_CHECK_VALUE(layers.size() % 4 == 0, layers.size(), " parameters are not four for each layer");
  const Tensor distances = r.contiguous();
  const int64_t pairs = r.numel(), count = layers.size() / 4;
  std::vector<Tensor> results;
  for (int64_t part = 0; part < 2 * count; ++part)
    results.push_back(at::empty({pairs, layers[part % count * 4 + 2].size(0)}, r.options()));
  AT_DISPATCH_FLOATING_TYPES(r.scalar_type(), "radial_filters", [&] {
    using T = scalar_t;
    const T* const distance = distances.const_data_ptr<T>();
    const T inverse_spacing = (gaussians - 1) / cutoff, wave = std::numbers::pi / cutoff;
    const auto compute = [&](int64_t first, int64_t rows) {
      const Tensor basis(at::detail::empty_cpu({rows, gaussians}, r.options()));
      const Tensor basis_slope(at::detail::empty_cpu({rows, gaussians}, r.options()));
      T *const value = basis.mutable_data_ptr<T>(), *const slope = basis_slope.mutable_data_ptr<T>();
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t k = 0; k < gaussians; ++k) {
          const T u = distance[first + i] * inverse_spacing - T(k);
          value[i * gaussians + k] = std::max(T(-0.5) * u * u, T(min_exponent));
          slope[i * gaussians + k] = -inverse_spacing * u;
        }
      basis_slope.mul_(basis.exp_());
      for (int64_t layer = 0; layer < count; ++layer) {
        const auto weights = layers.slice(4 * layer, 4);
        const Tensor inner = weights[0].t(), outer = weights[2].t();
        Tensor hidden = multiply_add(basis, inner, weights[1]);
        const Tensor hidden_slope = multiply_add(basis_slope, inner, std::nullopt).mul_(at::sigmoid(hidden));
        at::softplus_out(hidden, hidden, 1, 40);
        const Tensor filters = multiply_add(hidden, outer, weights[3]);
        const Tensor filter_slopes = multiply_add(hidden_slope, outer, std::nullopt);
        const int64_t width = filters.size(1);
        const T *f = filters.const_data_ptr<T>(), *df = filter_slopes.const_data_ptr<T>();
        T* y = results[layer].mutable_data_ptr<T>() + first * width;
        T* dy = results[count + layer].mutable_data_ptr<T>() + first * width;
        for (int64_t i = 0; i < rows; ++i, f += width, df += width, y += width, dy += width) {
          const T x = distance[first + i];
          const bool inside = x < T(cutoff);
          const T envelope = inside ? (std::cos(x * wave) + 1) / 2 : 0;
          const T envelope_slope = inside ? -wave * std::sin(x * wave) / 2 : 0;
          for (int64_t k = 0; k < width; ++k) {
            y[k] = envelope * f[k];
            dy[k] = envelope * df[k] + envelope_slope * f[k];
          }
        }
      }
    };
    at::parallel_for(0, (pairs + FILTER_UNIT - 1) / FILTER_UNIT, 1, [&](int64_t unit, int64_t last) {
      const at::NoGradGuard guard;
      const int64_t end = std::min(pairs, last * FILTER_UNIT);
      for (int64_t i = unit * FILTER_UNIT; i < end; i += FILTER_ROWS) compute(i, std::min(FILTER_ROWS, end - i));
    });
  });
  return results;
}

// Return the sums over the edges of each pair, and over features, of x[sender] y[receiver] weight[pair], [pairs, 1].
Tensor sum_triple_products(const Tensor& x, const Tensor& y, const Tensor& weight, const Tensor& sender,
                           const Tensor& receiver, at::TensorList pair) {
  const segments::Rows pairs(pair[0], pair[1], pair[2]);
  const Tensor left = x.contiguous(), right = y.contiguous(), factor = weight.contiguous();
  const int64_t width = x.size(1);
  TORCH_CHECK_TYPE(y.scalar_type() == x.scalar_type() && weight.scalar_type() == x.scalar_type(), "types differ");
  TORCH_CHECK_VALUE(y.size(1) == width && weight.sizes() == at::IntArrayRef({pairs.groups, width}), "no common width");
  TORCH_CHECK_VALUE(sender.numel() == pairs.count && receiver.numel() == pairs.count, "the numbers of edges differ");
  const int64_t *const a = sender.const_data_ptr<int64_t>(), *const b = receiver.const_data_ptr<int64_t>();
  Tensor sums = at::empty({pairs.groups, 1}, x.options());
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "sum_triple_products", [&] {
    using T = scalar_t;
    const T *u = left.const_data_ptr<T>(), *v = right.const_data_ptr<T>(), *w = factor.const_data_ptr<T>();
    T* const target = sums.mutable_data_ptr<T>();
    const int64_t grain = segments::GRAIN / std::clamp<int64_t>(width, 1, segments::GRAIN);
    at::parallel_for(0, pairs.groups, grain, [&](int64_t first, int64_t last) {
      for (int64_t c = first; c < last; ++c) {
        Vector<T> lanes{};
        T rest = 0;
        for (int64_t n = pairs.start[c]; n < pairs.start[c + 1]; ++n) {
          const T *s = u + a[pairs.order[n]] * width, *t = v + b[pairs.order[n]] * width, *f = w + c * width;
          int64_t k = 0;
          for (; k + LANES<T> <= width; k += LANES<T>) lanes += load(s + k) * load(t + k) * load(f + k);
          for (; k < width; ++k) rest += s[k] * t[k] * f[k];
        }
        target[c] = rest + sum_lanes<T, VECTOR_BYTES>(lanes);
      }
    });
  });
  return sums;
}

}  // namespace fused
