// The operators that ../triplets.py declares and documents.

#pragma once

#include <ATen/Dispatch.h>
#include <ATen/ops/zeros.h>

#include "triplets.h"

namespace segments {

// The checked arguments of the operators of triplets.h; the tensor that an operator computes is undefined. ends: `group`,
// `order` and `start` of the incoming edges, the outgoing edges, `group`, `order` and `start` of the receivers.
struct TripletArguments {
  Rows incoming, receivers;
  Tensor outgoing, g, p, s, w, d;
  int64_t pairs, edges, orders, functions, channels;

  TripletArguments(const Tensor& g_, const Tensor& p_, const Tensor& s_, const Tensor& w_, const Tensor& d_,
                   at::TensorList ends)
      : incoming(ends[0], ends[1], ends[2]),
        receivers(ends[4], ends[5], ends[6]),
        outgoing(ends[3]),
        pairs(incoming.count),
        edges(incoming.groups) {
    const auto contiguous = [](const Tensor& x) { return x.defined() ? x.contiguous() : x; };
    g = contiguous(g_), p = contiguous(p_), s = contiguous(s_), w = contiguous(w_), d = contiguous(d_);
    orders = s.defined() ? s.size(1) : w.size(0);
    functions = s.defined() ? s.size(2) : w.size(1);
    channels = (d.defined() ? d : g).size(1);
    const auto check = [&](const char* name, const Tensor& x, at::IntArrayRef sizes) {
      if (!x.defined()) return;
      TORCH_CHECK_VALUE(x.sizes() == sizes, name, " is ", x.sizes(), ", not ", sizes);
      TORCH_CHECK_TYPE(x.scalar_type() == like().scalar_type(), "floating-point types differ");
    };
    TORCH_CHECK_VALUE(outgoing.is_contiguous() && outgoing.numel() == pairs, "the numbers of pairs differ");
    TORCH_CHECK_VALUE(receivers.count == edges, "the numbers of edges differ");
    TORCH_CHECK_VALUE(orders > 0 && orders <= MAX_COMPONENTS, orders, " orders");
    check("g", g, {edges, channels});
    check("p", p, {pairs, orders});
    check("s", s, {edges, orders, functions});
    check("w", w, {orders, functions, channels});
    check("d", d, {edges, channels});
  }

  const Tensor& like() const { return d.defined() ? d : g; }

  template <class T>
  TripletSum<T> pointers() const {
    const auto at = [](const Tensor& x) { return x.defined() ? x.const_data_ptr<T>() : nullptr; };
    return {orders, functions, channels, incoming, receivers, outgoing.const_data_ptr<int64_t>(),
            at(g),  at(p),     at(s),    at(w),    at(d)};
  }
};

template <class F>
void dispatch_triplets(const TripletArguments& in, const F& f) {
  AT_DISPATCH_FLOATING_TYPES(in.like().scalar_type(), "triplets", [&] {
    dispatch_components(in.orders, [&](auto L) { f(in.pointers<scalar_t>(), L); });
  });
}

Tensor triplet_sums(const Tensor& p, const Tensor& s, const Tensor& w, const Tensor& d, at::TensorList ends) {
  const TripletArguments in({}, p, s, w, d, ends);
  Tensor y = at::zeros({in.edges, in.channels}, d.options());
  dispatch_triplets(in, [&]<class T>(const TripletSum<T>& pointers, auto L) {
    triplet_sums_kernel<T, L>(pointers, y.mutable_data_ptr<T>());
  });
  return y;
}

Tensor triplet_angular(const Tensor& g, const Tensor& s, const Tensor& w, const Tensor& d, at::TensorList ends) {
  const TripletArguments in(g, {}, s, w, d, ends);
  Tensor p = at::empty({in.pairs, in.orders}, g.options());
  dispatch_triplets(in, [&]<class T>(const TripletSum<T>& pointers, auto L) {
    triplet_angular_kernel<T, L>(pointers, p.mutable_data_ptr<T>());
  });
  return p;
}

Tensor triplet_radial(const Tensor& g, const Tensor& p, const Tensor& w, const Tensor& d, at::TensorList ends) {
  const TripletArguments in(g, p, {}, w, d, ends);
  Tensor s = at::empty({in.edges, in.orders, in.functions}, g.options());
  dispatch_triplets(in, [&]<class T>(const TripletSum<T>& pointers, auto L) {
    triplet_radial_kernel<T, L>(pointers, s.mutable_data_ptr<T>());
  });
  return s;
}

Tensor triplet_weight(const Tensor& g, const Tensor& p, const Tensor& s, const Tensor& d, at::TensorList ends) {
  const TripletArguments in(g, p, s, {}, d, ends);
  Tensor parts = at::zeros({PARTS, in.orders, in.functions, in.channels}, g.options());
  dispatch_triplets(in, [&]<class T>(const TripletSum<T>& pointers, auto L) {
    triplet_weight_kernel<T, L>(pointers, parts.mutable_data_ptr<T>());
  });
  return parts.sum(0);
}

Tensor triplet_messages(const Tensor& g, const Tensor& p, const Tensor& s, const Tensor& w, at::TensorList ends) {
  const TripletArguments in(g, p, s, w, {}, ends);
  Tensor d = at::empty({in.edges, in.channels}, g.options());
  dispatch_triplets(in, [&]<class T>(const TripletSum<T>& pointers, auto L) {
    triplet_messages_kernel<T, L>(pointers, d.mutable_data_ptr<T>());
  });
  return d;
}

}  // namespace segments
