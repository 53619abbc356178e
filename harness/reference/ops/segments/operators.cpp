// The CPU implementations of the operators that ../segment_sums.py, ../couplings.py, ../triplets.py, ../activations.py,
// ../products.py and ../radial_filters.py declare and document.
//
// One thread computes each sum, in the order of the rows, so that results do not depend on the number of threads.

#include <ATen/AccumulateType.h>
#include <ATen/Dispatch.h>
#include <torch/library.h>

#include <optional>
#include <tuple>
#include <type_traits>

#include "couplings.h"
#include "multiply_add.h"
#include "pairs.h"
#include "radial_filters.h"
#include "rows.h"
#include "silu.h"
#include "triple_products.h"
#include "triplet_operators.h"

namespace segments {

constexpr int64_t BLOCK = 256;  // number of features that are summed at a time, in the L1 cache

// Stable counting sort of the rows by their group.
std::tuple<Tensor, Tensor> group_rows(const Tensor& index, int64_t groups) {
  const Tensor contiguous = index.contiguous();
  const int64_t* group = contiguous.const_data_ptr<int64_t>();
  const int64_t rows = index.numel();
  Tensor order = at::empty({rows}, index.options()), starts = at::empty({groups + 1}, index.options());
  int64_t *position = order.mutable_data_ptr<int64_t>(), *start = starts.mutable_data_ptr<int64_t>();
  std::fill_n(start, groups + 1, 0);
  for (int64_t e = 0; e < rows; ++e) {
    TORCH_CHECK_INDEX(group[e] >= 0 && group[e] < groups, "row ", e, " belongs to group ", group[e], " of ", groups);
    ++start[group[e] + 1];
  }
  for (int64_t i = 0; i < groups; ++i) start[i + 1] += start[i];
  // start[i] moves to the end of group i while its rows are placed, and is then moved back
  for (int64_t e = 0; e < rows; ++e) position[start[group[e]]++] = e;
  for (int64_t i = groups; i > 0; --i) start[i] = start[i - 1];
  start[0] = 0;
  return {order, starts};
}

// Rows that are added, and products of two rows.
template <class T>
struct Term {
  const T* u;

  auto scalar(int64_t f) const { return at::acc_type<T, true>(u[f]); }
  auto vector(int64_t f) const { return fused::load(u + f); }
};

template <class T>
struct ProductTerm {
  const T *u, *w;

  auto scalar(int64_t f) const { return at::acc_type<T, true>(u[f]) * at::acc_type<T, true>(w[f]); }
  auto vector(int64_t f) const { return fused::load(u + f) * fused::load(w + f); }
};

// Set each row of y to the sum over the rows e of its group of the terms locate(batch, e).
template <class T, class Locate>
void sum_rows(Tensor& y, int64_t dim, const Rows& rows, const Locate& locate) {
  using A = at::acc_type<T, true>;
  const Layout to(y, dim);
  T* target = y.mutable_data_ptr<T>();
  for_each_range(rows, to.batches, to.features, [&](int64_t batch, int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      T* const row = target + to.offset(batch, i);
      const int64_t begin = rows.start[i], end = rows.start[i + 1];
      int64_t f0 = 0;
      if constexpr (std::is_same_v<T, A>) {
        // the sums stay in registers
        constexpr int64_t COUNT = 4;
        for (; f0 + COUNT * LANES<T> <= to.features; f0 += COUNT * LANES<T>) {
          Vector<T> sums[COUNT]{};
          for (int64_t k = begin; k < end; ++k) {
            const auto term = locate(batch, rows.order[k]);
#pragma GCC unroll 4
            for (int64_t v = 0; v < COUNT; ++v) sums[v] += term.vector(f0 + v * LANES<T>);
          }
          std::memcpy(row + f0, sums, sizeof sums);
        }
      }
      A sums[BLOCK];
      for (; f0 < to.features; f0 += BLOCK) {
        const int64_t count = std::min(BLOCK, to.features - f0);
        std::fill_n(sums, count, A(0));
        for (int64_t k = begin; k < end; ++k) {
          const auto term = locate(batch, rows.order[k]);
          for (int64_t f = 0; f < count; ++f) sums[f] += term.scalar(f0 + f);
        }
        for (int64_t f = 0; f < count; ++f) row[f0 + f] = T(sums[f]);
      }
    }
  });
}

