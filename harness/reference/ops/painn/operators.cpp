// The operators that torch calls; what they return and take is told in ../messages.py.

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
    const Rows rows(in.receiver, in.atoms);
    Tensor s = in.zeros({in.atoms, in.wide}), to_v = in.zeros({3, in.atoms, in.wide});
    auto *s_at = s.mutable_data_ptr<scalar_t>(), *v_at = to_v.mutable_data_ptr<scalar_t>();
    in.each_group(&weight, [&](auto C, const Inputs<scalar_t>& inputs, int64_t, int64_t) {
      if (v)
        messages_kernel<scalar_t, C, true>(inputs, rows, s_at, v_at);
      else
        messages_kernel<scalar_t, C, false>(inputs, rows, s_at, v_at);
    });
    result = {narrowed(s, 1, in.width, in.wide), narrowed(to_v, 1, in.width, in.wide)};
  });
  return result;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> messages_backward(
    const Tensor& to_s, const Tensor& to_v, const Tensor& phi, const Optional& v, const Tensor& radial,
    const Tensor& weight, const Tensor& unit, const Tensor& receiver, const Tensor& sender, bool nodes) {
  std::tuple<Tensor, Tensor, Tensor, Tensor> result;
  AT_DISPATCH_FLOATING_TYPES(phi.scalar_type(), "messages_backward", [&] {
    using T = scalar_t;
    const Prepared<T> in({phi, radial, unit, receiver, sender, v});
    const Rows rows(in.sender, in.atoms);
    const Tensor of_s = in.widened_gradient(to_s), of_v = in.widened_gradient(to_v);
    const bool of_nodes_v = nodes && v;
    Tensor by_phi = nodes ? in.zeros({in.atoms, in.parts * in.wide}) : in.zeros({0});
    Tensor by_v = of_nodes_v ? in.zeros({3, in.atoms, in.wide}) : in.zeros({0});
    Tensor by_radial = in.zeros({in.edges, in.columns}), by_unit = in.zeros({in.edges, 3});
    in.each_group(&weight, [&](auto C, const Inputs<T>& inputs, int64_t first, int64_t count) {
      Tensor group = in.columns == C ? by_radial : in.zeros({in.edges, C});
      const Gradients<T> g{of_s.const_data_ptr<T>(),        of_v.const_data_ptr<T>(),
                           by_phi.mutable_data_ptr<T>(),    by_v.mutable_data_ptr<T>(),
                           group.mutable_data_ptr<T>(),     by_unit.mutable_data_ptr<T>()};
      if (v && nodes)
        backward_kernel<T, C, true, true>(inputs, rows, g);
      else if (v)
        backward_kernel<T, C, true, false>(inputs, rows, g);
      else if (nodes)
        backward_kernel<T, C, false, true>(inputs, rows, g);
      else
        backward_kernel<T, C, false, false>(inputs, rows, g);
      if (in.columns != C) by_radial.narrow(1, first, count).copy_(group.narrow(1, 0, count));
    });
    if (nodes) by_phi = narrowed(by_phi, in.parts, in.width, in.wide);
    if (of_nodes_v) by_v = narrowed(by_v, 1, in.width, in.wide);
    result = {by_phi, by_v, by_radial, by_unit};
  });
  return result;
}

