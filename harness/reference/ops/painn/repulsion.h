// The repulsion of pairs and the switch of learnt interactions, see ../pair_repulsion.py.

#pragma once

#include <ATen/Parallel.h>

#include <cmath>
#include <cstdint>

namespace fused {

// A function of a distance with its first two derivatives.
struct Jet {
  double value[3];

  Jet operator*(const Jet& other) const {
    const double *a = value, *b = other.value;
    return {{a[0] * b[0], a[1] * b[0] + a[0] * b[1], a[2] * b[0] + 2 * a[1] * b[1] + a[0] * b[2]}};
  }
};

// Return max(1 - x^3, 0)^3.
inline Jet tricube(const Jet& x) {
  const Jet cube = x * x * x;
  if (cube.value[0] >= 1) return {};
  const Jet rest{{1 - cube.value[0], -cube.value[1], -cube.value[2]}};
  return rest * rest * rest;
}

// radius: the sum of the covalent radii. core, end: in units of it. strength: the energy of the bare nuclei times r.
// decay: the inverse screening length.
struct PairRepulsion {
  double radius, strength, decay, core, end;

  Jet energy(double r, at::ArrayRef<double> amplitudes, at::ArrayRef<double> decays) const {
    Jet screening{};
    for (size_t k = 0; k < decays.size(); ++k) {
      const double rate = decays[k] * decay;
      double term = amplitudes[k] * std::exp(-rate * r);
      for (double& derivative : screening.value) derivative += term, term *= -rate;
    }
    const double coulomb = strength / r;
    return Jet{{coulomb, -coulomb / r, 2 * coulomb / (r * r)}} * screening *
           tricube({{r / (end * radius), 1 / (end * radius), 0}});
  }

  Jet switch_on(double r) const {
    const double width = (end - core) * radius;
    return tricube({{(end * radius - r) / width, -1 / width, 0}});
  }
};

}  // namespace fused
