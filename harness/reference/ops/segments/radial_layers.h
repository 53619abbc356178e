// The functions of distance in a network of radial filters, with their derivatives, for a block of distances.

#pragma once

#include <ATen/EmptyTensor.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/softplus.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <optional>
#include <vector>

#include "multiply_add.h"

namespace fused {

using at::Tensor;

// (cos(pi x / cutoff) + 1) / 2 up to the cutoff, then 0, and its derivatives.
template <class T>
struct CosineCutoff {
  T value = 0, slope = 0, curvature = 0;

  CosineCutoff(T x, double cutoff) {
    const T wave = std::numbers::pi / cutoff;
    if (!(x < T(cutoff))) return;
    const T cosine = std::cos(x * wave);
    value = (cosine + 1) / 2;
    slope = -wave * std::sin(x * wave) / 2;
    curvature = -wave * wave * cosine / 2;
  }
};

template <class T>
std::vector<CosineCutoff<T>> cut_off(const T* distance, int64_t rows, double cutoff) {
  std::vector<CosineCutoff<T>> results;
  results.reserve(rows);
  for (int64_t i = 0; i < rows; ++i) results.emplace_back(distance[i], cutoff);
  return results;
}

// Return Gaussians of distances in the first rows, and below them their derivatives up to the order, 1 or 2:
// [(order + 1) rows, count].
template <class T>
Tensor expand_distances(const T* distance, int64_t rows, int64_t count, double cutoff, double min_exponent, int order,
                        const at::TensorOptions& options) {
  const Tensor basis(at::detail::empty_cpu({(order + 1) * rows, count}, options));
  const T inverse_spacing = (count - 1) / cutoff;
  T* const value = basis.mutable_data_ptr<T>();
  T *const slope = value + rows * count, *const curvature = slope + rows * count;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t k = 0; k < count; ++k) {
      const T u = distance[i] * inverse_spacing - T(k);
      value[i * count + k] = std::max(T(-0.5) * u * u, T(min_exponent));
      slope[i * count + k] = -inverse_spacing * u;
    }
  basis.narrow(0, 0, rows).exp_();
  if (order == 2)
    for (int64_t i = 0; i < rows * count; ++i)
      curvature[i] = (slope[i] * slope[i] - inverse_spacing * inverse_spacing) * value[i];
  for (int64_t i = 0; i < rows * count; ++i) slope[i] *= value[i];
  return basis;
}

// The hidden layer for such a basis: softplus(z) and sigmoid(z) of z = W basis + b, and the derivatives of z.
struct HiddenLayer {
  Tensor softplus, sigmoid, slopes;

  HiddenLayer(const Tensor& basis, int64_t rows, const Tensor& weight, const Tensor& bias)
      : softplus(multiply_add(basis.narrow(0, 0, rows), weight.t(), bias)),
        sigmoid(at::sigmoid(softplus)),
        slopes(multiply_add(basis.narrow(0, rows, basis.size(0) - rows), weight.t(), std::nullopt)) {
    at::softplus_out(softplus, softplus, 1, 40);
  }
};

}  // namespace fused