Tensor gather(const Tensor& x, const Tensor& index, const Tensor& order, const Tensor& start, int64_t dim) {
  return x.index_select(dim, index);
}

Tensor segment_sum(const Tensor& x, const Tensor& index, const Tensor& order, const Tensor& start, int64_t dim) {
  const Rows rows(index, order, start);
  const Tensor in = x.contiguous();
  const Layout from(in, dim);
  TORCH_CHECK_VALUE(from.rows == rows.count, "x has ", from.rows, " rows, not ", rows.count);
  Tensor y = allocate_rows(in, rows.groups, dim);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, x.scalar_type(), "segment_sum", [&] {
    const scalar_t* source = in.const_data_ptr<scalar_t>();
    sum_rows<scalar_t>(y, dim, rows, [&](int64_t batch, int64_t e) {
      return Term<scalar_t>{source + from.offset(batch, e)};
    });
  });
  return y;
}

Tensor product_sum(const Tensor& x, const Tensor& weight, const Tensor& a_index, const Tensor& a_order,
                   const Tensor& a_start, const Tensor& b_index, const Tensor& b_order, const Tensor& b_start,
                   at::TensorList weight_rows, int64_t dim) {
  const Rows senders(a_index, a_order, a_start), receivers(b_index, b_order, b_start);
  std::optional<Rows> weights;
  if (!weight_rows.empty()) weights.emplace(weight_rows[0], weight_rows[1], weight_rows[2]);
  const Tensor in = x.contiguous(), factor = weight.contiguous();
  const Layout from(in, dim), by(factor, dim);
  TORCH_CHECK_VALUE(from.rows == senders.groups, "x has ", from.rows, " rows, not ", senders.groups);
  TORCH_CHECK_VALUE(senders.count == receivers.count, "the numbers of rows differ");
  TORCH_CHECK_VALUE(by.rows == (weights ? weights->groups : senders.count), "the numbers of rows differ");
  TORCH_CHECK_VALUE(!weights || weights->count == senders.count, "the numbers of rows differ");
  TORCH_CHECK_VALUE(from.fits(by), "x does not fit the weight");
  TORCH_CHECK_TYPE(x.scalar_type() == weight.scalar_type(), "floating-point types differ");
  Tensor y = allocate_rows(in, receivers.groups, dim);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, x.scalar_type(), "product_sum", [&] {
    const auto *source = in.const_data_ptr<scalar_t>(), *factors = factor.const_data_ptr<scalar_t>();
    const int64_t* const factor_row = weights ? weights->group : nullptr;
    sum_rows<scalar_t>(y, dim, receivers, [&](int64_t batch, int64_t e) {
      return ProductTerm<scalar_t>{source + from.offset(batch, senders.group[e]),
                                   factors + by.offset(batch, factor_row ? factor_row[e] : e)};
    });
  });
  return y;
}

