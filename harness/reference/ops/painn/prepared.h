// Tensors as they are given -> what the kernels read, in groups of columns that there are kernels for.

#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/zeros.h>

#include <optional>

#include "second.h"

namespace fused {

using at::Tensor;
using Optional = std::optional<Tensor>;

// How many columns the kernels are made for. Others are filled up with zeros, more than the last come in groups.
template <class F>
void with_columns(int64_t columns, const F& f) {
  if (columns <= 7) return f(std::integral_constant<int, 7>());
  if (columns <= 9) return f(std::integral_constant<int, 9>());
  if (columns <= 13) return f(std::integral_constant<int, 13>());
  return f(std::integral_constant<int, 21>());
}
constexpr int64_t MOST_COLUMNS = 21;

// Rows of parts x width, each part filled up with zeros to at least one vector.
inline Tensor widened(const Tensor& x, int64_t parts, int64_t width, int64_t to) {
  if (to == width) return x.contiguous();
  auto sizes = x.sizes().vec();
  sizes.back() = parts * to;
  return at::constant_pad_nd(x.unflatten(-1, {parts, width}), {0, to - width}).view(sizes);
}

inline Tensor narrowed(const Tensor& x, int64_t parts, int64_t width, int64_t from) {
  if (from == width) return x;
  return x.unflatten(-1, {parts, from}).narrow(-1, 0, width).flatten(-2).contiguous();
}

inline void check_ends(const Tensor& end, int64_t atoms) {
  const int64_t* of = end.const_data_ptr<int64_t>();
  for (int64_t e = 0; e < end.numel(); ++e)
    TORCH_CHECK_INDEX(of[e] >= 0 && of[e] < atoms, "edge ", e, " ends at atom ", of[e], " of ", atoms);
}

struct Given {
  const Tensor &phi, &radial, &unit, &receiver, &sender;
  const Optional& v;
};

// Tensors as the kernels want them, in one type, of one width.
template <class T>
struct Prepared {
  int64_t atoms, parts, width, wide, vectors, edges, columns;
  Tensor phi, v, radial, unit, receiver, sender;

  explicit Prepared(const Given& given)
      : atoms(given.phi.size(0)),
        parts(given.v ? 3 : 2),
        width(given.phi.size(1) / parts),
        wide(std::max<int64_t>(width, LANES<T>)),
        vectors((wide + LANES<T> - 1) / LANES<T>),
        edges(given.radial.size(0)),
        columns(given.radial.size(1)) {
    TORCH_CHECK_VALUE(given.phi.size(1) == parts * width && width > 0, "phi has ", given.phi.size(1), " columns");
    TORCH_CHECK_VALUE(!given.v || given.v->sizes() == at::IntArrayRef({3, atoms, width}), "v does not fit phi");
    TORCH_CHECK_VALUE(given.unit.sizes() == at::IntArrayRef({edges, 3}), "unit is not [e, 3]");
    TORCH_CHECK_VALUE(given.receiver.numel() == edges && given.sender.numel() == edges, "edges do not match");
    for (const auto& x : {given.radial, given.unit, given.v ? *given.v : given.phi})
      TORCH_CHECK_TYPE(x.scalar_type() == given.phi.scalar_type(), "floating-point types differ");
    phi = widened(given.phi, parts, width, wide);
    if (given.v) v = widened(*given.v, 1, width, wide);
    radial = given.radial.contiguous();
    unit = given.unit.contiguous();
    receiver = given.receiver.contiguous();
    sender = given.sender.contiguous();
    check_ends(receiver, atoms);
    check_ends(sender, atoms);
  }

  const T* pointer(const Tensor& x) const { return x.defined() ? x.const_data_ptr<T>() : nullptr; }

  Tensor zeros(at::IntArrayRef sizes) const { return at::zeros(sizes, phi.options()); }

  Tensor widened_gradient(const Tensor& x) const {
    TORCH_CHECK_VALUE(x.size(-1) == width && x.size(-2) == atoms, "gradients do not fit phi");
    TORCH_CHECK_TYPE(x.scalar_type() == phi.scalar_type(), "floating-point types differ");
    return widened(x, 1, width, wide);
  }

  Tensor widened_phi(const Tensor& x) const { return widened(x, parts, width, wide); }

