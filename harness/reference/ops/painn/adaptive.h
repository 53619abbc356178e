// The scales of adaptive cutoffs, see ../adaptive_scales.py.

#pragma once

#include <cmath>

#include "rows.h"

namespace fused {

constexpr int MAX_STEPS = 100;  // at the density of solids, Newton's method takes about seven

// Solve sum over c of max(1 - c s, 0)^3 + total (s^-power - 1) = 0 by Newton's method from s = 1, below the solution.
// The left side is convex, so that s rises from step to step until rounding stops it.
inline double solve_scale(const double* cubes, int64_t count, double total, double power) {
  double scale = 1;
  for (int k = 0; k < MAX_STEPS; ++k) {
    double excess = 0, slope = 0;
    for (int64_t e = 0; e < count; ++e) {
      const double rest = std::max(1 - cubes[e] * scale, 0.0), square = rest * rest;
      excess += rest * square;
      slope += cubes[e] * square;
    }
    const double inverse = std::pow(scale, -power);
    const double next = scale + (excess + total * (inverse - 1)) / (3 * slope + total * power * inverse / scale);
    if (!(next > scale * (1 + 4e-16))) return next;
    scale = next;
  }
  return scale;
}

// Set the scale of each atom, from the cubes of its edges.
template <class T>
void solve_scales(const T* cubes, const EdgesByAtom& edges, double total, double power, T* scales) {
  edges.parallel([&](int64_t first, int64_t last) {
    std::vector<double> of_atom;
    for (int64_t i = first; i < last; ++i) {
      of_atom.clear();
      for (int64_t k = edges.start[i]; k < edges.start[i + 1]; ++k) of_atom.push_back(cubes[edges.order[k]]);
      scales[i] = T(solve_scale(of_atom.data(), int64_t(of_atom.size()), total, power));
    }
  });
}

}  // namespace fused
