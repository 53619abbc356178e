// Products of features of senders with couplings and weights of edges, summed over the edges of receivers:
//
//   F(g, k, h, w) = sum over edges e, rows r, components m, features f of  g[i, r, f] k[e, r, m] h[j, m, f] w[e, p, f]
//
// where i is the receiver and j the sender of e, and p the path of row r; without w, its factors are 1. The operators are the derivatives of F with
// respect to g, k, h and w, which therefore are each other's derivatives. There are R rows, M components, P paths and C
// features. Features are processed in vectors, so that sums over rows and components stay in registers or the L1 cache.

#pragma once

#include <algorithm>
#include <bit>
#include <cstring>
#include <type_traits>
#include <vector>

#include "rows.h"
#include "vectors.h"

namespace segments {

using fused::LANES;
using fused::Vector;

// The number of features in a whole vector; a vector at the end has an int64_t.
template <class T>
using Whole = std::integral_constant<int64_t, LANES<T>>;

// Load up to LANES numbers, followed by zeros.
template <class T, class Count>
inline Vector<T> load(const T* source, Count count) {
  Vector<T> x{};
  std::memcpy(&x, source, count * sizeof(T));
  return x;
}

template <class T, class Count>
inline void store(T* target, const Vector<T>& x, Count count) {
  std::memcpy(target, &x, count * sizeof(T));
}

// The arguments that the four operators have in common; one of the tensors is the result.
template <class T>
struct Coupling {
  int64_t rows, components, paths, features;
  const int64_t *path, *receiver, *sender;
  const T *g, *k, *h, *w;

