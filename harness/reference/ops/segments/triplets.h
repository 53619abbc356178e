// Sums over pairs t of edges k -> j -> i, the incoming edge m = k -> j and the outgoing edge o = j -> i:
//
//   F(g, p, s, w, d) = sum over t, orders l, functions n, channels c of  g[o, c] p[t, l] s[m, l, n] w[l, n, c] d[m, c]
//
// The operators are the derivatives of F. The products of s and w are computed again in each, since arithmetic on
// registers is faster than to read a tensor of edges, orders and channels from memory.

#pragma once

#include <algorithm>
#include <vector>

#include "couplings.h"

namespace segments {

// The arguments that the operators have in common; one of the tensors is the result.
template <class T>
struct TripletSum {
  int64_t orders, functions, channels;
  const Rows incoming, receivers;
  const int64_t* outgoing;
  const T *g, *p, *s, *w, *d;

  int64_t vectors() const { return (channels + LANES<T> - 1) / LANES<T>; }

  // Set x[l] to the sums of s w over n for the channels from c.
  template <int L, class Count>
  void filter(int64_t m, int64_t c, Count count, Vector<T>* x) const {
    for (int64_t l = 0; l < (L ? L : orders); ++l) {
      const T *from = s + (m * orders + l) * functions, *by = w + l * functions * channels + c;
      x[l] = Vector<T>{};
      for (int64_t n = 0; n < functions; ++n) x[l] += from[n] * load(by + n * channels, count);
    }
  }

