// The operators that ../filters.py declares and documents.

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
#include "vectors.h"

namespace fused {

constexpr int64_t FILTER_ROWS = 512;  // the arrays of as many distances fit into the L2 cache

// Return the filters of each layer, then their derivatives; layers: weight and bias of both linear layers of each.
std::vector<Tensor> radial_filters(const Tensor& r, int64_t gaussians, double cutoff, double min_exponent,
                                   at::TensorList layers) {
  const Tensor distances = r.contiguous();
  const int64_t pairs = r.numel(), count = layers.size() / 4;
  std::vector<Tensor> results;
  for (int64_t part = 0; part < 2 * count; ++part)
    results.push_back(at::empty({pairs, layers[part % count * 4 + 2].size(0)}, r.options()));
  AT_DISPATCH_FLOATING_TYPES(r.scalar_type(), "radial_filters", [&] {
    using T = scalar_t;
    const T* const distance = distances.const_data_ptr<T>();
    const T inverse_spacing = (gaussians - 1) / cutoff, wave = std::numbers::pi / cutoff, end = cutoff;
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
          const T envelope = x < end ? (std::cos(x * wave) + 1) / 2 : 0;
          const T envelope_slope = x < end ? -wave * std::sin(x * wave) / 2 : 0;
          for (int64_t k = 0; k < width; ++k) {
            y[k] = envelope * f[k];
            dy[k] = envelope * df[k] + envelope_slope * f[k];
          }
        }
      }
    };
    at::parallel_for(0, pairs, FILTER_ROWS / 4, [&](int64_t first, int64_t last) {
      const at::NoGradGuard guard;
      for (; first < last; first += FILTER_ROWS) compute(first, std::min(FILTER_ROWS, last - first));
    });
  });
  return results;
}

// Return the sum over tensors and columns of the products of two lists of tensors, [rows, 1].
Tensor sum_row_products(at::TensorList a, at::TensorList b) {
  const int64_t rows = a[0].size(0);
  std::vector<Tensor> left, right;
  for (size_t l = 0; l < a.size(); ++l) {
    TORCH_CHECK_VALUE(a[l].size(0) == rows && a[l].sizes() == b[l].sizes(), "tensors do not fit");
    left.push_back(a[l].contiguous()), right.push_back(b[l].contiguous());
  }
  Tensor sums = at::empty({rows, 1}, a[0].options());
  AT_DISPATCH_FLOATING_TYPES(sums.scalar_type(), "sum_row_products", [&] {
    using T = scalar_t;
    T* const target = sums.mutable_data_ptr<T>();
    at::parallel_for(0, rows, FILTER_ROWS / 4, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        Vector<T> lanes{};
        T sum = 0;
        for (size_t l = 0; l < left.size(); ++l) {
          const int64_t width = left[l].size(1);
          const T *u = left[l].const_data_ptr<T>() + i * width, *v = right[l].const_data_ptr<T>() + i * width;
          int64_t k = 0;
          for (; k + LANES<T> <= width; k += LANES<T>) lanes += load(u + k) * load(v + k);
          for (; k < width; ++k) sum += u[k] * v[k];
        }
        target[i] = sum + sum_lanes<T, VECTOR_BYTES>(lanes);
      }
    });
  });
  return sums;
}

}  // namespace fused
