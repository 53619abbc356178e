// Vectors of the length of the processor's registers, by the vector extension of GCC and Clang.

#pragma once

#include <cstring>

namespace fused {

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64;
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32;
#else
constexpr int VECTOR_BYTES = 16;
#endif

template <class T, int B>
struct VectorType {
  typedef T type __attribute__((vector_size(B)));
};
template <class T>
using Vector = typename VectorType<T, VECTOR_BYTES>::type;
template <class T>
constexpr int LANES = VECTOR_BYTES / sizeof(T);

template <class T>
inline Vector<T> load(const T* source) {
  Vector<T> x;
  std::memcpy(&x, source, sizeof x);
  return x;
}

template <class T>
inline void add_to(T* target, Vector<T> x) {
  x += load(target);
  std::memcpy(target, &x, sizeof x);
}

template <class T, int B>
inline T sum_lanes(typename VectorType<T, B>::type x) {
  if constexpr (B == 16) {
    T sum = x[0];
    for (int k = 1; k < int(16 / sizeof(T)); ++k) sum += x[k];
    return sum;
  } else {
    typename VectorType<T, B / 2>::type half[2];
    std::memcpy(half, &x, sizeof x);
    return sum_lanes<T, B / 2>(half[0] + half[1]);
  }
}

}  // namespace fused
