// PaiNN's messages (eqs. 7 and 8 of arXiv 2102.03150) from senders to receivers, and their derivatives, for CPUs.
//
//   s_i = sum_j W_s phi_s_j        v_ia = sum_j W_r phi_r_j u_a + W_v phi_v_j v_ja        W = radial weight
//
// n atoms, e edges, width F, C columns of radial. phi [n, P F] and weight [C, P F] hold P = 3 parts (s, r, v), or two
// where there is no v [3, n, F]. No tensor of e rows and F columns exists: W lives in vector registers and is computed
// anew where it is needed. Each number is summed up by one thread in an order that the graph alone decides.

#include <ATen/Dispatch.h>
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <tuple>
#include <vector>

namespace {

using at::Tensor;
using Optional = std::optional<Tensor>;

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

// The edges of each atom, at order[start[atom]] .. order[start[atom + 1] - 1], in the order in which they were given.
struct Rows {
  std::vector<int64_t> start, order;

  Rows(const Tensor& end, int64_t atoms) : start(atoms + 1), order(end.numel()) {
    const int64_t* of = end.const_data_ptr<int64_t>();
    const auto edges = int64_t(order.size());
    for (int64_t e = 0; e < edges; ++e) {
      TORCH_CHECK_INDEX(of[e] >= 0 && of[e] < atoms, "edge ", e, " ends at atom ", of[e], " of ", atoms);
      ++start[of[e] + 1];
    }
    for (int64_t i = 0; i < atoms; ++i) start[i + 1] += start[i];
    std::vector<int64_t> next(start.begin(), start.end() - 1);
    for (int64_t e = 0; e < edges; ++e) order[next[of[e]]++] = e;
  }

  // f(first, last) over ranges of atoms, one a thread, that have about as many edges each.
  template <class F>
  void parallel(const F& f) const {
    const auto atoms = int64_t(start.size()) - 1, edges = int64_t(order.size());
    const int64_t threads = edges < 64 ? 1 : at::get_num_threads();
    const auto bound = [&](int64_t k) {
      const auto at = std::lower_bound(start.begin(), start.end() - 1, edges * k / threads);
      return k == threads ? atoms : int64_t(at - start.begin());
    };
    at::parallel_for(0, threads, 1, [&](int64_t k, int64_t last) {
      for (; k < last; ++k) f(bound(k), bound(k + 1));
    });
  }
};

// Pointers into what the kernels read; vectors of features are counted by t, the last one overlapping the one before.
template <class T>
struct Inputs {
  int64_t atoms, width, parts, vectors, pitch;
  const T *phi, *v, *radial, *unit, *weight;
  const int64_t *receiver, *sender;

