// The operator that ../activations.py declares and documents, and its derivatives.

#pragma once

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/silu_backward.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>

namespace fused {

using at::Tensor;

// The derivative of this order of x s(x), with s the logistic function.
template <int ORDER, class T>
inline T differentiate_silu(T x, T s) {
  const T s1 = s * (1 - s), slope = 1 - 2 * s, s2 = s1 * slope;
  if constexpr (ORDER == 2) return 2 * s1 + x * s2;
  return 3 * s2 + x * (s2 * slope - 2 * s1 * s1);
}

// Return the derivative of silu of an order up to 3, times the factor; of order 0 without a factor.
Tensor scaled_silu(const Tensor& x, const std::optional<Tensor>& factor, int64_t order) {
  TORCH_CHECK_VALUE(order >= 0 && order <= 3 && factor.has_value() == (order > 0), "no derivative of order ", order);
  const Tensor in = x.contiguous();
  if (order == 0) return at::silu(in);
  TORCH_CHECK_VALUE(factor->sizes() == x.sizes() && factor->scalar_type() == x.scalar_type(), "factor does not fit x");
  const Tensor by = factor->contiguous();
  if (order == 1) return at::silu_backward(by, in);
  Tensor y = at::sigmoid(in);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "scaled_silu", [&] {
    const auto *from = in.const_data_ptr<scalar_t>(), *scale = by.const_data_ptr<scalar_t>();
    auto* to = y.mutable_data_ptr<scalar_t>();
    const auto compute = [&]<int ORDER>(std::integral_constant<int, ORDER>) {
      at::parallel_for(0, in.numel(), 1 << 15, [&](int64_t first, int64_t last) {
        for (int64_t k = first; k < last; ++k) to[k] = scale[k] * differentiate_silu<ORDER>(from[k], to[k]);
      });
    };
    order == 2 ? compute(std::integral_constant<int, 2>()) : compute(std::integral_constant<int, 3>());
  });
  return y;
}

Tensor dispatch_scaled_silu(const Tensor& x, const std::optional<Tensor>& factor, int64_t order) {
  static const auto handle = c10::Dispatcher::singleton()
                                 .findSchemaOrThrow("gfm_harness::scaled_silu", "")
                                 .typed<Tensor(const Tensor&, const std::optional<Tensor>&, int64_t)>();
  return handle.call(x, factor, order);
}

struct DifferentiableScaledSilu : torch::autograd::Function<DifferentiableScaledSilu> {
  static Tensor forward(torch::autograd::AutogradContext* context, const Tensor& x,
                        const std::optional<Tensor>& factor, int64_t order) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    context->save_for_backward({x, factor.value_or(Tensor())});
    context->saved_data["order"] = order;
    return dispatch_scaled_silu(x, factor, order);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    const auto saved = context->get_saved_variables();
    const Tensor &x = saved[0], &factor = saved[1], &grad = gradients[0];
    const int64_t order = context->saved_data["order"].toInt();
    return {context->needs_input_grad(0) ? dispatch_scaled_silu(x, order ? at::mul(grad, factor) : grad, order + 1) : Tensor(),
            order && context->needs_input_grad(1) ? dispatch_scaled_silu(x, grad, order) : Tensor(), Tensor()};
  }
};

Tensor differentiable_scaled_silu(const Tensor& x, const std::optional<Tensor>& factor, int64_t order) {
  return DifferentiableScaledSilu::apply(x, factor, order);
}

}  // namespace fused
