// The CPU implementations of the operators that ../messages.py declares and documents. grad_s and grad_v are the
// gradients with respect to the outputs, x_grad is the gradient with respect to x, and d_x is the tangent of x.

#include <ATen/Dispatch.h>
#include <torch/library.h>

#include <tuple>

#include "prepared.h"

namespace fused {

std::tuple<Tensor, Tensor> messages(const Tensor& phi, const Optional& v, const Tensor& radial, const Tensor& weight,
                                    const Tensor& unit, const Tensor& receiver, const Tensor& sender) {
  std::tuple<Tensor, Tensor> result;
  AT_DISPATCH_FLOATING_TYPES(phi.scalar_type(), "messages", [&] {
    const Prepared<scalar_t> in({phi, radial, unit, receiver, sender, v});
    const EdgesByAtom by_receiver(in.receiver, in.atoms);
    Tensor s = in.zeros({in.atoms, in.padded_width}), v_sum = in.zeros({3, in.atoms, in.padded_width});
    auto *s_data = s.mutable_data_ptr<scalar_t>(), *v_data = v_sum.mutable_data_ptr<scalar_t>();
    in.for_each_group(&weight, [&](auto C, const Inputs<scalar_t>& inputs, int64_t, int64_t) {
      if (v)
        messages_kernel<scalar_t, C, true>(inputs, by_receiver, s_data, v_data);
      else
        messages_kernel<scalar_t, C, false>(inputs, by_receiver, s_data, v_data);
    });
    result = {unpad_width(s, 1, in.width, in.padded_width), unpad_width(v_sum, 1, in.width, in.padded_width)};
  });
  return result;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> messages_backward(
    const Tensor& grad_s, const Tensor& grad_v, const Tensor& phi, const Optional& v, const Tensor& radial,
    const Tensor& weight, const Tensor& unit, const Tensor& receiver, const Tensor& sender, bool needs_nodes) {
  std::tuple<Tensor, Tensor, Tensor, Tensor> result;
  AT_DISPATCH_FLOATING_TYPES(phi.scalar_type(), "messages_backward", [&] {
    using T = scalar_t;
    const Prepared<T> in({phi, radial, unit, receiver, sender, v});
    const EdgesByAtom by_sender(in.sender, in.atoms);
    const Tensor padded_grad_s = in.pad_gradient(grad_s), padded_grad_v = in.pad_gradient(grad_v);
    const bool needs_v = needs_nodes && v;
    Tensor phi_grad = needs_nodes ? in.zeros({in.atoms, in.parts * in.padded_width}) : in.zeros({0});
    Tensor v_grad = needs_v ? in.zeros({3, in.atoms, in.padded_width}) : in.zeros({0});
    Tensor radial_grad = in.zeros({in.edges, in.columns}), unit_grad = in.zeros({in.edges, 3});
    in.for_each_group(&weight, [&](auto C, const Inputs<T>& inputs, int64_t first, int64_t count) {
      Tensor radial_grad_group = in.columns == C ? radial_grad : in.zeros({in.edges, C});
      const Gradients<T> g{padded_grad_s.const_data_ptr<T>(),       padded_grad_v.const_data_ptr<T>(),
                           phi_grad.mutable_data_ptr<T>(),          v_grad.mutable_data_ptr<T>(),
                           radial_grad_group.mutable_data_ptr<T>(), unit_grad.mutable_data_ptr<T>()};
      if (v && needs_nodes)
        backward_kernel<T, C, true, true>(inputs, by_sender, g);
      else if (v)
        backward_kernel<T, C, true, false>(inputs, by_sender, g);
      else if (needs_nodes)
        backward_kernel<T, C, false, true>(inputs, by_sender, g);
      else
        backward_kernel<T, C, false, false>(inputs, by_sender, g);
      if (in.columns != C) radial_grad.narrow(1, first, count).copy_(radial_grad_group.narrow(1, 0, count));
    });
    if (needs_nodes) phi_grad = unpad_width(phi_grad, in.parts, in.width, in.padded_width);
    if (needs_v) v_grad = unpad_width(v_grad, 1, in.width, in.padded_width);
    result = {phi_grad, v_grad, radial_grad, unit_grad};
  });
  return result;
}

// Let B be the sum of the gradients that messages_backward returns, each times its tangent. Return the gradients of B
// with respect to grad_s, grad_v, phi, v, radial and unit. d_phi and d_v are both given or both absent; without v there
// is no d_v.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> messages_second(
    const Tensor& grad_s, const Tensor& grad_v, const Tensor& phi, const Optional& v, const Tensor& radial,
    const Tensor& weight, const Tensor& unit, const Tensor& receiver, const Tensor& sender, const Optional& d_phi,
    const Optional& d_v, const Tensor& d_radial, const Tensor& d_unit) {
  std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> result;
  AT_DISPATCH_FLOATING_TYPES(phi.scalar_type(), "messages_second", [&] {
    using T = scalar_t;
    const Prepared<T> in({phi, radial, unit, receiver, sender, v});
    const PreparedTangents<T> tangents(in, d_phi, d_v, d_radial, d_unit);
    const EdgesByAtom by_receiver(in.receiver, in.atoms), by_sender(in.sender, in.atoms);
    const Tensor padded_grad_s = in.pad_gradient(grad_s), padded_grad_v = in.pad_gradient(grad_v);
    Tensor grad_s_grad = in.zeros({in.atoms, in.padded_width}), grad_v_grad = in.zeros({3, in.atoms, in.padded_width});
    Tensor phi_grad = in.zeros({in.atoms, in.parts * in.padded_width});
    Tensor v_grad = v ? in.zeros({3, in.atoms, in.padded_width}) : in.zeros({0});
    Tensor radial_grad = in.zeros({in.edges, in.columns}), unit_grad = in.zeros({in.edges, 3});
    in.for_each_group(&weight, [&](auto C, const Inputs<T>& inputs, int64_t first, int64_t count) {
      const Tensor d_radial_group = in.pad_columns(tangents.radial, first, count, C);
      const Tangents<T> pointers = tangents.pointers(d_radial_group);
      Tensor radial_grad_group = in.columns == C ? radial_grad : in.zeros({in.edges, C});
      const Gradients<T> g{padded_grad_s.const_data_ptr<T>(),       padded_grad_v.const_data_ptr<T>(),
                           phi_grad.mutable_data_ptr<T>(),          v_grad.mutable_data_ptr<T>(),
                           radial_grad_group.mutable_data_ptr<T>(), unit_grad.mutable_data_ptr<T>()};
      tangents.dispatch([&](auto with_v, auto with_atoms) {
        second_kernel_receivers<T, C, with_v, with_atoms>(inputs, pointers, by_receiver,
                                                          grad_s_grad.mutable_data_ptr<T>(),
                                                          grad_v_grad.mutable_data_ptr<T>());
        second_kernel_senders<T, C, with_v, with_atoms>(inputs, pointers, by_sender, g);
      });
      if (in.columns != C) radial_grad.narrow(1, first, count).copy_(radial_grad_group.narrow(1, 0, count));
    });
    phi_grad = unpad_width(phi_grad, in.parts, in.width, in.padded_width);
    if (v) v_grad = unpad_width(v_grad, 1, in.width, in.padded_width);
    result = {unpad_width(grad_s_grad, 1, in.width, in.padded_width),
              unpad_width(grad_v_grad, 1, in.width, in.padded_width),
              phi_grad,
              v_grad,
              radial_grad,
              unit_grad};
  });
  return result;
}

Tensor filter_backward(const Tensor& grad_s, const Tensor& grad_v, const Tensor& phi, const Optional& v,
                       const Tensor& radial, const Tensor& unit, const Tensor& receiver, const Tensor& sender) {
  Tensor result;
  AT_DISPATCH_FLOATING_TYPES(phi.scalar_type(), "filter_backward", [&] {
    using T = scalar_t;
    const Prepared<T> in({phi, radial, unit, receiver, sender, v});
    const Tensor padded_grad_s = in.pad_gradient(grad_s), padded_grad_v = in.pad_gradient(grad_v);
    const Gradients<T> g{padded_grad_s.const_data_ptr<T>(), padded_grad_v.const_data_ptr<T>(), nullptr, nullptr,
                         nullptr, nullptr};
    std::vector<Tensor> groups;
    in.for_each_group(nullptr, [&](auto C, const Inputs<T>& inputs, int64_t, int64_t count) {
      Tensor packed = in.zeros({in.vectors, in.parts, int64_t(C), LANES<T>});
      if (v)
        filter_kernel<T, C, true, TangentKind::NONE>(inputs, g, {}, in.edges, packed.mutable_data_ptr<T>());
      else
        filter_kernel<T, C, false, TangentKind::NONE>(inputs, g, {}, in.edges, packed.mutable_data_ptr<T>());
      groups.push_back(in.unpack(packed, count));
    });
    result = unpad_width(at::cat(groups), in.parts, in.width, in.padded_width);
  });
  return result;
}

// Return the gradient of B (see messages_second) with respect to the weight, in which B is linear.
Tensor filter_second(const Tensor& grad_s, const Tensor& grad_v, const Tensor& phi, const Optional& v,
                     const Tensor& radial, const Tensor& unit, const Tensor& receiver, const Tensor& sender,
                     const Optional& d_phi, const Optional& d_v, const Tensor& d_radial, const Tensor& d_unit) {
  Tensor result;
  AT_DISPATCH_FLOATING_TYPES(phi.scalar_type(), "filter_second", [&] {
    using T = scalar_t;
    const Prepared<T> in({phi, radial, unit, receiver, sender, v});
    const PreparedTangents<T> tangents(in, d_phi, d_v, d_radial, d_unit);
    const Tensor padded_grad_s = in.pad_gradient(grad_s), padded_grad_v = in.pad_gradient(grad_v);
    const Gradients<T> g{padded_grad_s.const_data_ptr<T>(), padded_grad_v.const_data_ptr<T>(), nullptr, nullptr,
                         nullptr, nullptr};
    std::vector<Tensor> groups;
    in.for_each_group(nullptr, [&](auto C, const Inputs<T>& inputs, int64_t first, int64_t count) {
      const Tensor d_radial_group = in.pad_columns(tangents.radial, first, count, C);
      Tensor packed = in.zeros({in.vectors, in.parts, int64_t(C), LANES<T>});
      tangents.dispatch([&](auto with_v, auto with_atoms) {
        filter_kernel<T, C, with_v, with_atoms ? TangentKind::ALL : TangentKind::EDGES>(
            inputs, g, tangents.pointers(d_radial_group), in.edges, packed.mutable_data_ptr<T>());
      });
      groups.push_back(in.unpack(packed, count));
    });
    result = unpad_width(at::cat(groups), in.parts, in.width, in.padded_width);
  });
  return result;
}

}  // namespace fused

TORCH_LIBRARY_IMPL(gfm_harness, CPU, library) {
  library.impl("messages", &fused::messages);
  library.impl("messages_backward", &fused::messages_backward);
  library.impl("messages_second", &fused::messages_second);
  library.impl("filter_backward", &fused::filter_backward);
  library.impl("filter_second", &fused::filter_second);
}
