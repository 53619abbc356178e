// Conversion of the operators' arguments to the layout that the kernels read: contiguous tensors with a padded width,
// and the columns of radial in groups of the sizes for which kernels are compiled.

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

// Call f with the number of columns, as a constant, of the smallest kernel that holds the given number of columns. The
// remaining columns are zeros. More than MAX_COLUMNS columns must be divided into groups first.
template <class F>
void dispatch_columns(int64_t columns, const F& f) {
  if (columns <= 7) return f(std::integral_constant<int, 7>());
  if (columns <= 9) return f(std::integral_constant<int, 9>());
  if (columns <= 13) return f(std::integral_constant<int, 13>());
  return f(std::integral_constant<int, 21>());
}
constexpr int64_t MAX_COLUMNS = 21;

// Pad each part of rows [parts * width] with zeros to the padded width.
inline Tensor pad_width(const Tensor& x, int64_t parts, int64_t width, int64_t padded_width) {
  if (padded_width == width) return x.contiguous();
  auto sizes = x.sizes().vec();
  sizes.back() = parts * padded_width;
  return at::constant_pad_nd(x.unflatten(-1, {parts, width}), {0, padded_width - width}).view(sizes);
}

// Invert pad_width.
inline Tensor unpad_width(const Tensor& x, int64_t parts, int64_t width, int64_t padded_width) {
  if (padded_width == width) return x;
  return x.unflatten(-1, {parts, padded_width}).narrow(-1, 0, width).flatten(-2).contiguous();
}

// Check that the atoms at one end of the edges exist.
inline void check_ends(const Tensor& end, int64_t atoms) {
  const int64_t* atom = end.const_data_ptr<int64_t>();
  for (int64_t e = 0; e < end.numel(); ++e)
    TORCH_CHECK_INDEX(atom[e] >= 0 && atom[e] < atoms, "edge ", e, " ends at atom ", atom[e], " of ", atoms);
}

// The arguments that the operators have in common, see ../messages.py.
struct Arguments {
  const Tensor &phi, &radial, &unit, &receiver, &sender;
  const Optional& v;
};

// The checked arguments in the layout of the kernels. padded_width: the width, but at least one vector. vectors: the
// number of vectors that hold one part of a row.
template <class T>
struct Prepared {
  int64_t atoms, parts, width, padded_width, vectors, edges, columns;
  Tensor phi, v, radial, unit, receiver, sender;

  explicit Prepared(const Arguments& arguments)
      : atoms(arguments.phi.size(0)),
        parts(arguments.v ? 3 : 2),
        width(arguments.phi.size(1) / parts),
        padded_width(std::max<int64_t>(width, LANES<T>)),
        vectors((padded_width + LANES<T> - 1) / LANES<T>),
        edges(arguments.radial.size(0)),
        columns(arguments.radial.size(1)) {
    TORCH_CHECK_VALUE(arguments.phi.size(1) == parts * width && width > 0, "phi has ", arguments.phi.size(1),
                      " columns");
    TORCH_CHECK_VALUE(!arguments.v || arguments.v->sizes() == at::IntArrayRef({3, atoms, width}), "v does not fit phi");
    TORCH_CHECK_VALUE(arguments.unit.sizes() == at::IntArrayRef({edges, 3}), "unit is not [e, 3]");
    TORCH_CHECK_VALUE(arguments.receiver.numel() == edges && arguments.sender.numel() == edges, "edges do not match");
    for (const auto& x : {arguments.radial, arguments.unit, arguments.v ? *arguments.v : arguments.phi})
      TORCH_CHECK_TYPE(x.scalar_type() == arguments.phi.scalar_type(), "floating-point types differ");
    phi = pad_width(arguments.phi, parts, width, padded_width);
    if (arguments.v) v = pad_width(*arguments.v, 1, width, padded_width);
    radial = arguments.radial.contiguous();
    unit = arguments.unit.contiguous();
    receiver = arguments.receiver.contiguous();
    sender = arguments.sender.contiguous();
    check_ends(receiver, atoms);
    check_ends(sender, atoms);
  }

  const T* pointer(const Tensor& x) const { return x.defined() ? x.const_data_ptr<T>() : nullptr; }

  Tensor zeros(at::IntArrayRef sizes) const { return at::zeros(sizes, phi.options()); }

  Tensor pad_gradient(const Tensor& x) const {
    TORCH_CHECK_VALUE(x.size(-1) == width && x.size(-2) == atoms, "gradients do not fit phi");
    TORCH_CHECK_TYPE(x.scalar_type() == phi.scalar_type(), "floating-point types differ");
    return pad_width(x, 1, width, padded_width);
  }

