// The operators radial_filters and radial_filters_backward that ../radial_filters.py declares and documents.
//
// A filter is y = W p + b e for the hidden layer a = softplus(z), the cosine cutoff e and p = e a. Its derivative with
// respect to the distance is y' = W p' + b e' with p' = e' a + e a' and a' = sigmoid(z) z'.

#pragma once

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/clamp_min.h>
#include <ATen/ops/cos.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/sin.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <iterator>
#include <numbers>
#include <optional>
#include <vector>

#include "multiply_add.h"
#include "radial_layers.h"

namespace fused {

constexpr int64_t FILTER_ROWS = 512;  // the arrays of as many distances fit into the L2 cache
// A multiple of the elements of two vectors: scalars, which round otherwise than vectors, are then the same for any
// number of threads, as are the products if this project computes them.
constexpr int64_t FILTER_UNIT = 32;
constexpr int64_t FILTER_PARTS = 16;  // gradients are added up in as many parts, whatever the number of threads

inline void check_filters(const Tensor& r, at::TensorList layers) {
  TORCH_CHECK_VALUE(r.dim() == 2 && r.size(1) == 1, "r is ", r.sizes(), ", not a column");
  TORCH_CHECK_VALUE(layers.size() % 4 == 0, layers.size(), " parameters are not four for each layer");
}

// Return the filters of each layer, then their derivatives; layers: weight and bias of both linear layers of each.
std::vector<Tensor> radial_filters(const Tensor& r, int64_t gaussians, double cutoff, double min_exponent,
                                   at::TensorList layers) {
  check_filters(r, layers);
  const Tensor distances = r.contiguous();
  const int64_t pairs = r.numel(), count = layers.size() / 4;
  std::vector<Tensor> results;
  for (int64_t part = 0; part < 2 * count; ++part)
    results.push_back(at::empty({pairs, layers[part % count * 4 + 2].size(0)}, r.options()));
  AT_DISPATCH_FLOATING_TYPES(r.scalar_type(), "radial_filters", [&] {
    using T = scalar_t;
    const auto compute = [&](int64_t first, int64_t rows) {
      const T* const distance = distances.const_data_ptr<T>() + first;
      const Tensor basis = expand_distances(distance, rows, gaussians, cutoff, min_exponent, 1, r.options());
      const auto envelope = cut_off(distance, rows, cutoff);
      for (int64_t layer = 0; layer < count; ++layer) {
        const auto weights = layers.slice(4 * layer, 4);
        const HiddenLayer hidden(basis, rows, weights[0], weights[1]);
        const int64_t inner = weights[0].size(0), width = weights[2].size(0);
        const Tensor outer_bias = weights[3].contiguous();
        Tensor product(at::detail::empty_cpu({2 * rows, inner}, r.options()));
        const T *a = hidden.softplus.const_data_ptr<T>(), *s = hidden.sigmoid.const_data_ptr<T>();
        const T* dz = hidden.slopes.const_data_ptr<T>();
        T *p = product.mutable_data_ptr<T>(), *dp = p + rows * inner;
        for (int64_t i = 0; i < rows; ++i) {
          const CosineCutoff<T> e = envelope[i];
          for (int64_t k = 0; k < inner; ++k) {
            p[k] = e.value * a[k];
            dp[k] = e.slope * a[k] + e.value * s[k] * dz[k];
          }
          a += inner, s += inner, dz += inner, p += inner, dp += inner;
        }
        product = multiply_add(product, weights[2].t(), std::nullopt);
        const T *f = product.const_data_ptr<T>(), *df = f + rows * width, *b = outer_bias.const_data_ptr<T>();
        T* y = results[layer].mutable_data_ptr<T>() + first * width;
        T* dy = results[count + layer].mutable_data_ptr<T>() + first * width;
        for (int64_t i = 0; i < rows; ++i, f += width, df += width, y += width, dy += width) {
          const CosineCutoff<T> e = envelope[i];
          for (int64_t k = 0; k < width; ++k) {
            y[k] = f[k] + e.value * b[k];
            dy[k] = df[k] + e.slope * b[k];
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

// The gradients of a block of distances, and of the parameters from this block.
template <class T>
struct FilterGradients {
  int64_t first, rows;
  Tensor basis;
  std::vector<CosineCutoff<T>> envelope;

  // Add to the gradients of the four parameters, and to those of the distances unless they are null.
  void add(at::TensorList weights, const Tensor& value_grad, const Tensor& slope_grad,
           const Tensor* sums, T* r_grad) const {
    const HiddenLayer hidden(basis, rows, weights[0], weights[1]);
    const int64_t inner = weights[0].size(0), width = weights[2].size(0);
    const Tensor dy = value_grad.narrow(0, first, rows), dy1 = slope_grad.narrow(0, first, rows);
    const Tensor p_grad = multiply_add(dy, weights[2], std::nullopt), p1_grad = multiply_add(dy1, weights[2], std::nullopt);
    const Tensor p(at::detail::empty_cpu({2 * rows, inner}, basis.options()));
    const Tensor z_grad(at::detail::empty_cpu({2 * rows, inner}, basis.options()));
    const T *a = hidden.softplus.const_data_ptr<T>(), *s = hidden.sigmoid.const_data_ptr<T>();
    const T *z1 = hidden.slopes.const_data_ptr<T>(), *z2 = z1 + rows * inner;
    const T *u = p_grad.const_data_ptr<T>(), *q = p1_grad.const_data_ptr<T>();
    T *p0 = p.mutable_data_ptr<T>(), *p1 = p0 + rows * inner;
    T *g0 = z_grad.mutable_data_ptr<T>(), *g1 = g0 + rows * inner, *bias_sum = sums[1].mutable_data_ptr<T>();
    for (int64_t i = 0; i < rows; ++i) {
      const CosineCutoff<T> e = envelope[i];
      for (int64_t k = 0; k < inner; ++k) {
        const T a1 = s[k] * z1[k], ds = s[k] * (1 - s[k]);
        p0[k] = e.value * a[k];
        p1[k] = e.slope * a[k] + e.value * a1;
        g0[k] = (e.value * u[k] + e.slope * q[k]) * s[k] + e.value * q[k] * ds * z1[k];
        g1[k] = e.value * q[k] * s[k];
        bias_sum[k] += g0[k];
      }
      if (r_grad) {
        T sum = 0;
        for (int64_t k = 0; k < inner; ++k) {
          const T a1 = s[k] * z1[k], a2 = s[k] * ((1 - s[k]) * z1[k] * z1[k] + z2[k]);
          sum += q[k] * (e.curvature * a[k] + 2 * e.slope * a1 + e.value * a2);
        }
        r_grad[i] += sum;
        z2 += inner;
      }
      a += inner, s += inner, z1 += inner, u += inner, q += inner, p0 += inner, p1 += inner, g0 += inner, g1 += inner;
    }
    add_outer_bias(dy, dy1, weights[3], width, sums[3].mutable_data_ptr<T>(), r_grad);
    sums[0].add_(multiply_add(z_grad.t(), basis.narrow(0, 0, 2 * rows), std::nullopt));
    sums[2].add_(multiply_add(dy.t(), p.narrow(0, 0, rows), std::nullopt));
    sums[2].add_(multiply_add(dy1.t(), p.narrow(0, rows, rows), std::nullopt));
  }

  void add_outer_bias(const Tensor& value_grad, const Tensor& slope_grad, const Tensor& bias, int64_t width, T* sum,
                      T* r_grad) const {
    const T *dy = value_grad.const_data_ptr<T>(), *dy1 = slope_grad.const_data_ptr<T>();
    const Tensor outer_bias = bias.contiguous();
    const T* b = outer_bias.const_data_ptr<T>();
    for (int64_t i = 0; i < rows; ++i, dy += width, dy1 += width) {
      const CosineCutoff<T> e = envelope[i];
      T product = 0;
      for (int64_t k = 0; k < width; ++k) {
        sum[k] += e.value * dy[k] + e.slope * dy1[k];
        product += dy1[k] * b[k];
      }
      if (r_grad) r_grad[i] += e.curvature * product;
    }
  }
};

// Return the gradient of r, which is empty unless it is needed, and those of the parameters. Values count as constant
// with respect to r.
std::vector<Tensor> radial_filters_backward(at::TensorList grads, const Tensor& r, int64_t gaussians, double cutoff,
                                            double min_exponent, at::TensorList layers, bool needs_r_grad) {
  check_filters(r, layers);
  TORCH_CHECK_VALUE(2 * grads.size() == layers.size(), grads.size(), " gradients are not two for each layer");
  const int64_t pairs = r.numel(), count = layers.size() / 4;
  const Tensor distances = r.contiguous();
  std::vector<Tensor> of_filters;
  for (const Tensor& grad : grads) of_filters.push_back(grad.contiguous());
  const int64_t blocks = (pairs + FILTER_ROWS - 1) / FILTER_ROWS;
  const int64_t parts = std::clamp<int64_t>(blocks, 1, FILTER_PARTS);
  std::vector<Tensor> sums;
  for (int64_t part = 0; part < parts; ++part)
    for (const Tensor& parameter : layers) sums.push_back(at::zeros_like(parameter, at::MemoryFormat::Contiguous));
  const Tensor r_grad = needs_r_grad ? at::zeros_like(distances) : at::empty({0}, r.options());
  AT_DISPATCH_FLOATING_TYPES(r.scalar_type(), "radial_filters_backward", [&] {
    using T = scalar_t;
    at::parallel_for(0, parts, 1, [&](int64_t part, int64_t last) {
      const at::NoGradGuard guard;
      for (; part < last; ++part)
        for (int64_t block = blocks * part / parts; block < blocks * (part + 1) / parts; ++block) {
          const int64_t first = block * FILTER_ROWS, rows = std::min(FILTER_ROWS, pairs - first);
          const T* const distance = distances.const_data_ptr<T>() + first;
          const int order = needs_r_grad ? 2 : 1;
          const FilterGradients<T> gradients{
              first, rows, expand_distances(distance, rows, gaussians, cutoff, min_exponent, order, r.options()),
              cut_off(distance, rows, cutoff)};
          for (int64_t layer = 0; layer < count; ++layer)
            gradients.add(layers.slice(4 * layer, 4), of_filters[layer], of_filters[count + layer],
                          &sums[(part * count + layer) * 4],
                          needs_r_grad ? r_grad.mutable_data_ptr<T>() + first : nullptr);
        }
    });
  });
  for (size_t k = layers.size(); k < sums.size(); ++k) sums[k % layers.size()].add_(sums[k]);
  sums.resize(layers.size());
  sums.insert(sums.begin(), r_grad);
  return sums;
}

// Return the same gradients, undefined where they are not needed, by operators that can be differentiated again.
torch::autograd::variable_list differentiate_by_layers(const torch::autograd::variable_list& grads, const Tensor& r,
                                                       int64_t gaussians, double cutoff, double min_exponent,
                                                       at::TensorList layers) {
  const double wave = std::numbers::pi / cutoff, inverse_spacing = (gaussians - 1) / cutoff;
  const size_t count = layers.size() / 4;
  const auto compute = [&](const Tensor& x, size_t layer, bool slope) {
    const Tensor u = x * inverse_spacing - at::arange(gaussians, r.options()), inside = x < cutoff;
    const Tensor g = at::exp(at::clamp_min(u.square() * -0.5, min_exponent));
    const Tensor *w = &layers[4 * layer], z = at::linear(g, w[0], w[1]), a = at::softplus(z, 1, 40);
    const Tensor e = at::where(inside, (at::cos(x * wave) + 1) / 2, 0);
    if (!slope) return at::linear(e * a, w[2]) + e * w[3];
    const Tensor e1 = at::where(inside, at::sin(x * wave) * (-wave / 2), 0);
    const Tensor a1 = at::sigmoid(z) * at::linear(u * g * -inverse_spacing, w[0]);
    return at::linear(e1 * a + e * a1, w[2]) + e1 * w[3];
  };
  const Tensor r_of_slopes = r.alias();
  torch::autograd::variable_list outputs, output_grads, inputs{r_of_slopes};
  for (size_t k = 0; k < grads.size(); ++k)
    if (grads[k].defined()) {
      outputs.push_back(compute(k < count ? r : r_of_slopes, k % count, k >= count));
      output_grads.push_back(grads[k]);
    }
  std::copy_if(layers.begin(), layers.end(), std::back_inserter(inputs), [](const Tensor& x) { return x.requires_grad(); });
  const auto gradients = torch::autograd::grad(outputs, inputs, output_grads, true, true, true);
  torch::autograd::variable_list results{gradients[0]};
  size_t next = 1;
  for (const Tensor& parameter : layers) results.push_back(parameter.requires_grad() ? gradients[next++] : Tensor());
  return results;
}

struct DifferentiableRadialFilters : torch::autograd::Function<DifferentiableRadialFilters> {
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context, const Tensor& r,
                                                int64_t gaussians, double cutoff, double min_exponent,
                                                at::TensorList layers) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    static const auto handle =
        c10::Dispatcher::singleton()
            .findSchemaOrThrow("gfm_harness::radial_filters", "")
            .typed<std::vector<Tensor>(const Tensor&, int64_t, double, double, at::TensorList)>();
    torch::autograd::variable_list saved = layers.vec(), results = handle.call(r, gaussians, cutoff, min_exponent, layers);
    const bool trains = std::any_of(saved.begin(), saved.end(), [](const Tensor& x) { return x.requires_grad(); });
    if (!trains) context->mark_non_differentiable({results.begin(), results.begin() + results.size() / 2});
    saved.insert(saved.begin(), r);
    context->save_for_backward(saved);
    context->saved_data["gaussians"] = gaussians;
    context->saved_data["cutoff"] = cutoff;
    context->saved_data["min_exponent"] = min_exponent;
    context->set_materialize_grads(false);
    return results;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grads) {
    const auto saved = context->get_saved_variables();
    const Tensor& r = saved[0];
    const at::TensorList layers = at::TensorList(saved).slice(1);
    const size_t count = grads.size() / 2;
    torch::autograd::variable_list results(4 + layers.size());
    const bool has_slope_grads =
        std::any_of(grads.begin() + count, grads.end(), [](const Tensor& x) { return x.defined(); });
    const bool needs_r_grad = has_slope_grads && context->needs_input_grad(0);
    bool needs_layer_grads = false;
    for (size_t k = 0; k < layers.size(); ++k) needs_layer_grads |= context->needs_input_grad(k + 1);
    if (!needs_r_grad && !needs_layer_grads) return results;
    const int64_t gaussians = context->saved_data["gaussians"].toInt();
    const double cutoff = context->saved_data["cutoff"].toDouble();
    const double min_exponent = context->saved_data["min_exponent"].toDouble();
    torch::autograd::variable_list gradients;
    if (at::GradMode::is_enabled()) {
      gradients = differentiate_by_layers(grads, r, gaussians, cutoff, min_exponent, layers);
    } else {
      for (size_t k = 0; k < grads.size(); ++k)
        if (!grads[k].defined()) grads[k] = at::zeros({r.size(0), layers[4 * (k % count) + 2].size(0)}, r.options());
      static const auto handle =
          c10::Dispatcher::singleton()
              .findSchemaOrThrow("gfm_harness::radial_filters_backward", "")
              .typed<std::vector<Tensor>(at::TensorList, const Tensor&, int64_t, double, double, at::TensorList, bool)>();
      gradients = handle.call(grads, r, gaussians, cutoff, min_exponent, layers, needs_r_grad);
    }
    if (needs_r_grad) results[0] = gradients[0];
    std::copy(gradients.begin() + 1, gradients.end(), results.begin() + 4);
    return results;
  }
};

std::vector<Tensor> differentiable_radial_filters(const Tensor& r, int64_t gaussians, double cutoff,
                                                  double min_exponent, at::TensorList layers) {
  return DifferentiableRadialFilters::apply(r, gaussians, cutoff, min_exponent, layers);
}

}  // namespace fused
