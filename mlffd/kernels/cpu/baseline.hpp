// SPDX-License-Identifier: MIT
// Reference energies and the short-range repulsion of mlffd/students/baseline.py, in float64.
#pragma once

#include "radial.hpp"

namespace mlffd {
namespace MLFFD_ISA {

class Baseline {
 public:
  Baseline(const Block &block, int n_species)
      : n_species_(n_species), reference_(n_species), reach_(size_t(n_species) * n_species),
        screening_(reach_.size()), charge_(reach_.size()) {
    const double *numbers = block.array("species_numbers", n_species);
    const double *reference = block.array("baseline.reference_energies", n_species);
    const double *reach = block.array("baseline.repulsion_reach", reach_.size());
    for (int i = 0; i < n_species; ++i) {
      reference_[i] = reference[i];
      for (int j = 0, pair = i * n_species; j < n_species; ++j, ++pair)
        set_pair(pair, numbers[i], numbers[j], reach[pair]);
    }
  }
  double reference(int species) const { return reference_[species]; }
  double largest_reach() const { return largest_reach_; }  // Å; no pair of species repels from farther away

  // The center's share of the repulsion of edge k, r > 0 long, in eV; its gradient is added to that of the
  // edges, (n_edges, 3) in eV/Å.
  double repulsion(
      const mlffd_edges &edges, int64_t center, int64_t k, double r, double *gradient) const {
    double slope;
    const int32_t *species = edges.species_idx;
    const double share = half_energy(species[center], species[edges.neighbor[k]], r, &slope);
    if (slope != 0.0)
      for (int axis = 0; axis < 3; ++axis)
        gradient[3 * k + axis] += slope / r * edges.edge_vectors[3 * k + axis];
    return share;
  }

 private:
  static constexpr double coulomb = 14.399645;  // e^2 / (4 pi epsilon_0) in eV Å
  static constexpr double zbl_exponents[4] = {3.19980, 0.94229, 0.40290, 0.20162};
  static constexpr double zbl_coefficients[4] = {0.18175, 0.50986, 0.28022, 0.02817};

  // Half of the repulsion of a pair and its derivative: eV, eV/Å.
  double half_energy(int species_i, int species_j, double r, double *slope) const {
    const int pair = species_i * n_species_ + species_j;
    *slope = 0.0;
    if (r >= reach_[pair]) return 0.0;
    double screening = 0.0, screening_slope = 0.0, cutoff_slope;
    for (int k = 0; k < 4; ++k) {
      const double term = zbl_coefficients[k] * __builtin_exp(-zbl_exponents[k] * r / screening_[pair]);
      screening += term;
      screening_slope -= zbl_exponents[k] / screening_[pair] * term;
    }
    const double cutoff = polynomial_cutoff(r / reach_[pair], &cutoff_slope), bare = charge_[pair] / r;
    *slope = bare * (screening_slope * cutoff + screening * (cutoff_slope / reach_[pair] - cutoff / r));
    return bare * screening * cutoff;
  }

  void set_pair(int pair, double number_i, double number_j, double reach) {
    reach_[pair] = reach;
    screening_[pair] = 0.46850 / (__builtin_pow(number_i, 0.23) + __builtin_pow(number_j, 0.23));
    charge_[pair] = 0.5 * coulomb * number_i * number_j;
    if (reach > largest_reach_) largest_reach_ = reach;
  }

  int n_species_;
  double largest_reach_ = 0.0;
  Array<double> reference_, reach_, screening_, charge_;
};

}  // namespace MLFFD_ISA
}  // namespace mlffd