  Tensor pad_phi(const Tensor& x) const { return pad_width(x, parts, width, padded_width); }

  // Convert weight [count, P padded_width] to [vectors, P, C, lanes], with 0 where the last vector repeats lanes of the
  // one before.
  Tensor pack(const Tensor& weight, int64_t C) const {
    Tensor packed = zeros({vectors, parts, C, LANES<T>});
    T* to = packed.mutable_data_ptr<T>();
    const T* from = weight.const_data_ptr<T>();
    for (int64_t t = 0; t < vectors; ++t)
      for (int64_t p = 0; p < parts; ++p)
        for (int64_t c = 0; c < weight.size(0); ++c)
          for (int64_t l = 0; l < LANES<T>; ++l) {
            const int64_t f = std::min(t * LANES<T>, padded_width - LANES<T>) + l;
            if (f >= t * LANES<T>)
              to[((t * parts + p) * C + c) * LANES<T> + l] = from[(c * parts + p) * padded_width + f];
          }
    return packed;
  }

  // Invert pack for a gradient; return [count, P padded_width].
  Tensor unpack(const Tensor& packed, int64_t count) const {
    const int64_t C = packed.size(2);
    Tensor weight = zeros({count, parts * padded_width});
    T* to = weight.mutable_data_ptr<T>();
    const T* from = packed.const_data_ptr<T>();
    for (int64_t t = 0; t < vectors; ++t)
      for (int64_t p = 0; p < parts; ++p)
        for (int64_t c = 0; c < count; ++c)
          for (int64_t l = 0; l < LANES<T>; ++l) {
            const int64_t f = std::min(t * LANES<T>, padded_width - LANES<T>) + l;
            to[(c * parts + p) * padded_width + f] = from[((t * parts + p) * C + c) * LANES<T> + l];
          }
    return weight;
  }

  // Return some columns of radial, or of its tangent, padded with zeros to C columns.
  Tensor pad_columns(const Tensor& x, int64_t first, int64_t count, int64_t C) const {
    return columns == C ? x : at::constant_pad_nd(x.narrow(1, first, count), {0, C - count});
  }

  // Call f(C, inputs, first column, number of columns) for each group of columns. The weight is packed unless it is
  // null.
  template <class F>
  void for_each_group(const Tensor* weight, const F& f) const {
    if (weight)
      TORCH_CHECK_VALUE(weight->sizes() == at::IntArrayRef({columns, parts * width}), "weight does not fit phi");
    for (int64_t first = 0; first < columns; first += MAX_COLUMNS) {
      const int64_t count = std::min(MAX_COLUMNS, columns - first);
      dispatch_columns(count, [&](auto C) {
        const Tensor group = pad_columns(radial, first, count, C);
        Tensor packed;
        if (weight) packed = pack(pad_width(weight->narrow(0, first, count), parts, width, padded_width), C);
        f(C,
          Inputs<T>{atoms, padded_width, parts, vectors, C, pointer(phi), pointer(v), pointer(group), pointer(unit),
                    pointer(packed), receiver.const_data_ptr<int64_t>(), sender.const_data_ptr<int64_t>()},
          first, count);
      });
    }
  }
};

// The checked tangents in the layout of the kernels.
template <class T>
struct PreparedTangents {
  const Prepared<T>& in;
  Tensor phi, v, radial, unit;

  PreparedTangents(const Prepared<T>& prepared, const Optional& d_phi, const Optional& d_v, const Tensor& d_radial,
           const Tensor& d_unit)
      : in(prepared), radial(d_radial.contiguous()), unit(d_unit.contiguous()) {
    TORCH_CHECK_VALUE(d_radial.sizes() == in.radial.sizes() && d_unit.sizes() == in.unit.sizes(),
                      "tangents do not fit");
    TORCH_CHECK_VALUE(d_v.has_value() == (d_phi.has_value() && in.v.defined()), "d_phi or d_v is missing");
    if (d_phi) {
      TORCH_CHECK_VALUE(d_phi->sizes() == at::IntArrayRef({in.atoms, in.parts * in.width}), "tangents do not fit");
      phi = in.pad_phi(*d_phi);
    }
    if (d_v) v = in.pad_gradient(*d_v);
    for (const auto& x : {radial, unit, d_phi ? *d_phi : radial})
      TORCH_CHECK_TYPE(x.scalar_type() == in.phi.scalar_type(), "floating-point types differ");
  }

  Tangents<T> pointers(const Tensor& group) const {
    return {in.pointer(phi), in.pointer(v), in.pointer(group), in.pointer(unit)};
  }

  // Call f(whether there is v, whether there are tangents of phi and v), with constants as arguments.
  template <class F>
  void dispatch(const F& f) const {
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
