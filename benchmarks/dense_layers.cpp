// SPDX-License-Identifier: MIT
// A dense layer of the CPU kernels, for dense_layers.py; compiled for one instruction set, as students.cpp is.
#include "gemm.hpp"
#include "kernel.hpp"

using namespace mlffd::MLFFD_ISA;

namespace mlffd {
void fail(const char *, ...) { __builtin_trap(); }
}  // namespace mlffd

template <class T>
static void apply(const T *x, const double *weight, T *y, int n_rows, int n_in, int n_out, int n_times) {
  const Dense<T> layer(weight, nullptr, n_out, n_in, n_in);
  for (int k = 0; k < n_times; ++k) layer.apply(x, n_in, n_rows, y, n_out);
}

// y = x W^T, `n_times` over; x (n_rows, n_in), weight (n_out, n_in), y (n_rows, n_out), n_out of whole vectors.
extern "C" void apply_float32(
    const float *x, const double *weight, float *y, int n_rows, int n_in, int n_out, int n_times) {
  apply(x, weight, y, n_rows, n_in, n_out, n_times);
}

extern "C" void apply_float64(
    const double *x, const double *weight, double *y, int n_rows, int n_in, int n_out, int n_times) {
  apply(x, weight, y, n_rows, n_in, n_out, n_times);
}
