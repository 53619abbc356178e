// The operators radial_filters and radial_filters_backward that ../radial_filters.py declares and documents.

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
#include <c10/core/impl/LocalDispatchKeySet.h>
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

constexpr int64_t MAX_PARTS = 16;  // partial sums of the gradients, independent of the number of threads

// Return the filters of each layer, then their derivatives; layers: weight and bias of both linear layers of each.
std::vector<Tensor> radial_filters(const Tensor& r, int64_t gaussians, double cutoff, double min_exponent,
                                   at::TensorList layers) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  const auto networks = group_parameters(r, gaussians, layers);
  const Tensor distances = r.contiguous();
  const int64_t pairs = r.numel(), count = networks.size(), block_rows = count_block_rows(networks, gaussians);
  std::vector<Tensor> results;
  for (int64_t part = 0; part < 2 * count; ++part)
    results.push_back(at::empty({pairs, networks[part % count].outer_width()}, r.options()));
  AT_DISPATCH_FLOATING_TYPES(r.scalar_type(), "radial_filters", [&] {
    using T = scalar_t;
    at::parallel_for(0, (pairs + block_rows - 1) / block_rows, 1, [&](int64_t from, int64_t to) {
      const at::NoGradGuard guard;
      for (int64_t first = from * block_rows; first < std::min(pairs, to * block_rows); first += block_rows) {
        const DistanceBlock<T> block(distances.const_data_ptr<T>(), first, std::min(block_rows, pairs - first),
                                     gaussians, cutoff, min_exponent, 1, r.options());
        for (int64_t layer = 0; layer < count; ++layer) {
          const FilterNetwork& network = networks[layer];
          const int64_t width = network.outer_width();
          const Tensor products = multiply_add(block.apply_cutoff(HiddenLayer(block.basis, block.rows, network)),
                                               network.outer_weight.t(), std::nullopt);
          const T *wp = products.const_data_ptr<T>(), *wp1 = wp + block.rows * width;
          const T* b = network.outer_bias.const_data_ptr<T>();
          T* y = results[layer].mutable_data_ptr<T>() + first * width;
          T* y1 = results[count + layer].mutable_data_ptr<T>() + first * width;
          for (const CosineCutoff<T>& e : block.envelope) {
            for (int64_t k = 0; k < width; ++k) {
              y[k] = wp[k] + e.value * b[k];
              y1[k] = wp1[k] + e.slope * b[k];
            }
            wp += width, wp1 += width, y += width, y1 += width;
          }
        }
      }
    });
  });
  return results;
}

