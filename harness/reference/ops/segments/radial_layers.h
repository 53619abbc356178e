// The functions of distance in the networks of radial filters, for a block of distances.
//
// A filter is y = W p + b e for the hidden layer a = softplus(z), the cosine cutoff e and p = e a. Its derivative with
// respect to the distance is y1 = W p1 + b e1 with p1 = e1 a + e a1 and a1 = sigmoid(z) z1. The suffixes 1 and 2 stand
// for first and second derivatives.

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

// The parameters of the filters of a layer: [H, G], [H], [K, H] and [K].
struct FilterNetwork {
  Tensor inner_weight, inner_bias, outer_weight, outer_bias;

  int64_t inner_width() const { return inner_weight.size(0); }
  int64_t outer_width() const { return outer_weight.size(0); }
};

// Group the parameters by layer, four each, and check their shapes.
inline std::vector<FilterNetwork> group_parameters(const Tensor& r, int64_t gaussians, at::TensorList layers) {
  TORCH_CHECK_VALUE(r.dim() == 2 && r.size(1) == 1, "r is ", r.sizes(), ", expected [p, 1]");
  TORCH_CHECK_VALUE(layers.size() % 4 == 0, layers.size(), " parameters, expected four for each layer");
  std::vector<FilterNetwork> networks;
  for (size_t k = 0; k < layers.size(); k += 4) {
    const FilterNetwork network{layers[k], layers[k + 1].contiguous(), layers[k + 2], layers[k + 3].contiguous()};
    const bool has_matrices = network.inner_weight.dim() == 2 && network.outer_weight.dim() == 2;
    TORCH_CHECK_VALUE(has_matrices && network.inner_weight.size(1) == gaussians &&
                          network.inner_bias.sizes() == at::IntArrayRef({network.inner_width()}) &&
                          network.outer_weight.size(1) == network.inner_width() &&
                          network.outer_bias.sizes() == at::IntArrayRef({network.outer_width()}),
                      "layer ", k / 4, ": parameters ", layers[k].sizes(), ", ", layers[k + 1].sizes(), ", ",
                      layers[k + 2].sizes(), " and ", layers[k + 3].sizes(), ", expected [H, ", gaussians,
                      "], [H], [K, H] and [K]");
    networks.push_back(network);
  }
  return networks;
}

// Return the number of distances in a block: few enough that its arrays fit into the L2 cache, and that torch runs
// element-wise functions on one thread, as splitting them would change how they round.
inline int64_t count_block_rows(const std::vector<FilterNetwork>& networks, int64_t gaussians) {
  int64_t width = std::max<int64_t>(gaussians, 1);
  for (const FilterNetwork& network : networks) width = std::max({width, network.inner_width(), network.outer_width()});
  return std::clamp<int64_t>(16384 / width, 1, 256);
}

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

// The hidden layer for the output of expand_distances: softplus(z), sigmoid(z), and the derivatives of z, one below the
// other.
struct HiddenLayer {
  Tensor softplus, sigmoid, slopes;

  HiddenLayer(const Tensor& basis, int64_t rows, const FilterNetwork& network)
      : softplus(multiply_add(basis.narrow(0, 0, rows), network.inner_weight.t(), network.inner_bias)),
        sigmoid(at::sigmoid(softplus)),
        slopes(multiply_add(basis.narrow(0, rows, basis.size(0) - rows), network.inner_weight.t(), std::nullopt)) {
    at::softplus_out(softplus, softplus, 1, 40);  // until here, softplus is z
  }
};

// A block of distances, with their Gaussians and cutoffs.
template <class T>
struct DistanceBlock {
  int64_t first, rows;
  Tensor basis;
  std::vector<CosineCutoff<T>> envelope;

  DistanceBlock(const T* distances, int64_t first, int64_t rows, int64_t gaussians, double cutoff, double min_exponent,
                int order, const at::TensorOptions& options)
      : first(first),
        rows(rows),
        basis(expand_distances(distances + first, rows, gaussians, cutoff, min_exponent, order, options)) {
    envelope.reserve(rows);
    for (int64_t i = first; i < first + rows; ++i) envelope.emplace_back(distances[i], cutoff);
  }

  // Return p and, below it, p1, [2 rows, H].
  Tensor apply_cutoff(const HiddenLayer& hidden) const {
    const int64_t width = hidden.softplus.size(1);
    const Tensor products(at::detail::empty_cpu({2 * rows, width}, basis.options()));
    const T *a = hidden.softplus.const_data_ptr<T>(), *s = hidden.sigmoid.const_data_ptr<T>();
    const T* z1 = hidden.slopes.const_data_ptr<T>();
    T *p = products.mutable_data_ptr<T>(), *p1 = p + rows * width;
    for (const CosineCutoff<T>& e : envelope) {
      for (int64_t k = 0; k < width; ++k) {
        p[k] = e.value * a[k];
        p1[k] = e.slope * a[k] + e.value * s[k] * z1[k];
      }
      a += width, s += width, z1 += width, p += width, p1 += width;
    }
    return products;
  }
};

}  // namespace fused
