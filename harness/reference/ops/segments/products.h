// Products of matrices, C = A B + bias, for processors on which the library that torch calls does not use the widest
// vectors. The algorithm is that of BLIS (Van Zee, van de Geijn, ACM Trans. Math. Softw. 41, 14, 2015): blocks of A and
// B are copied into panels, and a kernel holds a tile of C in registers. The order of a sum depends on its length alone.

#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <memory>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "vectors.h"

namespace fused {

// A matrix whose element (i, k) is data[i * rows + k * columns].
template <class T>
struct Strided {
  const T* data;
  int64_t rows, columns;

  Strided at(int64_t i, int64_t k) const { return {data + i * rows + k * columns, rows, columns}; }
};

constexpr int64_t TILE_ROWS = 14, TILE_VECTORS = 2;  // 28 of 32 registers hold the tile
constexpr int64_t BLOCK_DEPTH = 192;                 // a panel of B and one of A fit into the L1 cache
constexpr int64_t BLOCK_ROWS = 10 * TILE_ROWS, BLOCK_TILES = 32;  // a block of A fits into the L2 cache
template <class T>
constexpr int64_t TILE_COLUMNS = TILE_VECTORS * LANES<T>;

// Copy a matrix [count, depth] into a panel [depth, WIDTH]; the missing elements of each row are zeros.
template <int64_t WIDTH, class T>
void fill_panel(const Strided<T>& from, int64_t count, int64_t depth, T* panel) {
  if (count < WIDTH) std::fill_n(panel, depth * WIDTH, T(0));
  if (from.rows == 1)
    for (int64_t k = 0; k < depth; ++k) std::copy_n(from.data + k * from.columns, count, panel + k * WIDTH);
  else
    for (int64_t i = 0; i < count; ++i)
      for (int64_t k = 0; k < depth; ++k) panel[k * WIDTH + i] = from.data[i * from.rows + k * from.columns];
}

// Add the product of a panel of A and one of B to the first rows and columns of a tile of C, or to a row of initial
// values.
template <class T>
void add_tile(const T* a, const T* b, int64_t depth, const T* initial, T* c, int64_t pitch, int64_t rows,
              int64_t columns) {
  using V = Vector<T>;
  V sum[TILE_ROWS][TILE_VECTORS]{};
  for (int64_t k = 0; k < depth; ++k, a += TILE_ROWS, b += TILE_COLUMNS<T>) {
    const V b0 = load(b), b1 = load(b + LANES<T>);
#pragma GCC unroll 14
    for (int i = 0; i < TILE_ROWS; ++i) {
      sum[i][0] += a[i] * b0;
      sum[i][1] += a[i] * b1;
    }
  }
  const int64_t initial_pitch = initial ? 0 : pitch;
  const T* from = initial ? initial : c;
  if (rows == TILE_ROWS && columns == TILE_COLUMNS<T>) {
#pragma GCC unroll 14
    for (int i = 0; i < TILE_ROWS; ++i) {
      sum[i][0] += load(from + i * initial_pitch);
      sum[i][1] += load(from + i * initial_pitch + LANES<T>);
      std::memcpy(c + i * pitch, sum[i], sizeof sum[i]);
    }
  } else {
    T values[TILE_ROWS * TILE_COLUMNS<T>];
    std::memcpy(values, sum, sizeof sum);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j)
        c[i * pitch + j] = from[i * initial_pitch + j] + values[i * TILE_COLUMNS<T> + j];
  }
}

// Set C, whose rows are contiguous, to A [rows, depth] times B [depth, columns] plus the bias [columns].
template <class T>
void multiply_block(const Strided<T>& a, const Strided<T>& b, const T* bias, T* c, int64_t pitch, int64_t rows,
                    int64_t columns, int64_t depth) {
  constexpr int64_t NC = TILE_COLUMNS<T>;
  const int64_t panel_depth = std::min(BLOCK_DEPTH, depth);
  const auto allocate = [&](int64_t size, int64_t width, int64_t block) {
    return std::make_unique_for_overwrite<T[]>(std::min((size + width - 1) / width * width, block) * panel_depth);
  };
  const auto a_panels = allocate(rows, TILE_ROWS, BLOCK_ROWS), b_panels = allocate(columns, NC, BLOCK_TILES * NC);
  for (int64_t j = 0; j < columns; j += BLOCK_TILES * NC) {
    const int64_t block_columns = std::min(BLOCK_TILES * NC, columns - j);
    for (int64_t k = 0; k < depth; k += BLOCK_DEPTH) {
      const int64_t length = std::min(BLOCK_DEPTH, depth - k);
      for (int64_t t = 0; t < block_columns; t += NC) {
        const Strided<T> part = b.at(k, j + t);
        fill_panel<NC>(Strided<T>{part.data, part.columns, part.rows}, std::min(NC, block_columns - t), length,
                       b_panels.get() + t * panel_depth);
      }
      for (int64_t i = 0; i < rows; i += BLOCK_ROWS) {
        const int64_t block_rows = std::min(BLOCK_ROWS, rows - i);
        for (int64_t r = 0; r < block_rows; r += TILE_ROWS)
          fill_panel<TILE_ROWS>(a.at(i + r, k), std::min(TILE_ROWS, block_rows - r), length,
                                a_panels.get() + r * panel_depth);
        for (int64_t t = 0; t < block_columns; t += NC)
          for (int64_t r = 0; r < block_rows; r += TILE_ROWS)
            add_tile(a_panels.get() + r * panel_depth, b_panels.get() + t * panel_depth, length,
                     k ? nullptr : bias + j + t, c + (i + r) * pitch + j + t, pitch,
                     std::min(TILE_ROWS, block_rows - r), std::min(NC, block_columns - t));
      }
    }
  }
}

// Set C to the product plus the bias; the threads divide the longer side of C.
template <class T>
void multiply(const Strided<T>& a, const Strided<T>& b, const T* bias, T* c, int64_t rows, int64_t columns,
              int64_t depth) {
  const bool by_rows = rows >= columns;
  const int64_t unit = by_rows ? TILE_ROWS : TILE_COLUMNS<T>, size = by_rows ? rows : columns;
  const int64_t tiles = (size + unit - 1) / unit;
  const int64_t threads = rows * columns * depth < 1 << 18 ? 1 : std::min<int64_t>(at::get_num_threads(), tiles);
  at::parallel_for(0, threads, 1, [&](int64_t thread, int64_t last) {
    for (; thread < last; ++thread) {
      const int64_t from = tiles * thread / threads * unit, to = std::min(size, tiles * (thread + 1) / threads * unit);
      if (by_rows)
        multiply_block(a.at(from, 0), b, bias, c + from * columns, columns, to - from, columns, depth);
      else
        multiply_block(a, b.at(0, from), bias + from, c + from, columns, rows, to - from, depth);
    }
  });
}

// Whether these products are faster than those of MKL, which uses vectors of 32 bytes on processors of AMD: they are
// since family 26 (Zen 5), whose units are 64 bytes wide.
inline bool has_faster_products() {
#if defined(__AVX512F__)
  unsigned version = 0, ignored = 0, maker = 0;
  if (!__get_cpuid(0, &ignored, &maker, &ignored, &ignored)) return false;
  __get_cpuid(1, &version, &ignored, &ignored, &ignored);
  constexpr unsigned AMD = 0x68747541;  // "Auth" of "AuthenticAMD"
  return maker == AMD && ((version >> 8) & 15) + ((version >> 20) & 255) >= 26;
#else
  return false;
#endif
}

}  // namespace fused