  int64_t at(int64_t t) const { return std::min(t * LANES<T>, width - LANES<T>); }
  const T* phi_of(int64_t j, int64_t t) const { return phi + j * parts * width + at(t); }
  const T* v_of(int64_t a, int64_t j, int64_t t) const { return v + (a * atoms + j) * width + at(t); }
};

constexpr int64_t CHUNK = 64;         // atoms that share a block of weights
constexpr int64_t BLOCK_BYTES = 16384;  // of weights, to stay in the nearest cache

template <class T>
int64_t block_of(int64_t parts, int64_t columns) {
  return std::max<int64_t>(1, BLOCK_BYTES / (parts * columns * BYTES));
}

// f(atoms first .. last, vectors first .. last)
template <class F>
void blocks(int64_t from, int64_t to, int64_t vectors, int64_t block, const F& f) {
  for (int64_t i = from; i < to; i += CHUNK)
    for (int64_t t = 0; t < vectors; t += block) f(i, std::min(i + CHUNK, to), t, std::min(t + block, vectors));
}

template <class T, int C, bool WITH_V>
void messages_kernel(const Inputs<T>& in, const Rows& rows, T* s, T* v) {
  using V = Vector<T>;
  constexpr int P = WITH_V ? 3 : 2;
  const int64_t F = in.width;
  const auto work = [&](int64_t first, int64_t last, int64_t t0, int64_t t1) {
    for (int64_t i = first; i < last; ++i) {
      for (int64_t t = t0; t < t1; ++t) {
        const V* w = reinterpret_cast<const V*>(in.weight) + t * P * C;
        V to_s{}, to_x{}, to_y{}, to_z{};
        for (int64_t k = rows.start[i]; k < rows.start[i + 1]; ++k) {
          const int64_t e = rows.order[k], j = in.sender[e];
          const T *r = in.radial + e * in.pitch, *u = in.unit + 3 * e, *phi = in.phi_of(j, t);
          V w_s{}, w_r{}, w_v{};
#pragma GCC unroll 32
          for (int c = 0; c < C; ++c) {
            w_s += r[c] * w[c];
            w_r += r[c] * w[C + c];
            if constexpr (WITH_V) w_v += r[c] * w[2 * C + c];
          }
          to_s += w_s * load(phi);
          w_r *= load(phi + F);
          to_x += w_r * u[0];
          to_y += w_r * u[1];
          to_z += w_r * u[2];
          if constexpr (WITH_V) {
            w_v *= load(phi + 2 * F);
            to_x += w_v * load(in.v_of(0, j, t));
            to_y += w_v * load(in.v_of(1, j, t));
            to_z += w_v * load(in.v_of(2, j, t));
          }
        }
        const int64_t at = i * F + in.at(t), all = in.atoms * F;
        add(s + at, to_s);
        add(v + at, to_x);
        add(v + at + all, to_y);
        add(v + at + 2 * all, to_z);
      }
    }
  };
  rows.parallel([&](int64_t first, int64_t last) {
    blocks(first, last, in.vectors, block_of<T>(P, C), work);
  });
}

template <class T>
struct Gradients {
  const T *to_s, *to_v;          // of what the messages go into
  T *phi, *v, *radial, *unit;  // of what they are made of
};

template <class T, int C, bool WITH_V, bool NODES>
void backward_kernel(const Inputs<T>& in, const Rows& rows, const Gradients<T>& g) {
  using V = Vector<T>;
  constexpr int P = WITH_V ? 3 : 2, ROW = WITH_V ? 5 : 2;
  const int64_t F = in.width, all = in.atoms * F;
  const auto work = [&](V* sums, int64_t j, int64_t t0, int64_t t1) {
    if (NODES) std::fill_n(sums, (t1 - t0) * ROW, V{});
    for (int64_t k = rows.start[j]; k < rows.start[j + 1]; ++k) {
      const int64_t e = rows.order[k], i = in.receiver[e];
      const T *r = in.radial + e * in.pitch, *u = in.unit + 3 * e;
      V by_radial[C]{}, by_unit[3]{};
      for (int64_t t = t0; t < t1; ++t) {
        const V* w = reinterpret_cast<const V*>(in.weight) + t * P * C;
        const T* phi = in.phi_of(j, t);
        const int64_t at = i * F + in.at(t);
        V w_s{}, w_r{}, w_v{};
#pragma GCC unroll 32
        for (int c = 0; c < C; ++c) {
          if (NODES) w_s += r[c] * w[c];
          w_r += r[c] * w[C + c];
          if constexpr (WITH_V && NODES) w_v += r[c] * w[2 * C + c];
        }
        const V of_s = load(g.to_s + at);
        const V x = load(g.to_v + at), y = load(g.to_v + at + all), z = load(g.to_v + at + 2 * all);
        const V phi_r = load(phi + F), along = x * u[0] + y * u[1] + z * u[2];
        const V through = w_r * phi_r, of_w_s = of_s * load(phi), of_w_r = along * phi_r;
        by_unit[0] += through * x;
        by_unit[1] += through * y;
        by_unit[2] += through * z;
        if (NODES) {
          V* sum = sums + (t - t0) * ROW;
          sum[0] += w_s * of_s;
          sum[1] += w_r * along;
          if constexpr (WITH_V) {
            sum[2] += w_v * x;
            sum[3] += w_v * y;
            sum[4] += w_v * z;
          }
        }
        V of_w_v{};
        if constexpr (WITH_V)
          of_w_v = load(phi + 2 * F) *
                   (x * load(in.v_of(0, j, t)) + y * load(in.v_of(1, j, t)) + z * load(in.v_of(2, j, t)));
#pragma GCC unroll 32
        for (int c = 0; c < C; ++c) {
          by_radial[c] += of_w_s * w[c] + of_w_r * w[C + c];
          if constexpr (WITH_V) by_radial[c] += of_w_v * w[2 * C + c];
        }
      }
      for (int c = 0; c < C; ++c) g.radial[e * in.pitch + c] += total<T, BYTES>(by_radial[c]);
      for (int a = 0; a < 3; ++a) g.unit[3 * e + a] += total<T, BYTES>(by_unit[a]);
    }
    if (!NODES) return;
    for (int64_t t = t0; t < t1; ++t) {
      const V* sum = sums + (t - t0) * ROW;
      T* phi = g.phi + j * P * F + in.at(t);
      add(phi, sum[0]);
      add(phi + F, sum[1]);
      if constexpr (WITH_V) {
        const V phi_v = load(in.phi_of(j, t) + 2 * F);
        V of_phi{};
        for (int a = 0; a < 3; ++a) {
          of_phi += sum[2 + a] * load(in.v_of(a, j, t));
          add(g.v + a * all + j * F + in.at(t), sum[2 + a] * phi_v);
        }
        add(phi + 2 * F, of_phi);
      }
    }
  };
  const int64_t block = 2 * block_of<T>(P, C);
  rows.parallel([&](int64_t first, int64_t last) {
    std::vector<V> sums(NODES ? block * ROW : 0);
    blocks(first, last, in.vectors, block, [&](int64_t from, int64_t to, int64_t t0, int64_t t1) {
      for (int64_t j = from; j < to; ++j) work(sums.data(), j, t0, t1);
    });
  });
}

// by_weight: packed like the weights. Threads share out the features, each of which takes all edges in their order.
template <class T, int C, bool WITH_V>
void filter_kernel(const Inputs<T>& in, const Gradients<T>& g, int64_t edges, T* by_weight) {
  using V = Vector<T>;
  constexpr int P = WITH_V ? 3 : 2;
  const int64_t F = in.width, all = in.atoms * F;
  at::parallel_for(0, in.vectors, 1, [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t) {
      V sum[P * C]{};
      for (int64_t e = 0; e < edges; ++e) {
        const int64_t j = in.sender[e], at = in.receiver[e] * F + in.at(t);
        const T *r = in.radial + e * in.pitch, *u = in.unit + 3 * e, *phi = in.phi_of(j, t);
        const V x = load(g.to_v + at), y = load(g.to_v + at + all), z = load(g.to_v + at + 2 * all);
        const V of_s = load(g.to_s + at) * load(phi);
        const V of_r = (x * u[0] + y * u[1] + z * u[2]) * load(phi + F);
        V of_v{};
        if constexpr (WITH_V)
          of_v = load(phi + 2 * F) *
                 (x * load(in.v_of(0, j, t)) + y * load(in.v_of(1, j, t)) + z * load(in.v_of(2, j, t)));
#pragma GCC unroll 32
        for (int c = 0; c < C; ++c) {
          sum[c] += r[c] * of_s;
          sum[C + c] += r[c] * of_r;
          if constexpr (WITH_V) sum[2 * C + c] += r[c] * of_v;
        }
      }
      std::memcpy(by_weight + t * P * C * LANES<T>, sum, sizeof sum);
    }
  });
}

