// SPDX-License-Identifier: MIT
// Dense layers: y = x W^T + b for few or many rows, with the weights packed once for the registers.
//
// A loop by hand because it is faster at the sizes of students (8 to 600 rows, 16 to 384 columns): on a Zen 5
// 1.03 to 1.5 times as fast as OpenBLAS with the same instructions. Nothing is packed in a call, rests of
// rows and columns cost little, and blocks of features (see Layout) are read and written as they lie.
#pragma once

#include "simd.hpp"

namespace mlffd {
namespace MLFFD_ISA {

// Where the rows of a matrix lie: `stride` values from row to row, `step` from one vector of columns to the
// next. A row-major matrix has a step of one vector; blocks of features of all atoms have a larger one.
struct Layout {
  size_t stride, step;
};

template <class T>
class Dense {
 public:
  Dense() = default;
  // `weight` (n_out, n_in) row-major with `row_stride` values from row to row; `bias` (n_out,) or nullptr.
  // With `transposed` the layer is x W instead: weight is then (n_in, n_out).
  Dense(
      const double *weight, const double *bias, int n_out, int n_in, int row_stride, bool transposed = false)
      : n_in_(n_in), n_out_(n_out), width_(padded<T>(n_out)), weight_(size_t(n_in) * width_), bias_(width_) {
    const size_t along_out = transposed ? 1 : row_stride, along_in = transposed ? row_stride : 1;
    for (int n = 0; n < n_out; ++n)
      for (int k = 0; k < n_in; ++k) *packed(k, n) = T(weight[n * along_out + k * along_in]);
    for (int n = 0; bias && n < n_out; ++n) bias_[n] = T(bias[n]);
  }
  int n_in() const { return n_in_; }
  int n_out() const { return n_out_; }
  int width() const { return width_; }  // n_out rounded up to whole vectors: what a row of y must hold

  // x (n_rows, n_in) with rows x_stride apart -> y (n_rows, width) with rows y_stride apart.
  void apply(const T *x, size_t x_stride, int n_rows, T *y, size_t y_stride) const {
    apply(x, Layout{x_stride, size_t(lanes)}, n_rows, y, Layout{y_stride, size_t(lanes)}, false);
  }
  // The same for matrices in blocks; with `add` the result is added to y.
  void apply(const T *x, Layout x_layout, int n_rows, T *y, Layout y_layout, bool add) const {
    const int n_vectors = width_ / lanes, n_panels = (n_vectors + panel - 1) / panel;
    for (int p = 0; p < n_panels; ++p) {
      const int first = first_vector(p, n_panels), size = first_vector(p + 1, n_panels) - first;
      const Panel here{weight_.data() + size_t(first) * lanes * n_in_,
                       bias_.data() + first * lanes, n_in_, add};
      rows_of_panel(size, here, x, x_layout, n_rows, y + first * y_layout.step, y_layout);
    }
  }

 private:
  static constexpr int lanes = Simd<T>::width;
  // columns and rows of a tile that is summed up in registers: 24 of 32, or 12 of 16
  static constexpr int panel = MLFFD_VECTOR_BYTES == 64 ? 4 : 2, tile_rows = 6;
  static constexpr int run = 32;

  struct Panel {
    const T *weight, *bias;
    int n_in;
    bool add;
  };

  // Panels differ by one vector at most, and so do the tiles of rows: no narrow rest that waits for itself.
  int first_vector(int p, int n_panels) const { return int(int64_t(width_ / lanes) * p / n_panels); }

  T *packed(int k, int n) {
    const int n_panels = (width_ / lanes + panel - 1) / panel;
    int p = 0;
    while (n >= first_vector(p + 1, n_panels) * lanes) ++p;
    const int first = first_vector(p, n_panels) * lanes;
    const int columns = first_vector(p + 1, n_panels) * lanes - first;
    return weight_.data() + size_t(first) * n_in_ + size_t(k) * columns + (n - first);
  }

  static void rows_of_panel(int size, const Panel &here, const T *x, Layout xl, int n_rows, T *y, Layout yl) {
    const int n_tiles = (n_rows + tile_rows - 1) / tile_rows;
    for (int t = 0, row = 0; t < n_tiles; ++t) {
      const int end = int(int64_t(n_rows) * (t + 1) / n_tiles);
      const T *from = x + row * xl.stride;
      T *to = y + row * yl.stride;
      if (size == 4) tile_of<panel == 4 ? 4 : 1>(end - row, here, from, xl, to, yl);
      if (size == 3) tile_of<panel == 4 ? 3 : 1>(end - row, here, from, xl, to, yl);
      if (size == 2) tile_of<2>(end - row, here, from, xl, to, yl);
      if (size == 1) tile_of<1>(end - row, here, from, xl, to, yl);
      row = end;
    }
  }

  template <int V>
  static void tile_of(int n_rows, const Panel &here, const T *x, Layout xl, T *y, Layout yl) {
    switch (n_rows) {
      case 6: return tile<V, 6>(here, x, xl, y, yl);
      case 5: return tile<V, 5>(here, x, xl, y, yl);
      case 4: return tile<V, 4>(here, x, xl, y, yl);
      case 3: return tile<V, 3>(here, x, xl, y, yl);
      case 2: return tile<V, 2>(here, x, xl, y, yl);
      case 1: return tile<V, 1>(here, x, xl, y, yl);
    }
  }

  // Summed up in runs that start from zero: rounding errors grow with the length of a run only.
  template <int V, int R>
  static void tile(const Panel &here, const T *x, Layout xl, T *y, Layout yl) {
    for (int first = 0; first < here.n_in; first += run, x += run / lanes * xl.step) {
      const int n = here.n_in - first < run ? here.n_in - first : run;
      Vector<T> sum[R][V] = {};
      add_products<V, R>(here.weight + size_t(first) * V * lanes, n, x, xl, sum);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) {
          T *to = y + r * yl.stride + v * yl.step;
          if (first == 0) sum[r][v] += load(here.bias + v * lanes);
          if (first > 0 || here.add) sum[r][v] += load(to);
          store(to, sum[r][v]);
        }
    }
  }

  template <int V, int R>
  static inline void add_products(const T *weight, int n_in, const T *x, Layout xl, Vector<T> (&sum)[R][V]) {
    for (int left = n_in; left > 0; left -= lanes, x += xl.step) {
      const int n = left < lanes ? left : lanes;
      for (int k = 0; k < n; ++k, weight += V * lanes) {
        Vector<T> w[V];
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) w[v] = load(weight + v * lanes);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const T value = x[r * xl.stride + k];
#pragma GCC unroll 8
          for (int v = 0; v < V; ++v) sum[r][v] += value * w[v];
        }
      }
    }
  }

  int n_in_ = 0, n_out_ = 0, width_ = 0;
  Array<T> weight_, bias_;
};

}  // namespace MLFFD_ISA
}  // namespace mlffd