  // weight [count, P wide] -> [vectors, P, C, lanes]; 0 where the last vector repeats lanes of the one before.
  Tensor pack(const Tensor& weight, int64_t C) const {
    Tensor packed = zeros({vectors, parts, C, LANES<T>});
    T* to = packed.mutable_data_ptr<T>();
    const T* from = weight.const_data_ptr<T>();
    for (int64_t t = 0; t < vectors; ++t)
      for (int64_t p = 0; p < parts; ++p)
        for (int64_t c = 0; c < weight.size(0); ++c)
          for (int64_t l = 0; l < LANES<T>; ++l) {
            const int64_t f = std::min(t * LANES<T>, wide - LANES<T>) + l;
            if (f >= t * LANES<T>) to[((t * parts + p) * C + c) * LANES<T> + l] = from[(c * parts + p) * wide + f];
          }
    return packed;
  }

  Tensor unpack(const Tensor& packed, int64_t count) const {
    const int64_t C = packed.size(2);
    Tensor weight = zeros({count, parts * wide});
    T* to = weight.mutable_data_ptr<T>();
    const T* from = packed.const_data_ptr<T>();
    for (int64_t t = 0; t < vectors; ++t)
      for (int64_t p = 0; p < parts; ++p)
        for (int64_t c = 0; c < count; ++c)
          for (int64_t l = 0; l < LANES<T>; ++l) {
            const int64_t f = std::min(t * LANES<T>, wide - LANES<T>) + l;
            to[(c * parts + p) * wide + f] = from[((t * parts + p) * C + c) * LANES<T> + l];
          }
    return weight;
  }

  // Some columns of radial, or of its direction, filled up to C.
  Tensor grouped(const Tensor& x, int64_t first, int64_t count, int64_t C) const {
    return columns == C ? x : at::constant_pad_nd(x.narrow(1, first, count), {0, C - count});
  }

  // f(C, inputs, first column, count) for each group of columns; weight is packed where it is given.
  template <class F>
  void each_group(const Tensor* weight, const F& f) const {
    if (weight) TORCH_CHECK_VALUE(weight->sizes() == at::IntArrayRef({columns, parts * width}), "weight does not fit phi");
    for (int64_t first = 0; first < columns; first += MOST_COLUMNS) {
      const int64_t count = std::min(MOST_COLUMNS, columns - first);
      with_columns(count, [&](auto C) {
        const Tensor group = grouped(radial, first, count, C);
        Tensor packed;
        if (weight) packed = pack(widened(weight->narrow(0, first, count), parts, width, wide), C);
        f(C,
          Inputs<T>{atoms, wide, parts, vectors, C, pointer(phi), pointer(v), pointer(group), pointer(unit),
                    pointer(packed), receiver.const_data_ptr<int64_t>(), sender.const_data_ptr<int64_t>()},
          first, count);
      });
    }
  }
};

// Directions as the kernels want them.
template <class T>
struct Directed {
  const Prepared<T>& in;
  Tensor phi, v, radial, unit;

  Directed(const Prepared<T>& prepared, const Optional& d_phi, const Optional& d_v, const Tensor& d_radial,
           const Tensor& d_unit)
      : in(prepared), radial(d_radial.contiguous()), unit(d_unit.contiguous()) {
    TORCH_CHECK_VALUE(d_radial.sizes() == in.radial.sizes() && d_unit.sizes() == in.unit.sizes(), "directions do not fit");
    TORCH_CHECK_VALUE(d_v.has_value() == (d_phi.has_value() && in.v.defined()), "one direction of atoms is lacking");
    if (d_phi) {
      TORCH_CHECK_VALUE(d_phi->sizes() == at::IntArrayRef({in.atoms, in.parts * in.width}), "directions do not fit");
      phi = in.widened_phi(*d_phi);
    }
    if (d_v) v = in.widened_gradient(*d_v);
    for (const auto& x : {radial, unit, d_phi ? *d_phi : radial})
      TORCH_CHECK_TYPE(x.scalar_type() == in.phi.scalar_type(), "floating-point types differ");
  }

  Directions<T> pointers(const Tensor& group) const {
    return {in.pointer(phi), in.pointer(v), in.pointer(group), in.pointer(unit)};
  }

  // f(whether there is v, whether there are directions of atoms), as constants
  template <class F>
  void choose(const F& f) const {
    const auto with = [&](auto with_v) {
      if (phi.defined())
        f(with_v, std::true_type());
      else
        f(with_v, std::false_type());
    };
    if (in.v.defined())
      with(std::true_type());
    else
      with(std::false_type());
  }
};

}  // namespace fused