// How many columns the kernels are made for. Others are filled up with zeros, more than the last come in groups.
template <class F>
void with_columns(int64_t columns, const F& f) {
  if (columns <= 4) return f(std::integral_constant<int, 4>());
  if (columns <= 7) return f(std::integral_constant<int, 7>());
  if (columns <= 9) return f(std::integral_constant<int, 9>());
  if (columns <= 13) return f(std::integral_constant<int, 13>());
  if (columns <= 17) return f(std::integral_constant<int, 17>());
  return f(std::integral_constant<int, 21>());
}
constexpr int64_t MOST_COLUMNS = 21;

// Rows of parts x width, each part filled up with zeros to at least one vector.
Tensor widened(const Tensor& x, int64_t parts, int64_t width, int64_t to) {
  if (to == width) return x.contiguous();
  auto sizes = x.sizes().vec();
  sizes.back() = parts * to;
  return at::constant_pad_nd(x.unflatten(-1, {parts, width}), {0, to - width}).view(sizes);
}

Tensor narrowed(const Tensor& x, int64_t parts, int64_t width, int64_t from) {
  if (from == width) return x;
  return x.unflatten(-1, {parts, from}).narrow(-1, 0, width).flatten(-2).contiguous();
}

struct Given {
  const Tensor &phi, &radial, &unit, &receiver, &sender;
  const Optional& v;
};

// Tensors as the kernels want them, in one type, of one width.
template <class T>
struct Prepared {
  int64_t atoms, parts, width, wide, vectors, edges, columns;
  Tensor phi, v, radial, unit, receiver, sender;

