// Edges that are each other's reverse.

#pragma once

#include <ATen/Dispatch.h>

#include <tuple>
#include <vector>

#include "rows.h"

namespace segments {

// Return the pair of each edge, where an edge and its reverse, with the opposite shift, are a pair, and the first edge of
// each pair. order and start are the edges by receiver.
std::tuple<Tensor, Tensor> pair_edges(const Tensor& receiver, const Tensor& sender, const Tensor& shift,
                                      const Tensor& order, const Tensor& start) {
  const Rows rows(receiver, order, start);
  TORCH_CHECK_VALUE(sender.sizes() == receiver.sizes() && sender.is_contiguous(), "sender does not fit receiver");
  TORCH_CHECK_VALUE(shift.sizes() == at::IntArrayRef({rows.count, 3}), "shift does not fit receiver");
  const int64_t* senders = sender.const_data_ptr<int64_t>();
  Tensor pair = at::empty({rows.count}, receiver.options());
  int64_t* pairs = pair.mutable_data_ptr<int64_t>();
  std::vector<int64_t> firsts;
  AT_DISPATCH_FLOATING_TYPES(shift.scalar_type(), "pair_edges", [&] {
    const Tensor contiguous = shift.contiguous();
    const scalar_t* shifts = contiguous.const_data_ptr<scalar_t>();
    const auto is_reverse = [&](int64_t e, int64_t f) {
      const scalar_t *a = shifts + 3 * e, *b = shifts + 3 * f;
      return senders[f] == rows.group[e] && a[0] == -b[0] && a[1] == -b[1] && a[2] == -b[2];
    };
    for (int64_t e = 0; e < rows.count; ++e) {
      int64_t k = rows.start[senders[e]];
      const int64_t end = rows.start[senders[e] + 1];
      // only edges before e have a pair already
      while (k < end && rows.order[k] < e && !is_reverse(e, rows.order[k])) ++k;
      const bool has_reverse = k < end && rows.order[k] < e;
      pairs[e] = has_reverse ? pairs[rows.order[k]] : int64_t(firsts.size());
      if (!has_reverse) firsts.push_back(e);
    }
  });
  Tensor first = at::empty({int64_t(firsts.size())}, receiver.options());
  std::copy(firsts.begin(), firsts.end(), first.mutable_data_ptr<int64_t>());
  return {pair, first};
}

}  // namespace segments
