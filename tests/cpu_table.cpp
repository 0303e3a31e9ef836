// SPDX-License-Identifier: MIT
// Largest errors of tabulated filters and of their derivatives, relative to the largest value and derivative, at
// random distances: one line `bits n_radial error_of_values error_of_derivatives` for each case.
#include <cmath>
#include <cstdio>
#include <random>

#include "table.hpp"

namespace mlffd {
void fail(const char *format, ...) {
  std::puts(format);
  std::exit(1);
}
Kernel::~Kernel() = default;
}  // namespace mlffd

using namespace mlffd::MLFFD_ISA;

template <class T>
void measure(int n_radial, double cutoff) {
  constexpr int lanes = Simd<T>::width;
  std::mt19937 random(1);
  std::normal_distribution<double> normal;
  std::uniform_real_distribution<double> uniform(0.8, cutoff);
  mlffd::MLFFD_ISA::Array<double> weights(size_t(lanes) * n_radial);
  for (size_t k = 0; k < weights.size(); ++k) weights[k] = normal(random);
  const RadialPieces<T> radial(cutoff, n_radial);
  const Table<T, 1> table(radial, weights.data(), lanes);
  double error[2] = {}, largest[2] = {};
  for (int sample = 0; sample < 20000; ++sample) {
    const double r = uniform(random);
    int32_t interval;
    T t;
    radial.locate(r, &interval, &t);
    Vector<T> value[1], slope[1];
    evaluate_piece<1>(table.block(0) + size_t(interval) * table.size_of_piece, t, value, slope);
    double exact[2][lanes] = {};
    BesselBasis<double> basis(r, 1.0 / r, cutoff);
    for (int n = 0; n < n_radial; ++n) {
      double function, derivative;
      basis.next(&function, &derivative);
      for (int lane = 0; lane < lanes; ++lane) {
        exact[0][lane] += weights[size_t(lane) * n_radial + n] * function;
        exact[1][lane] += weights[size_t(lane) * n_radial + n] * derivative;
      }
    }
    for (int lane = 0; lane < lanes; ++lane) {
      const double found[2] = {double(value[0][lane]), slope[0][lane] * radial.slope_scale()};
      for (int k = 0; k < 2; ++k) {
        error[k] = std::fmax(error[k], std::fabs(found[k] - exact[k][lane]));
        largest[k] = std::fmax(largest[k], std::fabs(exact[k][lane]));
      }
    }
  }
  std::printf("%d %d %.3e %.3e\n", int(8 * sizeof(T)), n_radial, error[0] / largest[0], error[1] / largest[1]);
}

int main() {
  for (int n_radial : {1, 6, 20, 64}) {
    measure<float>(n_radial, 5.0);
    measure<double>(n_radial, 5.0);
  }
}
