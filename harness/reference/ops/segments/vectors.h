// Vectors of the length of the processor's registers, by the vector extension of GCC and Clang.

#pragma once

#include <cstring>
#include <utility>

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

#if __has_builtin(__builtin_shufflevector)

// From two vectors of which lane q has a part of the sum of column q % S, return the same of 2 S columns: those of a, then
// those of b. Each lane of the result is the sum of two.
template <class T, int S, int... Q>
inline Vector<T> join_columns(Vector<T> a, Vector<T> b, std::integer_sequence<int, Q...>) {
  constexpr auto source = [](int q) { return q % (2 * S) < S ? q : LANES<T> + q - S; };
  return __builtin_shufflevector(a, b, source(Q)...) + __builtin_shufflevector(a, b, source(Q) + S...);
}

// Return a vector of which lane q has a part of the sum over the lanes of x[q % N]; N is a power of two.
template <class T, int N>
inline Vector<T> add_columns(const Vector<T>* x) {
  if constexpr (N == 1)
    return *x;
  else
    return join_columns<T, N / 2>(add_columns<T, N / 2>(x), add_columns<T, N / 2>(x + N / 2),
                                  std::make_integer_sequence<int, LANES<T>>());
}

// Add up the lanes whose numbers differ by a multiple of N, in pairs at the distance S and less.
template <class T, int N, int S, int... Q>
inline Vector<T> fold(Vector<T> x, std::integer_sequence<int, Q...> lanes) {
  if constexpr (S < N)
    return x;
  else
    return fold<T, N, S / 2>(x + __builtin_shufflevector(x, x, (Q + S) % LANES<T>...), lanes);
}

// Return a vector whose first N lanes are the sums over the lanes of each of N vectors; N is a power of two up to LANES.
template <class T, int N>
inline Vector<T> sum_lanes_of(const Vector<T>* x) {
  return fold<T, N, LANES<T> / 2>(add_columns<T, N>(x), std::make_integer_sequence<int, LANES<T>>());
}

#else

template <class T, int N>
inline Vector<T> sum_lanes_of(const Vector<T>* x) {
  Vector<T> sums{};
  for (int k = 0; k < N; ++k) sums[k] = sum_lanes<T, VECTOR_BYTES>(x[k]);
  return sums;
}

#endif

}  // namespace fused
