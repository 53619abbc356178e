// The operator sum_triple_products that ../radial_filters.py declares and documents.

#pragma once

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#include "rows.h"
#include "vectors.h"

namespace fused {

using at::Tensor;

// Return the sums over the edges of each pair, and over features, of x[sender] y[receiver] weight[pair], [pairs, 1].
Tensor sum_triple_products(const Tensor& x, const Tensor& y, const Tensor& weight, at::TensorList sender,
                           at::TensorList receiver, at::TensorList pair) {
  TORCH_CHECK_VALUE(sender.size() == 3 && receiver.size() == 3 && pair.size() == 3, "groupings are not three tensors");
  const segments::Rows senders(sender[0], sender[1], sender[2]), receivers(receiver[0], receiver[1], receiver[2]);
  const segments::Rows pairs(pair[0], pair[1], pair[2]);
  const Tensor left = x.contiguous(), right = y.contiguous(), factor = weight.contiguous();
  const int64_t width = x.size(-1);
  TORCH_CHECK_TYPE(y.scalar_type() == x.scalar_type() && weight.scalar_type() == x.scalar_type(), "x is ",
                   x.scalar_type(), ", y ", y.scalar_type(), ", weight ", weight.scalar_type(), ", expected one type");
  const auto check = [&](const char* name, const Tensor& values, int64_t rows) {
    TORCH_CHECK_VALUE(values.sizes() == at::IntArrayRef({rows, width}), name, " is ", values.sizes(), ", expected [",
                      rows, ", ", width, "]");
  };
  check("x", x, senders.groups);
  check("y", y, receivers.groups);
  check("weight", weight, pairs.groups);
  TORCH_CHECK_VALUE(senders.count == pairs.count && receivers.count == pairs.count, "senders, receivers and pairs of ",
                    senders.count, ", ", receivers.count, " and ", pairs.count, " edges");
  const int64_t *const a = senders.group, *const b = receivers.group;
  Tensor sums = at::empty({pairs.groups, 1}, x.options());
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "sum_triple_products", [&] {
    using T = scalar_t;
    const T *u = left.const_data_ptr<T>(), *v = right.const_data_ptr<T>(), *w = factor.const_data_ptr<T>();
    T* const target = sums.mutable_data_ptr<T>();
    const int64_t grain = segments::GRAIN / std::clamp<int64_t>(width, 1, segments::GRAIN);
    at::parallel_for(0, pairs.groups, grain, [&](int64_t first, int64_t last) {
      for (int64_t c = first; c < last; ++c) {
        Vector<T> lanes{};
        T rest = 0;
        for (int64_t n = pairs.start[c]; n < pairs.start[c + 1]; ++n) {
          const T *s = u + a[pairs.order[n]] * width, *t = v + b[pairs.order[n]] * width, *f = w + c * width;
          int64_t k = 0;
          for (; k + LANES<T> <= width; k += LANES<T>) lanes += load(s + k) * load(t + k) * load(f + k);
          for (; k < width; ++k) rest += s[k] * t[k] * f[k];
        }
        target[c] = rest + sum_lanes<T, VECTOR_BYTES>(lanes);
      }
    });
  });
  return sums;
}

}  // namespace fused
