// SPDX-License-Identifier: MIT
// Functions of the distance as piecewise polynomials: the radial functions, or filters that are sums of them.
//
// Intervals of one length from 0 to the cutoff, in each the polynomial through the Chebyshev nodes (in t from
// -1 to 1 across the interval). Their number follows from the shortest wave, sin(n_radial pi r / r_c).
// Errors, rounding included, are 1e-7 of the largest value for float and 1e-14 for double, 2e-7 and 3e-12 in
// the derivative. Value and derivative come from the same coefficients, so that forces are the gradient of the
// tabulated energy.
#pragma once

#include "radial.hpp"

namespace mlffd {
namespace MLFFD_ISA {

template <class T>
struct Piece;

template <>
struct Piece<float> {
  static constexpr int degree = 5, intervals_per_wave = 8;
};

template <>
struct Piece<double> {
  static constexpr int degree = 9, intervals_per_wave = 7;
};

// Coefficients of the radial functions in float64: (n_intervals, degree + 1, n_radial), powers of t falling.
template <class T>
class RadialPieces {
 public:
  RadialPieces(double cutoff, int n_radial)
      : n_radial_(n_radial), n_intervals_(Piece<T>::intervals_per_wave * (n_radial < 4 ? 4 : n_radial)),
        scale_(n_intervals_ / cutoff), coefficients_(size_t(n_intervals_) * n_terms * n_radial) {
    Array<double> series(size_t(n_terms) * n_radial);
    for (int k = 0; k < n_intervals_; ++k) {
      std::memset(series.data(), 0, series.size() * sizeof(double));
      for (int node = 0; node < n_terms; ++node) add_node(k, node, cutoff, series.data());
      for (int degree = 0; degree < n_terms; ++degree)
        for (int power = 0; power <= degree; ++power) {
          const double factor = chebyshev(degree, power);
          for (int n = 0; n < n_radial; ++n)
            *at(k, n_terms - 1 - power, n) += factor * series[size_t(degree) * n_radial + n];
        }
    }
  }
  int n_radial() const { return n_radial_; }
  int n_intervals() const { return n_intervals_; }
  double slope_scale() const { return 2.0 * scale_; }  // dt / dr
  const double *of(int interval, int term) const {
    return coefficients_.data() + (size_t(interval) * n_terms + term) * n_radial_;
  }
  // 0 <= r < cutoff, or not a number: then t is none either, and the interval is still one there is.
  void locate(double r, int32_t *interval, T *t) const {
    const double x = r * scale_;
    *interval = x < n_intervals_ ? int32_t(x) : n_intervals_ - 1;
    *t = T(2.0 * (x - *interval) - 1.0);
  }

  static constexpr int n_terms = Piece<T>::degree + 1;

 private:
  double *at(int interval, int term, int n) {
    return coefficients_.data() + (size_t(interval) * n_terms + term) * n_radial_ + n;
  }

  // What the values at one node contribute to the Chebyshev series of an interval (degree + 1, n_radial).
  void add_node(int interval, int node, double cutoff, double *series) const {
    const double angle = pi * (node + 0.5) / n_terms;
    const double r = (interval + 0.5 + 0.5 * __builtin_cos(angle)) / scale_;
    BesselBasis<double> basis(r, 1.0 / r, cutoff);
    for (int n = 0; n < n_radial_; ++n) {
      double value, slope;
      basis.next(&value, &slope);
      for (int degree = 0; degree < n_terms; ++degree)
        series[size_t(degree) * n_radial_ + n] +=
            (degree ? 2.0 : 1.0) / n_terms * __builtin_cos(degree * angle) * value;
    }
  }

  // Coefficient of t^power in the Chebyshev polynomial T_degree.
  static double chebyshev(int degree, int power) {
    if (power < 0 || power > degree) return 0.0;
    if (degree < 2) return degree == power;
    return 2.0 * chebyshev(degree - 1, power - 1) - chebyshev(degree - 2, power);
  }

  int n_radial_, n_intervals_;
  double scale_;
  Array<double> coefficients_;
};

// The pieces of `slots` functions for each of n_channels channels: [block][interval][term][slot][lane], so
// that a block of channels keeps within the second-level cache and what an edge needs lies together.
template <class T, int slots>
class Table {
 public:
  Table() = default;
  // `weights` (slots, n_channels, n_radial): which sums of radial functions.
  Table(const RadialPieces<T> &radial, const double *weights, int n_channels)
      : n_intervals_(radial.n_intervals()),
        values_(size_t(padded<T>(n_channels)) * n_intervals_ * RadialPieces<T>::n_terms * slots) {
    const int n_radial = radial.n_radial();
    for (int k = 0; k < n_intervals_; ++k)
      for (int term = 0; term < RadialPieces<T>::n_terms; ++term)
        for (int slot = 0; slot < slots; ++slot)
          for (int channel = 0; channel < n_channels; ++channel) {
            const double *weight = weights + (size_t(slot) * n_channels + channel) * n_radial;
            double sum = 0.0;
            for (int n = 0; n < n_radial; ++n) sum += weight[n] * radial.of(k, term)[n];
            T *piece = values_.data() + size_t(channel / lanes * n_intervals_ + k) * size_of_piece;
            piece[(term * slots + slot) * lanes + channel % lanes] = T(sum);
          }
  }
  // The pieces of a block of channels; that of interval k begins at k * size_of_piece.
  const T *block(int b) const { return values_.data() + size_t(b) * n_intervals_ * size_of_piece; }

  static constexpr int lanes = Simd<T>::width;
  static constexpr int size_of_piece = RadialPieces<T>::n_terms * slots * lanes;

 private:
  int n_intervals_ = 0;
  Array<T> values_;
};

template <int slots, class T>
inline void evaluate_piece(const T *piece, T t, Vector<T> *value) {
  constexpr int lanes = Simd<T>::width;
#pragma GCC unroll 4
  for (int s = 0; s < slots; ++s) value[s] = load(piece + s * lanes);
#pragma GCC unroll 10
  for (int term = 1; term <= Piece<T>::degree; ++term)
#pragma GCC unroll 4
    for (int s = 0; s < slots; ++s) value[s] = value[s] * t + load(piece + (term * slots + s) * lanes);
}

// `slope` is the derivative with respect to t.
template <int slots, class T>
inline void evaluate_piece(const T *piece, T t, Vector<T> *value, Vector<T> *slope) {
  constexpr int lanes = Simd<T>::width;
#pragma GCC unroll 4
  for (int s = 0; s < slots; ++s) {
    slope[s] = load(piece + s * lanes);
    value[s] = slope[s] * t + load(piece + (slots + s) * lanes);
  }
#pragma GCC unroll 10
  for (int term = 2; term <= Piece<T>::degree; ++term)
#pragma GCC unroll 4
    for (int s = 0; s < slots; ++s) {
      slope[s] = slope[s] * t + value[s];
      value[s] = value[s] * t + load(piece + (term * slots + s) * lanes);
    }
}

}  // namespace MLFFD_ISA
}  // namespace mlffd