Tensor gather_product(const Tensor& x, const Tensor& y, const Tensor& a_index, const Tensor& a_order,
                      const Tensor& a_start, const Tensor& b_index, const Tensor& b_order, const Tensor& b_start,
                      int64_t dim) {
  const Rows x_rows(a_index, a_order, a_start), y_rows(b_index, b_order, b_start);
  const Tensor left = x.contiguous(), right = y.contiguous();
  const Layout a(left, dim), b(right, dim);
  TORCH_CHECK_VALUE(x_rows.count == y_rows.count, "the numbers of rows differ");
  TORCH_CHECK_VALUE(a.rows == x_rows.groups && b.rows == y_rows.groups, "x or y does not have a row for each group");
  TORCH_CHECK_VALUE(a.fits(b), "x does not fit y");
  TORCH_CHECK_TYPE(x.scalar_type() == y.scalar_type(), "floating-point types differ");
  Tensor product = allocate_rows(left, x_rows.count, dim);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, x.scalar_type(), "gather_product", [&] {
    const auto *u = left.const_data_ptr<scalar_t>(), *v = right.const_data_ptr<scalar_t>();
    auto* target = product.mutable_data_ptr<scalar_t>();
    const int64_t grain = std::max<int64_t>(1, GRAIN / std::max<int64_t>(1, a.features));
    at::parallel_for(0, a.batches * x_rows.count, grain, [&](int64_t first, int64_t last) {
      for (int64_t k = first; k < last; ++k) {
        const int64_t batch = k / x_rows.count, e = k % x_rows.count;
        const scalar_t *from_x = u + a.offset(batch, x_rows.group[e]), *from_y = v + b.offset(batch, y_rows.group[e]);
        for (int64_t f = 0; f < a.features; ++f) target[k * a.features + f] = from_x[f] * from_y[f];
      }
    });
  });
  return product;
}

using Optional = std::optional<Tensor>;

// The checked arguments of the operators of couplings.h; the tensor that an operator computes is undefined. ends: the path
// of each row, then `group`, `order` and `start` of senders and of receivers.
struct CouplingArguments {
  Rows senders, receivers;
  Tensor g, k, h, w, path;
  int64_t edges, rows, components, paths, features;

  CouplingArguments(const Tensor& g_, const Tensor& k_, const Tensor& h_, const Tensor& w_,
                    int64_t paths_, at::TensorList ends)
      : senders(ends[1], ends[2], ends[3]),
        receivers(ends[4], ends[5], ends[6]),
        path(ends[0]),
        edges(senders.count),
        paths(paths_) {
    const auto contiguous = [](const Tensor& x) { return x.defined() ? x.contiguous() : x; };
    g = contiguous(g_), k = contiguous(k_), h = contiguous(h_), w = contiguous(w_);
    TORCH_CHECK_VALUE(path.is_contiguous(), "path is a view");
    rows = path.numel();
    components = k.defined() ? k.size(2) : h.size(1);
    features = g.defined() ? g.size(2) : h.size(2);
    const int64_t* p = path.const_data_ptr<int64_t>();
    for (int64_t r = 0; r < rows; ++r) TORCH_CHECK_INDEX(p[r] >= 0 && p[r] < paths, "row ", r, " has no path");
    const auto check = [&](const char* name, const Tensor& x, at::IntArrayRef sizes) {
      if (!x.defined()) return;
      TORCH_CHECK_VALUE(x.sizes() == sizes, name, " is ", x.sizes(), ", not ", sizes);
      TORCH_CHECK_TYPE(x.scalar_type() == (k.defined() ? k : g).scalar_type(), "floating-point types differ");
    };
    TORCH_CHECK_VALUE(receivers.count == edges, "the numbers of edges differ");
    TORCH_CHECK_VALUE(components > 0 && components <= MAX_COMPONENTS, components, " components");
    check("g", g, {receivers.groups, rows, features});
    check("k", k, {edges, rows, components});
    check("h", h, {senders.groups, components, features});
    check("w", w, {edges, paths, features});
  }

  template <class T>
  Coupling<T> pointers() const {
    const auto at = [](const Tensor& x) { return x.defined() ? x.const_data_ptr<T>() : nullptr; };
    return {rows, components, paths, features, path.const_data_ptr<int64_t>(), receivers.group, senders.group,
            at(g), at(k),  at(h),    at(w)};
  }

  Tensor allocate(at::IntArrayRef sizes) const { return at::empty(sizes, (k.defined() ? k : g).options()); }
};

