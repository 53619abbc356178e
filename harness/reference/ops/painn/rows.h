// The edges of each atom, as senders or receivers.

#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <vector>

namespace fused {

// The edges of an atom are order[start[atom]] .. order[start[atom + 1] - 1], in their original order.
struct EdgesByAtom {
  std::vector<int64_t> start, order;

  EdgesByAtom(const at::Tensor& end, int64_t atoms) : start(atoms + 1), order(end.numel()) {
    const int64_t* atom = end.const_data_ptr<int64_t>();
    const auto edges = int64_t(order.size());
    for (int64_t e = 0; e < edges; ++e) {
      ++start[atom[e] + 1];
    }
    for (int64_t i = 0; i < atoms; ++i) start[i + 1] += start[i];
    std::vector<int64_t> next(start.begin(), start.end() - 1);
    for (int64_t e = 0; e < edges; ++e) order[next[atom[e]]++] = e;
  }

  // Call f(first atom, end) in each thread, for ranges of atoms with about equal numbers of edges.
  template <class F>
  void parallel(const F& f) const {
    const auto atoms = int64_t(start.size()) - 1, edges = int64_t(order.size());
    const int64_t threads = edges < 64 ? 1 : at::get_num_threads();
    const auto bound = [&](int64_t k) {
      const auto position = std::lower_bound(start.begin(), start.end() - 1, edges * k / threads);
      return k == threads ? atoms : int64_t(position - start.begin());
    };
    at::parallel_for(0, threads, 1, [&](int64_t k, int64_t last) {
      for (; k < last; ++k) f(bound(k), bound(k + 1));
    });
  }
};

}  // namespace fused