  // Set x[l] to the sums of g p over the pairs of the edge m, for the channels from c.
  template <int L, class Count>
  void receive(int64_t m, int64_t c, Count count, Vector<T>* x) const {
    std::fill_n(x, L ? L : orders, Vector<T>{});
    for (int64_t k = incoming.start[m]; k < incoming.start[m + 1]; ++k) {
      const int64_t t = incoming.order[k];
      const Vector<T> from = load(g + outgoing[t] * channels + c, count);
      for (int64_t l = 0; l < (L ? L : orders); ++l) x[l] += p[t * orders + l] * from;
    }
  }
};

// One thread adds to all outgoing edges of an atom. y: zeros.
template <class T, int L>
void triplet_sums_kernel(const TripletSum<T>& in, T* y) {
  for_each_range(in.receivers, 1, in.orders * in.channels, [&](int64_t, int64_t first, int64_t last) {
    for (int64_t j = first; j < last; ++j)
      for_each_vector<T>(in.channels, [&](int64_t c, auto count) {
        for (int64_t e = in.receivers.start[j]; e < in.receivers.start[j + 1]; ++e) {
          const int64_t m = in.receivers.order[e];
          Vector<T> x[CAPACITY<L>];
          in.template filter<L>(m, c, count, x);
          const Vector<T> message = load(in.d + m * in.channels + c, count);
          for (int64_t l = 0; l < (L ? L : in.orders); ++l) x[l] *= message;
          for (int64_t k = in.incoming.start[m]; k < in.incoming.start[m + 1]; ++k) {
            const int64_t t = in.incoming.order[k];
            T* row = y + in.outgoing[t] * in.channels + c;
            store(row, load(row, count) + contract<T, L>(in.p + t * in.orders, x, in.orders), count);
          }
        }
      });
  });
}

template <class T, int L>
void triplet_angular_kernel(const TripletSum<T>& in, T* p) {
  for_each_range(in.incoming, 1, in.orders * in.channels, [&](int64_t, int64_t first, int64_t last) {
    std::vector<Vector<T>> sent(in.vectors() * CAPACITY<L>);
    for (int64_t m = first; m < last; ++m) {
      for_each_vector<T>(in.channels, [&](int64_t c, auto count) {
        Vector<T>* x = &sent[c / LANES<T> * CAPACITY<L>];
        in.template filter<L>(m, c, count, x);
        const Vector<T> message = load(in.d + m * in.channels + c, count);
        for (int64_t l = 0; l < (L ? L : in.orders); ++l) x[l] *= message;
      });
      for (int64_t k = in.incoming.start[m]; k < in.incoming.start[m + 1]; ++k) {
        const int64_t t = in.incoming.order[k];
        const T* from = in.g + in.outgoing[t] * in.channels;
        const Vector<T>* x = sent.data();
        Vector<T> sums[CAPACITY<L>]{};
        const auto add = [&](int64_t c, auto count) {
          const Vector<T> received = load(from + c, count);
          for (int64_t l = 0; l < (L ? L : in.orders); ++l) sums[l] += received * x[l];
          x += CAPACITY<L>;
        };
        int64_t c = 0;
        for (; c + LANES<T> <= in.channels; c += LANES<T>) add(c, Whole<T>());
        if (c < in.channels) add(c, in.channels - c);
        store_lane_sums<T, L>(p + t * in.orders, sums, L ? L : in.orders);
      }
    }
  });
}

template <class T, int L>
void triplet_messages_kernel(const TripletSum<T>& in, T* d) {
  for_each_range(in.incoming, 1, in.orders * in.channels, [&](int64_t, int64_t first, int64_t last) {
    for (int64_t m = first; m < last; ++m)
      for_each_vector<T>(in.channels, [&](int64_t c, auto count) {
        Vector<T> x[CAPACITY<L>], received[CAPACITY<L>];
        in.template filter<L>(m, c, count, x);
        in.template receive<L>(m, c, count, received);
        Vector<T> sum = x[0] * received[0];
        for (int64_t l = 1; l < (L ? L : in.orders); ++l) sum += x[l] * received[l];
        store(d + m * in.channels + c, sum, count);
      });
  });
}

template <class T, int L>
void triplet_radial_kernel(const TripletSum<T>& in, T* s) {
  const int64_t size = in.orders * in.functions;
  for_each_range(in.incoming, 1, in.orders * in.channels, [&](int64_t, int64_t first, int64_t last) {
    std::vector<Vector<T>> sums(size + LANES<T>);
    for (int64_t m = first; m < last; ++m) {
      std::fill(sums.begin(), sums.end(), Vector<T>{});
      for_each_vector<T>(in.channels, [&](int64_t c, auto count) {
        Vector<T> received[CAPACITY<L>];
        in.template receive<L>(m, c, count, received);
        const Vector<T> message = load(in.d + m * in.channels + c, count);
        for (int64_t l = 0; l < (L ? L : in.orders); ++l) {
          const Vector<T> from = received[l] * message;
          for (int64_t q = l * in.functions; q < (l + 1) * in.functions; ++q)
            sums[q] += from * load(in.w + q * in.channels + c, count);
        }
      });
      store_lane_sums<T, LANES<T>>(s + m * size, sums.data(), size);
    }
  });
}

// The edges are divided into a number of parts that does not depend on the number of threads, and so are the sums.
constexpr int64_t PARTS = 32;

// parts: [PARTS, L, N, C] zeros.
template <class T, int L>
void triplet_weight_kernel(const TripletSum<T>& in, T* parts) {
  const int64_t size = in.orders * in.functions * in.channels, edges = in.incoming.groups;
  at::parallel_for(0, PARTS, 1, [&](int64_t part, int64_t last) {
    for (; part < last; ++part)
      for (int64_t m = edges * part / PARTS; m < edges * (part + 1) / PARTS; ++m)
        for_each_vector<T>(in.channels, [&](int64_t c, auto count) {
          Vector<T> received[CAPACITY<L>];
          in.template receive<L>(m, c, count, received);
          const Vector<T> message = load(in.d + m * in.channels + c, count);
          for (int64_t l = 0; l < (L ? L : in.orders); ++l) {
            const Vector<T> from = received[l] * message;
            for (int64_t q = l * in.functions; q < (l + 1) * in.functions; ++q) {
              T* to = parts + part * size + q * in.channels + c;
              store(to, load(to, count) + in.s[m * in.orders * in.functions + q] * from, count);
            }
          }
        });
  });
}

}  // namespace segments
