// Groups of rows, and the parallel loops over them.

#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>

namespace segments {

using at::Tensor;

constexpr int64_t GRAIN = 8192;  // minimum number of elements for each thread

// A tensor [batches, rows, features]: `dim` of its dimensions precede the dimension of the rows, all others follow it.
struct Layout {
  int64_t batches = 1, rows, features = 1;

  Layout(const Tensor& x, int64_t dim) {
    TORCH_CHECK_VALUE(dim >= 0 && dim < x.dim(), "there is no dimension ", dim);
    rows = x.size(dim);
    for (int64_t d = 0; d < dim; ++d) batches *= x.size(d);
    for (int64_t d = dim + 1; d < x.dim(); ++d) features *= x.size(d);
  }

  int64_t offset(int64_t batch, int64_t row) const { return (batch * rows + row) * features; }

  bool fits(const Layout& other) const { return batches == other.batches && features == other.features; }
};

Tensor allocate_rows(const Tensor& like, int64_t rows, int64_t dim) {
  auto sizes = like.sizes().vec();
  sizes[dim] = rows;
  return at::empty(sizes, like.options());
}

// The arguments `index`, `order` and `start` of the operators; the group of row e is group[e].
struct Rows {
  const int64_t *group, *order, *start;
  int64_t count, groups;

  Rows(const Tensor& index, const Tensor& order, const Tensor& start)
      : group(index.const_data_ptr<int64_t>()),
        order(order.const_data_ptr<int64_t>()),
        start(start.const_data_ptr<int64_t>()),
        count(order.numel()),
        groups(start.numel() - 1) {
    TORCH_CHECK_VALUE(index.is_contiguous() && order.is_contiguous() && start.is_contiguous(), "views are no rows");
    TORCH_CHECK_VALUE(index.numel() == count && groups >= 0, "index, order and start do not match");
  }
};

// Call f(batch, first group, end) in each thread, for ranges with about equal numbers of rows.
//
// features: the number of elements of a row.
template <class F>
void for_each_range(const Rows& rows, int64_t batches, int64_t features, const F& f) {
  const int64_t work = batches * (rows.count + rows.groups) * features;
  const int64_t threads = std::clamp<int64_t>(work / GRAIN, 1, at::get_num_threads());
  if (threads <= batches) {
    at::parallel_for(0, batches, 1 + (batches - 1) / threads, [&](int64_t batch, int64_t last) {
      for (; batch < last; ++batch) f(batch, 0, rows.groups);
    });
    return;
  }
  const auto bound = [&](int64_t k) {
    return k == threads ? rows.groups
                        : std::lower_bound(rows.start, rows.start + rows.groups, rows.count * k / threads) - rows.start;
  };
  for (int64_t batch = 0; batch < batches; ++batch)
    at::parallel_for(0, threads, 1, [&](int64_t k, int64_t last) {
      for (; k < last; ++k) f(batch, bound(k), bound(k + 1));
    });
}

}  // namespace segments
