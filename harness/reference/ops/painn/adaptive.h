// The scales of adaptive cutoffs, see ../adaptive_scales.py.

#pragma once

#include "rows.h"
#include "../segments/vectors.h"

namespace fused {

constexpr int MAX_STEPS = 100;  // at the density of solids, Newton's method takes about seven
constexpr double LAST_STEP = 1e-9;  // relative; each step squares the error

// Solve sum over c of max(1 - c s, 0)^3 + total (s^-power - 1) = 0 by Newton's method from s = 1, below the solution.
// The left side is convex, so that s rises from step to step.
inline double solve_scale(const std::vector<double>& cubes, double total, int64_t power) {
  double scale = 1;
  for (int k = 0; k < MAX_STEPS; ++k) {
    double excess = 0, slope = 0;
#pragma omp simd reduction(+ : excess, slope)
    for (size_t e = 0; e < cubes.size(); ++e) {
      const double rest = std::max(1 - cubes[e] * scale, 0.0), square = rest * rest;
      excess += rest * square;
      slope += cubes[e] * square;
    }
    const double reciprocal = 1 / scale;
    double inverse = 1;  // s^-power
    for (int64_t p = 0; p < power; ++p) inverse *= reciprocal;
    const double step = (excess + total * (inverse - 1)) / (3 * slope + total * power * inverse * reciprocal);
    scale += step;
    if (!(step > LAST_STEP * scale)) break;
  }
  return scale;
}

// Set the scale of each atom, from the cubes of its edges.
template <class T>
void solve_scales(const T* cubes, const EdgesByAtom& edges, double total, int64_t power, T* scales) {
  edges.parallel([&](int64_t first, int64_t last) {
    std::vector<double> of_atom;
    for (int64_t i = first; i < last; ++i) {
      of_atom.clear();
      for (int64_t k = edges.start[i]; k < edges.start[i + 1]; ++k) of_atom.push_back(cubes[edges.order[k]]);
      while (of_atom.size() % LANES<double>) of_atom.push_back(1);  // edges at the cutoff, which change nothing
      scales[i] = T(solve_scale(of_atom, total, power));
    }
  });
}

}  // namespace fused