  // The weights of row r of edge e for the features from f.
  template <class Count>
  Vector<T> weight(int64_t e, int64_t r, int64_t f, Count count) const {
    return w ? load(w + (e * paths + path[r]) * features + f, count) : Vector<T>{} + T(1);
  }
};

// The number of components: a constant M, or a variable if M is 0.
constexpr int64_t MAX_COMPONENTS = 64;
template <int M>
constexpr int64_t CAPACITY = M ? std::bit_ceil(unsigned(M)) : MAX_COMPONENTS;

// Call f with the number of components as a constant, or with 0 for numbers for which there is no special kernel.
template <class F>
void dispatch_components(int64_t components, const F& f) {
  switch (components) {
    case 1: return f(std::integral_constant<int, 1>());
    case 2: return f(std::integral_constant<int, 2>());
    case 3: return f(std::integral_constant<int, 3>());
    case 4: return f(std::integral_constant<int, 4>());
    case 7: return f(std::integral_constant<int, 7>());
    case 9: return f(std::integral_constant<int, 9>());
    default: return f(std::integral_constant<int, 0>());
  }
}

// Call f(first feature, number of features) for each vector of features.
template <class T, class F>
void for_each_vector(int64_t features, const F& f) {
  int64_t at = 0;
  for (; at + LANES<T> <= features; at += LANES<T>) f(at, Whole<T>());
  if (at < features) f(at, features - at);
}

template <class T, int M, class Count>
inline void load_components(Vector<T>* x, const T* source, int64_t components, int64_t features, Count count) {
  for (int64_t m = 0; m < (M ? M : components); ++m) x[m] = load(source + m * features, count);
}

template <class T, int M>
inline Vector<T> contract(const T* k, const Vector<T>* x, int64_t components) {
  Vector<T> sum = k[0] * x[0];
  for (int64_t m = 1; m < (M ? M : components); ++m) sum += k[m] * x[m];
  return sum;
}

// Receivers with the same senders, in a row, read them from the L1 cache, as only one vector of each is read at a time.
constexpr int64_t BLOCK_RECEIVERS = 16;

template <class T, int M>
void receivers_kernel(const Coupling<T>& in, const Rows& edges, T* g) {
  const int64_t R = in.rows, C = in.features, components = M ? M : in.components;
  for_each_range(edges, 1, R * C, [&](int64_t, int64_t first, int64_t last) {
    std::vector<Vector<T>> sums(R);
    for (int64_t block = first; block < last; block += BLOCK_RECEIVERS)
      for_each_vector<T>(C, [&](int64_t f, auto count) {
        for (int64_t i = block; i < std::min(block + BLOCK_RECEIVERS, last); ++i) {
          std::fill(sums.begin(), sums.end(), Vector<T>{});
          for (int64_t n = edges.start[i]; n < edges.start[i + 1]; ++n) {
            const int64_t e = edges.order[n];
            const T* k = in.k + e * R * components;
            Vector<T> h[CAPACITY<M>];
            load_components<T, M>(h, in.h + in.sender[e] * components * C + f, components, C, count);
            for (int64_t r = 0; r < R; ++r)
              sums[r] += contract<T, M>(k + r * components, h, components) * in.weight(e, r, f, count);
          }
          for (int64_t r = 0; r < R; ++r) store(g + (i * R + r) * C + f, sums[r], count);
        }
      });
  });
}

template <class T, int M>
void senders_kernel(const Coupling<T>& in, const Rows& edges, T* h) {
  const int64_t R = in.rows, C = in.features, components = M ? M : in.components;
  for_each_range(edges, 1, R * C, [&](int64_t, int64_t first, int64_t last) {
    for (int64_t j = first; j < last; ++j)
      for_each_vector<T>(C, [&](int64_t f, auto count) {
        Vector<T> sums[CAPACITY<M>];
        std::fill_n(sums, M ? CAPACITY<M> : std::min(components + LANES<T>, MAX_COMPONENTS), Vector<T>{});
        for (int64_t n = edges.start[j]; n < edges.start[j + 1]; ++n) {
          const int64_t e = edges.order[n];
          const T *k = in.k + e * R * components, *g = in.g + in.receiver[e] * R * C + f;
          for (int64_t r = 0; r < R; ++r) {
            const Vector<T> product = load(g + r * C, count) * in.weight(e, r, f, count);
            for (int64_t m = 0; m < components; ++m) sums[m] += k[r * components + m] * product;
          }
        }
        for (int64_t m = 0; m < components; ++m) store(h + (j * components + m) * C + f, sums[m], count);
      });
  });
}

// Set the numbers at target to the sums over the lanes of each of as many vectors, of which up to N are added at a time;
// vectors up to the next multiple of N are read.
template <class T, int M>
inline void store_lane_sums(T* target, const Vector<T>* x, int64_t components) {
  constexpr int N = M ? std::min<int>(std::bit_ceil(unsigned(M)), LANES<T>) : LANES<T>;
  for (int64_t m = 0; m < components; m += N) {
    const Vector<T> sums = fused::sum_lanes_of<T, N>(x + m);
    std::memcpy(target + m, &sums, std::min<int64_t>(N, components - m) * sizeof(T));
  }
}

template <class F>
void for_each_chunk_of_edges(int64_t edges, int64_t work, const F& f) {
  at::parallel_for(0, edges, std::max<int64_t>(1, GRAIN / std::max<int64_t>(1, work)), f);
}

template <class T, int M>
void edges_kernel(const Coupling<T>& in, int64_t edges, T* k) {
  const int64_t R = in.rows, C = in.features, components = M ? M : in.components;
  for_each_chunk_of_edges(edges, R * C, [&](int64_t first, int64_t last) {
    for (int64_t e = first; e < last; ++e) {
      const T *g = in.g + in.receiver[e] * R * C, *h = in.h + in.sender[e] * components * C;
      for (int64_t r = 0; r < R; ++r) {
        Vector<T> sums[CAPACITY<M>];
        std::fill_n(sums, M ? CAPACITY<M> : std::min(components + LANES<T>, MAX_COMPONENTS), Vector<T>{});
        for_each_vector<T>(C, [&](int64_t f, auto count) {
          const Vector<T> product = load(g + r * C + f, count) * in.weight(e, r, f, count);
          for (int64_t m = 0; m < components; ++m) sums[m] += product * load(h + m * C + f, count);
        });
        store_lane_sums<T, M>(k + (e * R + r) * components, sums, components);
      }
    }
  });
}

template <class T, int M>
void weights_kernel(const Coupling<T>& in, int64_t edges, T* w) {
  const int64_t R = in.rows, C = in.features, components = M ? M : in.components;
  for_each_chunk_of_edges(edges, R * C, [&](int64_t begin, int64_t last) {
    std::vector<Vector<T>> sums(in.paths);
    for (int64_t e = begin; e < last; ++e)
      for_each_vector<T>(C, [&](int64_t f, auto count) {
        std::fill(sums.begin(), sums.end(), Vector<T>{});
        const T *k = in.k + e * R * components, *g = in.g + in.receiver[e] * R * C + f;
        Vector<T> h[CAPACITY<M>];
        load_components<T, M>(h, in.h + in.sender[e] * components * C + f, components, C, count);
        for (int64_t r = 0; r < R; ++r)
          sums[in.path[r]] += contract<T, M>(k + r * components, h, components) * load(g + r * C, count);
        for (int64_t p = 0; p < in.paths; ++p) store(w + (e * in.paths + p) * C + f, sums[p], count);
      });
  });
}

}  // namespace segments
