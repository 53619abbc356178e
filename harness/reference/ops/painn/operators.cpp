// The CPU implementations of the operators that ../messages.py declares and documents. grad_s and grad_v are the
// gradients with respect to the outputs, x_grad is the gradient with respect to x, and d_x is the tangent of x.

#include <ATen/Dispatch.h>
#include <ATen/EmptyTensor.h>
#include <torch/library.h>

#include <tuple>

#include "adaptive.h"
#include "bounds.h"
#include "prepared.h"
#include "repulsion.h"

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

Tensor solve_adaptive_scales(const Tensor& cubes, const Tensor& receiver, double total, int64_t power,
                             c10::SymInt n_atoms) {
  const int64_t atoms = n_atoms.expect_int();
  TORCH_CHECK_VALUE(cubes.dim() == 1 && receiver.sizes() == cubes.sizes(), "cubes and receiver do not match");
  const Tensor edge_cubes = cubes.contiguous(), edge_receiver = receiver.contiguous();
  check_ends(edge_receiver, atoms);
  const EdgesByAtom edges(edge_receiver, atoms);
  Tensor scales = at::zeros({atoms}, cubes.options());
  AT_DISPATCH_FLOATING_TYPES(cubes.scalar_type(), "solve_scales", [&] {
    solve_scales(edge_cubes.const_data_ptr<scalar_t>(), edges, total, power, scales.mutable_data_ptr<scalar_t>());
  });
  return scales;
}

// Return the derivative of the given order with respect to r of half the repulsion energy, and of the switch.
std::tuple<Tensor, Tensor> repel_pairs(const Tensor& r, const Tensor& atoms, const Tensor& receiver,
                                       const Tensor& sender, double core, double end, at::ArrayRef<double> amplitudes,
                                       at::ArrayRef<double> decays, int64_t order) {
  TORCH_CHECK_VALUE(receiver.numel() == r.numel() && sender.numel() == r.numel(), "edges do not match");
  TORCH_CHECK_VALUE(order >= 0 && order < 3 && amplitudes.size() == decays.size(), "unknown order or screening");
  TORCH_CHECK_VALUE(atoms.dim() == 2 && atoms.size(1) == 3, "atoms are not [n, 3]");
  const Tensor distances = r.contiguous(), table = atoms.contiguous();
  const Tensor to = receiver.contiguous(), from = sender.contiguous();
  check_ends(to, atoms.size(0));
  check_ends(from, atoms.size(0));
  Tensor energy(at::detail::empty_cpu(r.sizes(), r.options())), on(at::detail::empty_cpu(r.sizes(), r.options()));
  AT_DISPATCH_FLOATING_TYPES(r.scalar_type(), "repel_pairs", [&] {
    const auto* x = distances.const_data_ptr<scalar_t>();
    auto *y = energy.mutable_data_ptr<scalar_t>(), *z = on.mutable_data_ptr<scalar_t>();
    const auto *receivers = to.const_data_ptr<int64_t>(), *senders = from.const_data_ptr<int64_t>();
    const double* values = table.const_data_ptr<double>();
    at::parallel_for(0, r.numel(), 4096, [&](int64_t first, int64_t last) {
      for (int64_t e = first; e < last; ++e) {
        const double *a = values + 3 * receivers[e], *b = values + 3 * senders[e];
        const PairRepulsion pair{a[0] + b[0], a[1] * b[1], a[2] + b[2], core, end};
        const bool acts = x[e] < end * pair.radius;
        y[e] = acts ? scalar_t(pair.energy(x[e], amplitudes, decays).value[order]) : 0;
        z[e] = acts ? scalar_t(pair.switch_on(x[e]).value[order]) : order == 0;
      }
    });
  });
  return {energy, on};
}

FeatureShape get_shape(const Tensor& x) {
  TORCH_CHECK_VALUE(x.dim() == 2 || (x.dim() == 3 && x.size(0) == 3), "x is neither [n, F] nor [3, n, F]");
  return {x.dim() == 2 ? 1 : 3, x.size(-2), x.size(-1)};
}

Tensor bound_features(const Tensor& x) {
  const Tensor values = x.contiguous();
  Tensor y(at::detail::empty_cpu(x.sizes(), x.options()));
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "bound_features", [&] {
    bound(get_shape(x), values.const_data_ptr<scalar_t>(), y.mutable_data_ptr<scalar_t>());
  });
  return y;
}

Tensor bound_features_backward(const Tensor& grad, const Tensor& x) {
  TORCH_CHECK_VALUE(grad.sizes() == x.sizes() && grad.scalar_type() == x.scalar_type(), "grad does not fit x");
  const Tensor gradient = grad.contiguous(), values = x.contiguous();
  Tensor x_grad(at::detail::empty_cpu(x.sizes(), x.options()));
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "bound_features_backward", [&] {
    bound_backward(get_shape(x), gradient.const_data_ptr<scalar_t>(), values.const_data_ptr<scalar_t>(),
                   x_grad.mutable_data_ptr<scalar_t>());
  });
  return x_grad;
}

}  // namespace fused

TORCH_LIBRARY_IMPL(gfm_harness, CPU, library) {
  library.impl("bound_features", &fused::bound_features);
  library.impl("bound_features_backward", &fused::bound_features_backward);
  library.impl("repel_pairs", &fused::repel_pairs);
  library.impl("solve_scales", &fused::solve_adaptive_scales);
  library.impl("messages", &fused::messages);
  library.impl("messages_backward", &fused::messages_backward);
  library.impl("messages_second", &fused::messages_second);
  library.impl("filter_backward", &fused::filter_backward);
  library.impl("filter_second", &fused::filter_second);
}
