// SPDX-License-Identifier: MIT
// The lennard_jones student (mlffd/students/lennard_jones.py): half of 4 epsilon (x^2 - x) to each atom of a
// pair, x = (sigma / r)^6, cut off without a shift. Distances and sums are float64.
#pragma once

#include "edges.hpp"

namespace mlffd {
namespace MLFFD_ISA {

template <class T>
class LennardJonesKernel : public Kernel {
 public:
  explicit LennardJonesKernel(const Block &block)
      : n_species_(int(block.count("species_numbers"))),
        cutoff_squared_(block.number("cutoff_radius") * block.number("cutoff_radius")),
        pairs_(size_t(n_species_) * n_species_) {
    const double *epsilon = block.array("epsilon", n_species_), *sigma = block.array("sigma", n_species_);
    for (int i = 0; i < n_species_; ++i)
      for (int j = 0; j < n_species_; ++j)
        pairs_[i * n_species_ + j] = {T(__builtin_sqrt(epsilon[i] * epsilon[j])), sigma[i] * sigma[j]};
  }

  void evaluate(
      const mlffd_edges &edges, const mlffd_exchange *, int n_threads, double *atomic_energies,
      double *gradient) override {
    for_chunks(edges.n_centers, 64, n_threads, [&](int64_t begin, int n, int) {
      for (int64_t i = begin; i < begin + n; ++i) atomic_energies[i] = sum_neighbors(edges, i, gradient);
    });
  }

 private:
  struct Pair {
    T epsilon;             // eV
    double sigma_squared;  // Å^2
  };

  double sum_neighbors(const mlffd_edges &edges, int64_t i, double *gradient) const {
    const Pair *pairs = pairs_.data() + size_t(edges.species_idx[i]) * n_species_;
    double energy = 0.0;
    for (int64_t k = edges.first_edge[i]; k < edges.first_edge[i + 1]; ++k) {
      const double *r = edges.edge_vectors + 3 * k, square = r[0] * r[0] + r[1] * r[1] + r[2] * r[2];
      double slope = 0.0;  // dE/dr over r
      if (!(square >= cutoff_squared_))  // what is not a number stays, to be seen in the results
        energy += half_energy(pairs[edges.species_idx[edges.neighbor[k]]], square, &slope);
      for (int axis = 0; axis < 3; ++axis) gradient[3 * k + axis] = slope * r[axis];
    }
    return energy;
  }

  static double half_energy(const Pair &pair, double square, double *slope) {
    const T ratio = T(pair.sigma_squared / square), x = ratio * ratio * ratio;
    *slope = double(T(-12) * pair.epsilon * x * (T(2) * x - T(1))) / square;
    return double(T(2) * pair.epsilon * x * (x - T(1)));
  }

  int n_species_;
  double cutoff_squared_;
  Array<Pair> pairs_;
};

}  // namespace MLFFD_ISA
}  // namespace mlffd
