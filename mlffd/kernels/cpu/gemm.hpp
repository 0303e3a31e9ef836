// SPDX-License-Identifier: MIT
// Dense layers: y = x W^T + b for few or many rows, with the weights packed once for the registers.
#pragma once

#include "simd.hpp"

namespace mlffd {
namespace MLFFD_ISA {

template <class T>
class Dense {
 public:
  Dense() = default;
  // `weight` (n_out, n_in) row-major with `row_stride` values from row to row; `bias` (n_out,) or nullptr.
  // With `transposed` the layer is x W instead: weight is then (n_in, n_out).
  Dense(const double *weight, const double *bias, int n_out, int n_in, int row_stride, bool transposed = false)
      : n_in_(n_in), n_out_(n_out), width_(padded<T>(n_out)), weight_(size_t(n_in) * width_), bias_(width_) {
    for (int k = 0; k < n_in; ++k)
      for (int n = 0; n < n_out; ++n)
        weight_[size_t(k) * width_ + n] =
            T(transposed ? weight[size_t(k) * row_stride + n] : weight[size_t(n) * row_stride + k]);
    for (int n = 0; bias && n < n_out; ++n) bias_[n] = T(bias[n]);
  }
  int n_in() const { return n_in_; }
  int n_out() const { return n_out_; }
  int width() const { return width_; }  // n_out rounded up to whole vectors: what a row of y must hold

  // x (n_rows, n_in) with rows x_stride apart -> y (n_rows, width) with rows y_stride apart.
  void apply(const T *x, size_t x_stride, int n_rows, T *y, size_t y_stride) const {
    for (int row = 0; row < n_rows; ++row)
      for (int n = 0; n < width_; n += Simd<T>::width) {
        Vector<T> sum = load(bias_.data() + n);
        for (int k = 0; k < n_in_; ++k)
          sum += x[row * x_stride + k] * load(weight_.data() + size_t(k) * width_ + n);
        store(y + row * y_stride + n, sum);
      }
  }

 private:
  int n_in_ = 0, n_out_ = 0, width_ = 0;
  Array<T> weight_, bias_;
};

}  // namespace MLFFD_ISA
}  // namespace mlffd