  explicit Prepared(const Given& given)
      : atoms(given.phi.size(0)),
        parts(given.v ? 3 : 2),
        width(given.phi.size(1) / parts),
        wide(std::max<int64_t>(width, LANES<T>)),
        vectors((wide + LANES<T> - 1) / LANES<T>),
        edges(given.radial.size(0)),
        columns(given.radial.size(1)) {
    TORCH_CHECK_VALUE(given.phi.size(1) == parts * width && width > 0, "phi has ", given.phi.size(1), " columns");
    TORCH_CHECK_VALUE(!given.v || given.v->sizes() == at::IntArrayRef({3, atoms, width}), "v fits no phi");
    TORCH_CHECK_VALUE(given.unit.sizes() == at::IntArrayRef({edges, 3}), "unit is not [e, 3]");
    TORCH_CHECK_VALUE(given.receiver.numel() == edges && given.sender.numel() == edges, "edges do not match");
    for (const auto& x : {given.radial, given.unit, given.v ? *given.v : given.phi})
      TORCH_CHECK_TYPE(x.scalar_type() == given.phi.scalar_type(), "floating-point types differ");
    phi = widened(given.phi, parts, width, wide);
    if (given.v) v = widened(*given.v, 1, width, wide);
    radial = given.radial.contiguous();
    unit = given.unit.contiguous();
    receiver = given.receiver.contiguous();
    sender = given.sender.contiguous();
  }

  const T* pointer(const Tensor& x) const { return x.defined() ? x.const_data_ptr<T>() : nullptr; }

  Tensor zeros(at::IntArrayRef sizes) const { return at::zeros(sizes, phi.options()); }

  Tensor widened_gradient(const Tensor& x) const {
    TORCH_CHECK_VALUE(x.size(-1) == width && x.size(-2) == atoms, "gradients fit no phi");
    TORCH_CHECK_TYPE(x.scalar_type() == phi.scalar_type(), "floating-point types differ");
    return widened(x, 1, width, wide);
  }

  // weight [count, P wide] -> [vectors, P, C, lanes]; 0 where the last vector repeats lanes of the one before.
  Tensor pack(const Tensor& weight, int64_t C) const {
    Tensor packed = zeros({vectors, parts, C, LANES<T>});
    T* to = packed.mutable_data_ptr<T>();
    const T* from = weight.const_data_ptr<T>();
    for (int64_t t = 0; t < vectors; ++t)
      for (int64_t p = 0; p < parts; ++p)
        for (int64_t c = 0; c < weight.size(0); ++c)
          for (int64_t l = 0; l < LANES<T>; ++l) {
            const int64_t f = std::min(t * LANES<T>, wide - LANES<T>) + l;
            if (f >= t * LANES<T>) to[((t * parts + p) * C + c) * LANES<T> + l] = from[(c * parts + p) * wide + f];
          }
    return packed;
  }

  Tensor unpack(const Tensor& packed, int64_t count) const {
    const int64_t C = packed.size(2);
    Tensor weight = zeros({count, parts * wide});
    T* to = weight.mutable_data_ptr<T>();
    const T* from = packed.const_data_ptr<T>();
    for (int64_t t = 0; t < vectors; ++t)
      for (int64_t p = 0; p < parts; ++p)
        for (int64_t c = 0; c < count; ++c)
          for (int64_t l = 0; l < LANES<T>; ++l) {
            const int64_t f = std::min(t * LANES<T>, wide - LANES<T>) + l;
            to[(c * parts + p) * wide + f] = from[((t * parts + p) * C + c) * LANES<T> + l];
          }
    return weight;
  }

  // f(C, inputs, first column, count) for each group of columns; weight is packed where it is given.
  template <class F>
  void each_group(const Tensor* weight, const F& f) const {
    if (weight) TORCH_CHECK_VALUE(weight->sizes() == at::IntArrayRef({columns, parts * width}), "weight fits no phi");
    for (int64_t first = 0; first < columns; first += MOST_COLUMNS) {
      const int64_t count = std::min(MOST_COLUMNS, columns - first);
      with_columns(count, [&](auto C) {
        Tensor group = radial, packed;
        if (columns != C) group = at::constant_pad_nd(radial.narrow(1, first, count), {0, C - count});
        if (weight) packed = pack(widened(weight->narrow(0, first, count), parts, width, wide), C);
        f(C,
          Inputs<T>{atoms, wide, parts, vectors, C, pointer(phi), pointer(v), pointer(group), pointer(unit),
                    pointer(packed), receiver.const_data_ptr<int64_t>(), sender.const_data_ptr<int64_t>()},
          first, count);
      });
    }
  }
};