template <class F>
void dispatch_coupling(const CouplingArguments& in, const F& f) {
  AT_DISPATCH_FLOATING_TYPES((in.k.defined() ? in.k : in.g).scalar_type(), "coupling", [&] {
    dispatch_components(in.components, [&](auto M) { f(in.pointers<scalar_t>(), M); });
  });
}

Tensor couple_receivers(const Tensor& k, const Tensor& h, const Optional& w, int64_t paths, at::TensorList ends) {
  const CouplingArguments in({}, k, h, w.value_or(Tensor()), paths, ends);
  Tensor g = in.allocate({in.receivers.groups, in.rows, in.features});
  dispatch_coupling(in, [&]<class T>(const Coupling<T>& pointers, auto M) {
    receivers_kernel<T, M>(pointers, in.receivers, g.mutable_data_ptr<T>());
  });
  return g;
}

Tensor couple_edges(const Tensor& g, const Tensor& h, const Optional& w, int64_t paths, at::TensorList ends) {
  const CouplingArguments in(g, {}, h, w.value_or(Tensor()), paths, ends);
  Tensor k = in.allocate({in.edges, in.rows, in.components});
  dispatch_coupling(in, [&]<class T>(const Coupling<T>& pointers, auto M) {
    edges_kernel<T, M>(pointers, in.edges, k.mutable_data_ptr<T>());
  });
  return k;
}

Tensor couple_senders(const Tensor& g, const Tensor& k, const Optional& w, int64_t paths, at::TensorList ends) {
  const CouplingArguments in(g, k, {}, w.value_or(Tensor()), paths, ends);
  Tensor h = in.allocate({in.senders.groups, in.components, in.features});
  dispatch_coupling(in, [&]<class T>(const Coupling<T>& pointers, auto M) {
    senders_kernel<T, M>(pointers, in.senders, h.mutable_data_ptr<T>());
  });
  return h;
}

Tensor couple_weights(const Tensor& g, const Tensor& k, const Tensor& h, int64_t paths, at::TensorList ends) {
  const CouplingArguments in(g, k, h, {}, paths, ends);
  Tensor w = in.allocate({in.edges, in.paths, in.features});
  dispatch_coupling(in, [&]<class T>(const Coupling<T>& pointers, auto M) {
    weights_kernel<T, M>(pointers, in.edges, w.mutable_data_ptr<T>());
  });
  return w;
}

}  // namespace segments

TORCH_LIBRARY_IMPL(gfm_harness, Autograd, library) {
  library.impl("multiply_add", &fused::differentiable_multiply_add);
  library.impl("radial_filters", &fused::differentiable_radial_filters);
  library.impl("scaled_silu", &fused::differentiable_scaled_silu);
}

TORCH_LIBRARY_IMPL(gfm_harness, CPU, library) {
  library.impl("multiply_add", &fused::multiply_add);
  library.impl("radial_filters", &fused::radial_filters);
  library.impl("radial_filters_backward", &fused::radial_filters_backward);
  library.impl("sum_triple_products", &fused::sum_triple_products);
  library.impl("scaled_silu", &fused::scaled_silu);
  library.impl("group_rows", &segments::group_rows);
  library.impl("pair_edges", &segments::pair_edges);
  library.impl("gather", &segments::gather);
  library.impl("segment_sum", &segments::segment_sum);
  library.impl("product_sum", &segments::product_sum);
  library.impl("gather_product", &segments::gather_product);
  library.impl("couple_receivers", &segments::couple_receivers);
  library.impl("couple_edges", &segments::couple_edges);
  library.impl("couple_senders", &segments::couple_senders);
  library.impl("couple_weights", &segments::couple_weights);
  library.impl("triplet_sums", &segments::triplet_sums);
  library.impl("triplet_angular", &segments::triplet_angular);
  library.impl("triplet_radial", &segments::triplet_radial);
  library.impl("triplet_weight", &segments::triplet_weight);
  library.impl("triplet_messages", &segments::triplet_messages);
}