// Add the gradients of a block to those of the four parameters of a layer, and to those of its distances unless r_grad
// is null. y_grad and y1_grad are the gradients of all values and slopes.
template <class T>
void add_gradients(const DistanceBlock<T>& block, const FilterNetwork& network, const Tensor& y_grad,
                   const Tensor& y1_grad, const Tensor* sums, T* r_grad) {
  const int64_t rows = block.rows, inner = network.inner_width(), outer = network.outer_width();
  const HiddenLayer hidden(block.basis, rows, network);
  const Tensor dy = y_grad.narrow(0, block.first, rows), dy1 = y1_grad.narrow(0, block.first, rows);
  const Tensor p_grad = multiply_add(dy, network.outer_weight, std::nullopt);
  const Tensor p1_grad = multiply_add(dy1, network.outer_weight, std::nullopt);
  const Tensor z_grad(at::detail::empty_cpu({2 * rows, inner}, block.basis.options()));
  const T *a = hidden.softplus.const_data_ptr<T>(), *s = hidden.sigmoid.const_data_ptr<T>();
  const T *z1 = hidden.slopes.const_data_ptr<T>(), *z2 = z1 + rows * inner;
  const T *dp = p_grad.const_data_ptr<T>(), *dp1 = p1_grad.const_data_ptr<T>();
  T *dz = z_grad.mutable_data_ptr<T>(), *dz1 = dz + rows * inner, *inner_bias_grad = sums[1].mutable_data_ptr<T>();
  const T *dy_row = dy.const_data_ptr<T>(), *dy1_row = dy1.const_data_ptr<T>();
  const T* b = network.outer_bias.const_data_ptr<T>();
  T* outer_bias_grad = sums[3].mutable_data_ptr<T>();
  for (int64_t i = 0; i < rows; ++i) {
    const CosineCutoff<T> e = block.envelope[i];
    for (int64_t k = 0; k < inner; ++k) {
      dz[k] = s[k] * (e.value * dp[k] + dp1[k] * (e.slope + e.value * (1 - s[k]) * z1[k]));
      dz1[k] = e.value * dp1[k] * s[k];
      inner_bias_grad[k] += dz[k];
    }
    for (int64_t k = 0; k < outer; ++k) outer_bias_grad[k] += e.value * dy_row[k] + e.slope * dy1_row[k];
    if (r_grad) {
      T sum = 0;
      for (int64_t k = 0; k < inner; ++k) {
        const T a1 = s[k] * z1[k], a2 = s[k] * ((1 - s[k]) * z1[k] * z1[k] + z2[k]);
        sum += dp1[k] * (e.curvature * a[k] + 2 * e.slope * a1 + e.value * a2);
      }
      for (int64_t k = 0; k < outer; ++k) sum += e.curvature * dy1_row[k] * b[k];
      r_grad[i] += sum;
      z2 += inner;
    }
    a += inner, s += inner, z1 += inner, dp += inner, dp1 += inner, dz += inner, dz1 += inner;
    dy_row += outer, dy1_row += outer;
  }
  const Tensor products = block.apply_cutoff(hidden);
  sums[0].add_(multiply_add(z_grad.t(), block.basis.narrow(0, 0, 2 * rows), std::nullopt));
  sums[2].add_(multiply_add(dy.t(), products.narrow(0, 0, rows), std::nullopt));
  sums[2].add_(multiply_add(dy1.t(), products.narrow(0, rows, rows), std::nullopt));
}

