// Bounded features and their gradient, see ../bounded_features.py.

#pragma once

#include <ATen/Parallel.h>

#include <cmath>
#include <cstdint>

namespace fused {

// Features of atoms in planes: one of scalars, or three of the components of vectors.
struct FeatureShape {
  int64_t planes, atoms, width;
};

template <class T>
T sum_products(const FeatureShape& shape, const T* a, const T* b, int64_t atom) {
  T sum = 0;
  for (int64_t p = 0; p < shape.planes; ++p) {
    const int64_t offset = (p * shape.atoms + atom) * shape.width;
#pragma omp simd reduction(+ : sum)
    for (int64_t f = 0; f < shape.width; ++f) sum += a[offset + f] * b[offset + f];
  }
  return sum;
}

// Set y to factor_a a + factor_b b for one atom.
template <class T>
void combine(const FeatureShape& shape, T factor_a, const T* a, T factor_b, const T* b, T* y, int64_t atom) {
  for (int64_t p = 0; p < shape.planes; ++p) {
    const int64_t offset = (p * shape.atoms + atom) * shape.width;
#pragma omp simd
    for (int64_t f = 0; f < shape.width; ++f) y[offset + f] = factor_a * a[offset + f] + factor_b * b[offset + f];
  }
}

template <class T>
void bound(const FeatureShape& shape, const T* x, T* y) {
  at::parallel_for(0, shape.atoms, 256, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const T factor = 1 / std::sqrt(1 + sum_products(shape, x, x, i) / shape.width);
      combine(shape, factor, x, T(0), x, y, i);
    }
  });
}

template <class T>
void bound_backward(const FeatureShape& shape, const T* grad, const T* x, T* x_grad) {
  at::parallel_for(0, shape.atoms, 256, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const T factor = 1 / std::sqrt(1 + sum_products(shape, x, x, i) / shape.width);
      const T along_x = -factor * factor * factor * sum_products(shape, grad, x, i) / shape.width;
      combine(shape, factor, grad, along_x, x, x_grad, i);
    }
  });
}

}  // namespace fused
