// SPDX-License-Identifier: MIT
// Radial functions and their derivatives, for doubles and vectors of doubles (V); see students/radial.py.
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

// sin(pi x) and cos(pi x) for 0 <= x <= 1: Taylor series about 1/2; the terms left out are below 2e-17.
template <class V>
inline void sine_cosine(V x, V *sine, V *cosine) {
  const V angle = pi * (x - 0.5), square = angle * angle;
  V even = V{} + 1.0, odd = V{} + 1.0;
  for (int k = 20; k > 0; k -= 2) {
    even = 1.0 - even * square * (1.0 / (k * (k - 1)));
    odd = 1.0 - odd * square * (1.0 / (k * (k + 1)));
  }
  *sine = even;
  *cosine = -angle * odd;
}

// The functions sqrt(2 / r_c) sin(n pi r / r_c) / r times the envelope, one after the other from n = 1.
template <class V>
class BesselBasis {
 public:
  // 0 < r <= cutoff (double or vectors of doubles)
  BesselBasis(V r, V inverse_r, double cutoff) {
    V sine, cosine, slope;
    sine_cosine(r * (1.0 / cutoff), &sine, &cosine);
    const V envelope = polynomial_cutoff(r * (1.0 / cutoff), &slope);
    factor_ = __builtin_sqrt(2.0 / cutoff) * inverse_r * envelope;
    factor_slope_ = inverse_r * (__builtin_sqrt(2.0 / cutoff) / cutoff * slope - factor_);
    wave_ = (pi / cutoff) * factor_;
    sine_ = sine, cosine_ = cosine, twice_cosine_ = cosine + cosine;
    frequency_ = wave_;
  }
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

}  // namespace MLFFD_ISA
}  // namespace mlffd