// Gradients, of the derivative of what messages_backward gives in the given directions, by to_s, to_v, phi, v, radial,
// unit. Directions of the atoms are both there or both not; without v, that of v is not.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> messages_second(
    const Tensor& to_s, const Tensor& to_v, const Tensor& phi, const Optional& v, const Tensor& radial,
    const Tensor& weight, const Tensor& unit, const Tensor& receiver, const Tensor& sender, const Optional& d_phi,
    const Optional& d_v, const Tensor& d_radial, const Tensor& d_unit) {
  std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> result;
  AT_DISPATCH_FLOATING_TYPES(phi.scalar_type(), "messages_second", [&] {
    using T = scalar_t;
    const Prepared<T> in({phi, radial, unit, receiver, sender, v});
    const Directed<T> along(in, d_phi, d_v, d_radial, d_unit);
    const Rows received(in.receiver, in.atoms), sent(in.sender, in.atoms);
    const Tensor of_s = in.widened_gradient(to_s), of_v = in.widened_gradient(to_v);
    Tensor by_s = in.zeros({in.atoms, in.wide}), by_to_v = in.zeros({3, in.atoms, in.wide});
    Tensor by_phi = in.zeros({in.atoms, in.parts * in.wide});
    Tensor by_v = v ? in.zeros({3, in.atoms, in.wide}) : in.zeros({0});
    Tensor by_radial = in.zeros({in.edges, in.columns}), by_unit = in.zeros({in.edges, 3});
    in.each_group(&weight, [&](auto C, const Inputs<T>& inputs, int64_t first, int64_t count) {
      const Tensor d_group = in.grouped(along.radial, first, count, C);
      const Directions<T> directions = along.pointers(d_group);
      Tensor group = in.columns == C ? by_radial : in.zeros({in.edges, C});
      const Gradients<T> g{of_s.const_data_ptr<T>(),     of_v.const_data_ptr<T>(),
                           by_phi.mutable_data_ptr<T>(), by_v.mutable_data_ptr<T>(),
                           group.mutable_data_ptr<T>(),  by_unit.mutable_data_ptr<T>()};
      along.choose([&](auto with_v, auto atoms) {
        second_of_receivers<T, C, with_v, atoms>(inputs, directions, received, by_s.mutable_data_ptr<T>(),
                                                 by_to_v.mutable_data_ptr<T>());
        second_of_senders<T, C, with_v, atoms>(inputs, directions, sent, g);
      });
      if (in.columns != C) by_radial.narrow(1, first, count).copy_(group.narrow(1, 0, count));
    });
    by_phi = narrowed(by_phi, in.parts, in.width, in.wide);
    if (v) by_v = narrowed(by_v, 1, in.width, in.wide);
    result = {narrowed(by_s, 1, in.width, in.wide), narrowed(by_to_v, 1, in.width, in.wide), by_phi, by_v, by_radial,
              by_unit};
  });
  return result;
}

Tensor filter_backward(const Tensor& to_s, const Tensor& to_v, const Tensor& phi, const Optional& v,
                       const Tensor& radial, const Tensor& unit, const Tensor& receiver, const Tensor& sender) {
  Tensor result;
  AT_DISPATCH_FLOATING_TYPES(phi.scalar_type(), "filter_backward", [&] {
    using T = scalar_t;
    const Prepared<T> in({phi, radial, unit, receiver, sender, v});
    const Tensor of_s = in.widened_gradient(to_s), of_v = in.widened_gradient(to_v);
    const Gradients<T> g{of_s.const_data_ptr<T>(), of_v.const_data_ptr<T>(), nullptr, nullptr, nullptr, nullptr};
    std::vector<Tensor> groups;
    in.each_group(nullptr, [&](auto C, const Inputs<T>& inputs, int64_t, int64_t count) {
      Tensor packed = in.zeros({in.vectors, in.parts, int64_t(C), LANES<T>});
      if (v)
        filter_kernel<T, C, true, Along::NONE>(inputs, g, {}, in.edges, packed.mutable_data_ptr<T>());
      else
        filter_kernel<T, C, false, Along::NONE>(inputs, g, {}, in.edges, packed.mutable_data_ptr<T>());
      groups.push_back(in.unpack(packed, count));
    });
    result = narrowed(at::cat(groups), in.parts, in.width, in.wide);
  });
  return result;
}

// As messages_second, by the weights, which the derivative is linear in.
Tensor filter_second(const Tensor& to_s, const Tensor& to_v, const Tensor& phi, const Optional& v, const Tensor& radial,
                     const Tensor& unit, const Tensor& receiver, const Tensor& sender, const Optional& d_phi,
                     const Optional& d_v, const Tensor& d_radial, const Tensor& d_unit) {
  Tensor result;
  AT_DISPATCH_FLOATING_TYPES(phi.scalar_type(), "filter_second", [&] {
    using T = scalar_t;
    const Prepared<T> in({phi, radial, unit, receiver, sender, v});
    const Directed<T> along(in, d_phi, d_v, d_radial, d_unit);
    const Tensor of_s = in.widened_gradient(to_s), of_v = in.widened_gradient(to_v);
    const Gradients<T> g{of_s.const_data_ptr<T>(), of_v.const_data_ptr<T>(), nullptr, nullptr, nullptr, nullptr};
    std::vector<Tensor> groups;
    in.each_group(nullptr, [&](auto C, const Inputs<T>& inputs, int64_t first, int64_t count) {
      const Tensor d_group = in.grouped(along.radial, first, count, C);
      Tensor packed = in.zeros({in.vectors, in.parts, int64_t(C), LANES<T>});
      along.choose([&](auto with_v, auto atoms) {
        filter_kernel<T, C, with_v, atoms ? Along::ALL : Along::EDGES>(inputs, g, along.pointers(d_group), in.edges,
                                                                       packed.mutable_data_ptr<T>());
      });
      groups.push_back(in.unpack(packed, count));
    });
    result = narrowed(at::cat(groups), in.parts, in.width, in.wide);
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
