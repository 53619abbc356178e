// Vectors of the processor's own length, as GCC and Clang know them.

#pragma once

#include <cstring>

namespace fused {

#if defined(__AVX512F__)
constexpr int BYTES = 64;
#elif defined(__AVX__)
constexpr int BYTES = 32;
#else
constexpr int BYTES = 16;
#endif

template <class T, int B>
struct Packed {
  typedef T type __attribute__((vector_size(B)));
};
template <class T>
using Vector = typename Packed<T, BYTES>::type;
template <class T>
constexpr int LANES = BYTES / sizeof(T);

template <class T>
inline Vector<T> load(const T* at) {
  Vector<T> x;
  std::memcpy(&x, at, sizeof x);
  return x;
}

template <class T>
inline void add(T* at, Vector<T> x) {
  x += load(at);
  std::memcpy(at, &x, sizeof x);
}

template <class T, int B>
inline T total(typename Packed<T, B>::type x) {
  if constexpr (B == 16) {
    T sum = x[0];
    for (int k = 1; k < int(16 / sizeof(T)); ++k) sum += x[k];
    return sum;
  } else {
    typename Packed<T, B / 2>::type half[2];
    std::memcpy(half, &x, sizeof x);
    return total<T, B / 2>(half[0] + half[1]);
  }
}

}  // namespace fused
