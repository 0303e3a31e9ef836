// SPDX-License-Identifier: MIT
// Radial functions, real spherical harmonics and their derivatives, with vectors of edges; the
// definitions are those of mlffd/students/radial.py.
#pragma once

#include "simd.hpp"

namespace mlffd {
namespace MLFFD_ISA {

constexpr double pi = 3.14159265358979323846;

// Envelope from 1 at x = 0 to 0 at x = 1 (power 6), and its derivative; 0 <= x <= 1.
template <class V>
inline V polynomial_cutoff(V x, V *slope) {
  const V left = 1.0 - x, square = x * x;
  const V series = (1.0 + 3.0 * x) + square * ((6.0 + 10.0 * x) + square * (15.0 + 21.0 * x));
  *slope = -168.0 * (square * square * x) * (left * left);
  return left * left * left * series;
}

// 1 / n! with the sign of the power series of sine and cosine.
constexpr double series_coefficient(int n) {
  double factorial = 1.0;
  for (int k = 2; k <= n; ++k) factorial *= k;
  return (n / 2 % 2 ? -1.0 : 1.0) / factorial;
}

// Coefficient of x^(2 k + first) for k = 0 ... 10.
template <int first>
struct Series {
  double values[11];
  constexpr Series() : values() {
    for (int k = 0; k <= 10; ++k) values[k] = series_coefficient(2 * k + first);
  }
};

// sin(pi x) and cos(pi x) for 0 <= x <= 1: power series about 1/2; the terms left out are below 2e-17.
template <class V>
inline void sine_cosine(V x, V *sine, V *cosine) {
  constexpr Series<0> even;
  constexpr Series<1> odd;
  const V angle = pi * (x - 0.5), square = angle * angle;
  V even_sum = V{} + even.values[10], odd_sum = V{} + odd.values[10];
#pragma GCC unroll 16
  for (int k = 9; k >= 0; --k) {
    even_sum = even_sum * square + even.values[k];
    odd_sum = odd_sum * square + odd.values[k];
  }
  *sine = even_sum;
  *cosine = -angle * odd_sum;
}

// The functions sqrt(2 / r_c) sin(n pi r / r_c) / r times the envelope, one after the other from n = 1.
template <class V>
class BesselBasis {
 public:
  struct Constants {
    explicit Constants(double cutoff)
        : inverse_cutoff(1.0 / cutoff), factor(__builtin_sqrt(2.0 / cutoff)), wave(pi / cutoff) {}
    double inverse_cutoff, factor, wave;
  };
  // 0 < r <= cutoff (double or vectors of doubles)
  BesselBasis(V r, V inverse_r, const Constants &constants) {
    const V x = r * constants.inverse_cutoff;
    V slope;
    sine_cosine(x, &sine_, &cosine_);
    factor_ = constants.factor * inverse_r * polynomial_cutoff(x, &slope);
    factor_slope_ = inverse_r * (constants.factor * constants.inverse_cutoff * slope - factor_);
    frequency_ = wave_ = constants.wave * factor_;
    twice_cosine_ = cosine_ + cosine_;
  }
  BesselBasis(V r, V inverse_r, double cutoff) : BesselBasis(r, inverse_r, Constants(cutoff)) {}
  // Value and derivative for the next n.
  void next(V *value, V *slope) {
    *value = factor_ * sine_;
    *slope = factor_slope_ * sine_ + frequency_ * cosine_;
    const V sine = twice_cosine_ * sine_ - sine_before_, cosine = twice_cosine_ * cosine_ - cosine_before_;
    sine_before_ = sine_, cosine_before_ = cosine_;
    sine_ = sine, cosine_ = cosine;
    frequency_ += wave_;
  }

 private:
  V factor_, factor_slope_, wave_, frequency_, twice_cosine_;
  V sine_, cosine_, sine_before_ = V{}, cosine_before_ = V{} + 1.0;
};

// Constants of the harmonics.
template <class T>
struct Harmonic {
  static constexpr T root3 = T(1.73205080756887729353);
  static constexpr T a = T(0.79056941504209483300);  // sqrt(5 / 8)
  static constexpr T b = T(3.87298334620741688518);  // sqrt(15)
  static constexpr T c = T(0.61237243569579452455);  // sqrt(3 / 8)
};

// The (L + 1)^2 real spherical harmonics of unit vectors.
template <class T, int L>
inline void spherical_harmonics(Vector<T> x, Vector<T> y, Vector<T> z, Vector<T> *rows) {
  typedef Harmonic<T> H;
  rows[0] = broadcast<T>(1);
  if constexpr (L >= 1) rows[1] = y, rows[2] = z, rows[3] = x;
  if constexpr (L >= 2) {
    rows[4] = H::root3 * x * y;
    rows[5] = H::root3 * y * z;
    rows[6] = T(1.5) * z * z - T(0.5);
    rows[7] = H::root3 * x * z;
    rows[8] = T(0.5) * H::root3 * (x * x - y * y);
  }
  if constexpr (L >= 3) {
    const Vector<T> xx = x * x, yy = y * y, zz = z * z;
    rows[9] = H::a * y * (T(3) * xx - yy);
    rows[10] = H::b * x * y * z;
    rows[11] = H::c * y * (T(5) * zz - T(1));
    rows[12] = z * (T(2.5) * zz - T(1.5));
    rows[13] = H::c * x * (T(5) * zz - T(1));
    rows[14] = T(0.5) * H::b * z * (xx - yy);
    rows[15] = H::a * x * (xx - T(3) * yy);
  }
}

// The sum of `weights` times the gradients of the harmonics, taken as polynomials of x, y, z; what of it is
// along the unit vector has no meaning.
template <class T, int L>
inline void harmonics_gradient(
    Vector<T> x, Vector<T> y, Vector<T> z, const Vector<T> *weights, Vector<T> *gradient) {
  typedef Harmonic<T> H;
  const Vector<T> *w = weights;
  Vector<T> along_x{}, along_y{}, along_z{};
  if constexpr (L >= 1) along_y = w[1], along_z = w[2], along_x = w[3];
  if constexpr (L >= 2) {
    along_x += H::root3 * (y * w[4] + z * w[7] + x * w[8]);
    along_y += H::root3 * (x * w[4] + z * w[5] - y * w[8]);
    along_z += H::root3 * (y * w[5] + x * w[7]) + T(3) * z * w[6];
  }
  if constexpr (L >= 3) {
    const Vector<T> difference = x * x - y * y, xy = x * y, xz = x * z, yz = y * z, zz = z * z;
    const Vector<T> fall = H::c * (T(5) * zz - T(1));
    along_x += T(3) * H::a * (T(2) * xy * w[9] + difference * w[15]) + H::b * (yz * w[10] + xz * w[14]);
    along_y += T(3) * H::a * (difference * w[9] - T(2) * xy * w[15]) + H::b * (xz * w[10] - yz * w[14]);
    along_z += H::b * (xy * w[10] + T(0.5) * difference * w[14]) + T(1.5) * (T(5) * zz - T(1)) * w[12];
    along_x += fall * w[13];
    along_y += fall * w[11];
    along_z += T(10) * H::c * (yz * w[11] + xz * w[13]);
  }
  gradient[0] = along_x, gradient[1] = along_y, gradient[2] = along_z;
}

}  // namespace MLFFD_ISA
}  // namespace mlffd