std::tuple<Tensor, Tensor> messages(const Tensor& phi, const Optional& v, const Tensor& radial, const Tensor& weight,
                                    const Tensor& unit, const Tensor& receiver, const Tensor& sender) {
  std::tuple<Tensor, Tensor> result;
  AT_DISPATCH_FLOATING_TYPES(phi.scalar_type(), "messages", [&] {
    const Prepared<scalar_t> in({phi, radial, unit, receiver, sender, v});
    const Rows rows(in.receiver, in.atoms);
    const Rows checked(in.sender, in.atoms);
    Tensor s = in.zeros({in.atoms, in.wide}), to_v = in.zeros({3, in.atoms, in.wide});
    auto *s_at = s.mutable_data_ptr<scalar_t>(), *v_at = to_v.mutable_data_ptr<scalar_t>();
    in.each_group(&weight, [&](auto C, const Inputs<scalar_t>& inputs, int64_t, int64_t) {
      if (v)
        messages_kernel<scalar_t, C, true>(inputs, rows, s_at, v_at);
      else
        messages_kernel<scalar_t, C, false>(inputs, rows, s_at, v_at);
    });
    result = {narrowed(s, 1, in.width, in.wide), narrowed(to_v, 1, in.width, in.wide)};
  });
  return result;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> messages_backward(
    const Tensor& to_s, const Tensor& to_v, const Tensor& phi, const Optional& v, const Tensor& radial,
    const Tensor& weight, const Tensor& unit, const Tensor& receiver, const Tensor& sender, bool nodes) {
  std::tuple<Tensor, Tensor, Tensor, Tensor> result;
  AT_DISPATCH_FLOATING_TYPES(phi.scalar_type(), "messages_backward", [&] {
    using T = scalar_t;
    const Prepared<T> in({phi, radial, unit, receiver, sender, v});
    const Rows rows(in.sender, in.atoms);
    const Rows checked(in.receiver, in.atoms);
    const Tensor of_s = in.widened_gradient(to_s), of_v = in.widened_gradient(to_v);
    const bool of_nodes_v = nodes && v;
    Tensor by_phi = nodes ? in.zeros({in.atoms, in.parts * in.wide}) : in.zeros({0});
    Tensor by_v = of_nodes_v ? in.zeros({3, in.atoms, in.wide}) : in.zeros({0});
    Tensor by_radial = in.zeros({in.edges, in.columns}), by_unit = in.zeros({in.edges, 3});
    in.each_group(&weight, [&](auto C, const Inputs<T>& inputs, int64_t first, int64_t count) {
      Tensor group = in.columns == C ? by_radial : in.zeros({in.edges, C});
      const Gradients<T> g{of_s.const_data_ptr<T>(),        of_v.const_data_ptr<T>(),
                           by_phi.mutable_data_ptr<T>(),    by_v.mutable_data_ptr<T>(),
                           group.mutable_data_ptr<T>(),     by_unit.mutable_data_ptr<T>()};
      if (v && nodes)
        backward_kernel<T, C, true, true>(inputs, rows, g);
      else if (v)
        backward_kernel<T, C, true, false>(inputs, rows, g);
      else if (nodes)
        backward_kernel<T, C, false, true>(inputs, rows, g);
      else
        backward_kernel<T, C, false, false>(inputs, rows, g);
      if (in.columns != C) by_radial.narrow(1, first, count).copy_(group.narrow(1, 0, count));
    });
    if (nodes) by_phi = narrowed(by_phi, in.parts, in.width, in.wide);
    if (of_nodes_v) by_v = narrowed(by_v, 1, in.width, in.wide);
    result = {by_phi, by_v, by_radial, by_unit};
  });
  return result;
}

Tensor filter_backward(const Tensor& to_s, const Tensor& to_v, const Tensor& phi, const Optional& v,
                       const Tensor& radial, const Tensor& unit, const Tensor& receiver, const Tensor& sender) {
  Tensor result;
  AT_DISPATCH_FLOATING_TYPES(phi.scalar_type(), "filter_backward", [&] {
    using T = scalar_t;
    const Prepared<T> in({phi, radial, unit, receiver, sender, v});
    const Rows checked_ends(in.receiver, in.atoms), checked_starts(in.sender, in.atoms);
    const Tensor of_s = in.widened_gradient(to_s), of_v = in.widened_gradient(to_v);
    const Gradients<T> g{of_s.const_data_ptr<T>(), of_v.const_data_ptr<T>(), nullptr, nullptr, nullptr, nullptr};
    std::vector<Tensor> groups;
    in.each_group(nullptr, [&](auto C, const Inputs<T>& inputs, int64_t, int64_t count) {
      Tensor packed = in.zeros({in.vectors, in.parts, int64_t(C), LANES<T>});
      if (v)
        filter_kernel<T, C, true>(inputs, g, in.edges, packed.mutable_data_ptr<T>());
      else
        filter_kernel<T, C, false>(inputs, g, in.edges, packed.mutable_data_ptr<T>());
      groups.push_back(in.unpack(packed, count));
    });
    result = narrowed(at::cat(groups), in.parts, in.width, in.wide);
  });
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(gfm_harness, CPU, library) {
  library.impl("messages", &messages);
  library.impl("messages_backward", &messages_backward);
  library.impl("filter_backward", &filter_backward);
}