// Return the gradient of r, which is empty unless it is needed, and those of the parameters. Only the slopes contribute
// to the gradient of r: _FilteredSum in ../radial_filters.py accounts for the values.
std::vector<Tensor> radial_filters_backward(at::TensorList grads, const Tensor& r, int64_t gaussians, double cutoff,
                                            double min_exponent, at::TensorList layers, bool needs_r_grad) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  const auto networks = group_parameters(r, gaussians, layers);
  const int64_t pairs = r.numel(), count = networks.size(), block_rows = count_block_rows(networks, gaussians);
  TORCH_CHECK_VALUE(int64_t(grads.size()) == 2 * count, grads.size(), " gradients, expected two for each layer");
  const Tensor distances = r.contiguous();
  std::vector<Tensor> filter_grads;
  for (int64_t k = 0; k < 2 * count; ++k) {
    const int64_t width = networks[k % count].outer_width();
    TORCH_CHECK_VALUE(grads[k].sizes() == at::IntArrayRef({pairs, width}), "gradient ", k, " is ", grads[k].sizes(),
                      ", expected [", pairs, ", ", width, "]");
    filter_grads.push_back(grads[k].contiguous());
  }
  const int64_t blocks = (pairs + block_rows - 1) / block_rows, parts = std::clamp<int64_t>(blocks, 1, MAX_PARTS);
  std::vector<Tensor> sums;
  for (int64_t part = 0; part < parts; ++part)
    for (const Tensor& parameter : layers) sums.push_back(at::zeros_like(parameter, at::MemoryFormat::Contiguous));
  const Tensor r_grad = needs_r_grad ? at::zeros_like(distances) : at::empty({0}, r.options());
  AT_DISPATCH_FLOATING_TYPES(r.scalar_type(), "radial_filters_backward", [&] {
    using T = scalar_t;
    at::parallel_for(0, parts, 1, [&](int64_t part, int64_t last) {
      const at::NoGradGuard guard;
      for (; part < last; ++part)
        for (int64_t k = blocks * part / parts; k < blocks * (part + 1) / parts; ++k) {
          const int64_t first = k * block_rows;
          const DistanceBlock<T> block(distances.const_data_ptr<T>(), first, std::min(block_rows, pairs - first),
                                       gaussians, cutoff, min_exponent, needs_r_grad ? 2 : 1, r.options());
          for (int64_t layer = 0; layer < count; ++layer)
            add_gradients(block, networks[layer], filter_grads[layer], filter_grads[count + layer],
                          &sums[4 * (part * count + layer)],
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
torch::autograd::variable_list differentiate_by_autograd(const torch::autograd::variable_list& grads, const Tensor& r,
                                                       int64_t gaussians, double cutoff, double min_exponent,
                                                       at::TensorList layers) {
  const double wave = std::numbers::pi / cutoff, inverse_spacing = (gaussians - 1) / cutoff;
  const size_t count = layers.size() / 4;
  const auto compute = [&](const Tensor& x, size_t layer, bool is_slope) {
    const Tensor u = x * inverse_spacing - at::arange(gaussians, r.options()), is_inside = x < cutoff;
    const Tensor g = at::exp(at::clamp_min(u.square() * -0.5, min_exponent));
    const Tensor* parameters = &layers[4 * layer];
    const Tensor z = at::linear(g, parameters[0], parameters[1]), a = at::softplus(z, 1, 40);
    const Tensor e = at::where(is_inside, (at::cos(x * wave) + 1) / 2, 0);
    if (!is_slope) return at::linear(e * a, parameters[2]) + e * parameters[3];
    const Tensor e1 = at::where(is_inside, at::sin(x * wave) * (-wave / 2), 0);
    const Tensor a1 = at::sigmoid(z) * at::linear(u * g * -inverse_spacing, parameters[0]);
    return at::linear(e1 * a + e * a1, parameters[2]) + e1 * parameters[3];
  };
  // slopes use an alias of r, so that autograd differentiates them, but not the values, with respect to r
  const Tensor r_of_slopes = r.alias();
  torch::autograd::variable_list outputs, output_grads, inputs;
  for (size_t k = 0; k < grads.size(); ++k)
    if (grads[k].defined()) {
      outputs.push_back(compute(k < count ? r : r_of_slopes, k % count, k >= count));
      output_grads.push_back(grads[k]);
    }
  const auto is_variable = [](const Tensor& x) { return x.requires_grad(); };
  if (is_variable(r)) inputs.push_back(r_of_slopes);
  std::copy_if(layers.begin(), layers.end(), std::back_inserter(inputs), is_variable);
  const auto gradients = torch::autograd::grad(outputs, inputs, output_grads, true, true, true);
  auto next = gradients.begin();
  torch::autograd::variable_list results{is_variable(r) ? *next++ : Tensor()};
  for (const Tensor& parameter : layers) results.push_back(is_variable(parameter) ? *next++ : Tensor());
  return results;
}

std::vector<Tensor> dispatch_radial_filters(const Tensor& r, int64_t gaussians, double cutoff, double min_exponent,
                                            at::TensorList layers) {
  static const auto handle = c10::Dispatcher::singleton()
                                 .findSchemaOrThrow("gfm_harness::radial_filters", "")
                                 .typed<decltype(radial_filters)>();
  return handle.call(r, gaussians, cutoff, min_exponent, layers);
}

std::vector<Tensor> dispatch_radial_filters_backward(at::TensorList grads, const Tensor& r, int64_t gaussians,
                                                     double cutoff, double min_exponent, at::TensorList layers,
                                                     bool needs_r_grad) {
  static const auto handle = c10::Dispatcher::singleton()
                                 .findSchemaOrThrow("gfm_harness::radial_filters_backward", "")
                                 .typed<decltype(radial_filters_backward)>();
  return handle.call(grads, r, gaussians, cutoff, min_exponent, layers, needs_r_grad);
}

struct DifferentiableRadialFilters : torch::autograd::Function<DifferentiableRadialFilters> {
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context, const Tensor& r,
                                                int64_t gaussians, double cutoff, double min_exponent,
                                                at::TensorList layers) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    torch::autograd::variable_list saved = layers.vec();
    auto results = dispatch_radial_filters(r, gaussians, cutoff, min_exponent, layers);
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
      gradients = differentiate_by_autograd(grads, r, gaussians, cutoff, min_exponent, layers);
    } else {
      for (size_t k = 0; k < grads.size(); ++k)
        if (!grads[k].defined()) grads[k] = at::zeros({r.size(0), layers[4 * (k % count) + 2].size(0)}, r.options());
      gradients =
          dispatch_radial_filters_backward(grads, r, gaussians, cutoff, min_exponent, layers, needs_r_grad);
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
