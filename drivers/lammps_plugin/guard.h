// SPDX-License-Identifier: MIT
// Notices when a run leaves what its student was trained on, and does what the user wants then: see
// drivers/lammps_guard.py, which is the same for the routes with Python and explains policies and variables.
#ifndef MLFFD_GUARD_H
#define MLFFD_GUARD_H

#include <string>
#include <vector>

#include "lmptype.h"
#include "mlffd.h"
#include "pointers.h"

namespace mlffd {

class Guard : protected LAMMPS_NS::Pointers {
 public:
  struct Pairs {  // of this rank, as LAMMPS numbers atoms; gradient in eV/Angstrom
    int n_centers;
    const int *center;          // (n_centers,) atoms
    const int64_t *first_edge;  // (n_centers + 1,)
    const int *neighbor;        // (n_edges,) atoms
    const double *vectors, *gradient;
  };

  explicit Guard(LAMMPS_NS::LAMMPS *lmp) : Pointers(lmp) {}
  ~Guard() override { summarize(); }

  // The variables MLFFD_GUARD... of the first rank. Collective.
  void read_environment();
  bool set_policy(const std::string &word);  // false: there is none of this name
  // species_of_type: index into the student's species by atom type; symbols: by atom type.
  void watch(
      const mlffd_student *student, const std::vector<int32_t> &species_of_type,
      const std::vector<std::string> &symbols);
  // Looks at an evaluation, if it is one to look at. Collective.
  void check(const Pairs &pairs);

 private:
  enum Policy { OFF, WARN, STOP, COLLECT };
  enum Kind { DISTANCE, FORCE, NEIGHBORS };
  struct Found {  // what is farthest outside: by what factor, atoms, or an atom and a species, and what of it
    double excess = 1.0, value = 0.0, limit = 0.0;
    int i = -1, j = -1;
    Kind kind = DISTANCE;
  };

  bool is_due();
  Found look(const Pairs &pairs) const;
  void count_neighbors(const Pairs &pairs, Found &worst) const;
  void act(const Found &worst, int rank);
  std::string describe(const Found &found) const;
  std::string write_frame(const std::string &why);
  std::string append(const std::vector<double> &rows, const std::string &why);
  void summarize();

  Policy policy_ = WARN;
  int every_ = 10, n_frames_ = 100, rank_ = 0;
  std::string file_ = "guard.extxyz";

  std::vector<int32_t> species_of_type_;
  std::vector<std::string> symbols_;           // by type
  std::vector<std::string> species_;           // symbols, by species
  std::vector<double> least_squares_;          // (n_species, n_species) of distances
  std::vector<double> fewest_, most_;          // (n_species, n_species) neighbors
  size_t n_species_ = 0;
  double largest_pair_force_ = 0.0;

  LAMMPS_NS::bigint last_step_ = -2, n_checked_ = 0, n_flagged_ = 0, first_step_ = 0;
  int n_skipped_ = 0, n_looks_ = 0, n_written_ = 0;
  int n_gathered_ = 0;  // as many on all ranks
  double worst_excess_ = 0.0;
  std::string worst_;
};

}  // namespace mlffd
#endif
