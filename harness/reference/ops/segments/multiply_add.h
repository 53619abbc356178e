// The operator that ../products.py declares and documents, and its derivative.

#pragma once

#include <ATen/Dispatch.h>
#include <ATen/EmptyTensor.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>

#include "products.h"

namespace fused {

using at::Tensor;

// Return a b + bias for a [m, k] and b [k, n] of any strides.
Tensor multiply_add(const Tensor& a, const Tensor& b, const std::optional<Tensor>& bias) {
  const auto type = a.scalar_type();
  TORCH_CHECK_VALUE(a.dim() == 2 && b.dim() == 2 && a.size(1) == b.size(0), "matrices do not fit");
  TORCH_CHECK_VALUE(!bias || bias->sizes() == at::IntArrayRef({b.size(1)}), "bias does not fit");
  static const bool faster = has_faster_products();
  if (!faster || (type != at::kFloat && type != at::kDouble) || a.size(1) == 0)
    return bias ? at::addmm(*bias, a, b) : at::mm(a, b);
  TORCH_CHECK_TYPE(b.scalar_type() == type && (!bias || bias->scalar_type() == type), "floating-point types differ");
  const Tensor initial = bias ? bias->contiguous() : at::zeros({b.size(1)}, a.options());
  // unlike at::empty, empty_cpu does not fill the memory if algorithms are deterministic
  Tensor c(at::detail::empty_cpu({a.size(0), b.size(1)}, a.options()));
  AT_DISPATCH_FLOATING_TYPES(type, "multiply_add", [&] {
    using T = scalar_t;
    multiply(Strided<T>{a.const_data_ptr<T>(), a.stride(0), a.stride(1)},
             Strided<T>{b.const_data_ptr<T>(), b.stride(0), b.stride(1)}, initial.const_data_ptr<T>(),
             c.mutable_data_ptr<T>(), a.size(0), b.size(1), a.size(1));
  });
  return c;
}

Tensor dispatch_multiply_add(const Tensor& a, const Tensor& b, const std::optional<Tensor>& bias) {
  static const auto handle = c10::Dispatcher::singleton()
                                 .findSchemaOrThrow("gfm_harness::multiply_add", "")
                                 .typed<Tensor(const Tensor&, const Tensor&, const std::optional<Tensor>&)>();
  return handle.call(a, b, bias);
}

// In C++ rather than in Python, where backward passes also compute gradients that their caller does not need.
struct DifferentiableMultiplyAdd : torch::autograd::Function<DifferentiableMultiplyAdd> {
  static Tensor forward(torch::autograd::AutogradContext* context, const Tensor& a, const Tensor& b,
                        const std::optional<Tensor>& bias) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    context->save_for_backward({a, b});
    context->saved_data["has_bias"] = bias.has_value();
    return dispatch_multiply_add(a, b, bias);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    const auto saved = context->get_saved_variables();
    const Tensor& grad = gradients[0];
    return {context->needs_input_grad(0) ? dispatch_multiply_add(grad, saved[1].t(), std::nullopt) : Tensor(),
            context->needs_input_grad(1) ? dispatch_multiply_add(saved[0].t(), grad, std::nullopt) : Tensor(),
            context->saved_data["has_bias"].toBool() && context->needs_input_grad(2) ? grad.sum(0) : Tensor()};
  }
};

Tensor differentiable_multiply_add(const Tensor& a, const Tensor& b, const std::optional<Tensor>& bias) {
  return DifferentiableMultiplyAdd::apply(a, b, bias);
}

}  // namespace fused
