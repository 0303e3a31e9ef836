// SPDX-License-Identifier: MIT
// pair_style mlffd [precision float32|float64] [threads N] [guard warn|stop|collect|off]
// pair_coeff * * FILE.weights ELEMENT ...    one element, or NULL, for each atom type
//
// A student in LAMMPS without Python. The defaults are float32, with distances and sums of energies in float64
// all the same, and the threads of LAMMPS' package omp: one unless OMP_NUM_THREADS says more.
//
// - units metal or real; newton on; any atom style, box and number of ranks; NULL is for pair_style hybrid.
// - A student that passes messages exchanges the features of ghost atoms through LAMMPS' pair communication:
//   the usual ghosts, one cutoff deep, are enough. On one rank it needs not even that.
// - Energies of atoms are the student's. compute stress/atom splits the virial of an edge between its ends,
//   centroid/stress/atom (local students) is the one for the heat flux; see tally_virial.
// - The guard (guard.h) looks at distances and pair forces; MLFFD_GUARD... are its variables, and a word in the
//   input goes before MLFFD_GUARD.
// - Restart files hold no student: pair_style and pair_coeff are given again.
#ifndef PAIR_MLFFD_H
#define PAIR_MLFFD_H

#include <memory>
#include <string>
#include <vector>

#include "guard.h"
#include "mlffd.h"
#include "pair.h"

namespace mlffd {

class PairMLFFD : public LAMMPS_NS::Pair {
 public:
  explicit PairMLFFD(LAMMPS_NS::LAMMPS *lmp);
  ~PairMLFFD() override;

  void settings(int n_words, char **words) override;
  void coeff(int n_words, char **words) override;
  void init_style() override;
  double init_one(int, int) override { return cutoff_; }
  void compute(int eflag, int vflag) override;
  double memory_usage() override;

  int pack_forward_comm(int n, int *atoms, double *buffer, int, int *) override;
  void unpack_forward_comm(int n, int first, double *buffer) override;
  int pack_reverse_comm(int n, int first, double *buffer) override;
  void unpack_reverse_comm(int n, int *atoms, double *buffer) override;

 private:
  struct Rows {  // what is being exchanged, in the kernel's order of atoms
    char *values = nullptr;
    int n_per_row = 0, bytes_per_value = 0;
    size_t bytes() const { return size_t(n_per_row) * bytes_per_value; }
    int doubles() const { return int((bytes() + 7) / 8); }  // of LAMMPS' buffers
  };
  struct Destroy {
    void operator()(mlffd_student *student) const { mlffd_destroy(student); }
  };

  void allocate();
  std::string read_on_first_rank(const std::string &file);
  void load(const std::string &file);
  void choose_species(const std::string &file);
  void set_up_guard();
  void provide_communication();
  void introduce(const std::string &file);
  void fail_together(const std::string &message);
  [[noreturn]] void fail_alone(const std::string &message);

  void check_coordinates();
  void number_atoms();
  void merge_images();
  void collect_edges();
  void evaluate();
  void look_out();
  void convert_units();
  double add_forces();
  void tally_energies();
  void tally_virial();
  void exchange(const Rows &rows, bool from_owners);
  static void to_ghosts(void *pair, void *rows, int n_per_row, int bytes_per_value);
  static void to_owners(void *pair, void *rows, int n_per_row, int bytes_per_value);
  char *row(int atom) { return rows_.values + rows_.bytes() * size_t(row_of_atom_[atom]); }

  std::unique_ptr<mlffd_student, Destroy> student_;
  Guard guard_;
  int precision_ = 32, n_threads_ = 0;  // 0: as many as LAMMPS' package omp says
  double cutoff_ = 0.0, energy_unit_ = 1.0;  // of LAMMPS per eV
  std::vector<int32_t> species_of_type_;

  // of this step, for mlffd_evaluate_pairs; memory is kept, so arrays may be longer than needed
  int n_centers_ = 0, n_rows_ = 0;        // rows are the kernel's atoms, centers first
  bool rows_are_atoms_ = false;           // numbered as LAMMPS does: the usual case
  std::vector<int32_t> row_of_atom_;      // (nlocal + nghost,)
  std::vector<int32_t> owner_;            // (n_rows,) row of the atom a ghost is an image of
  std::vector<int32_t> species_idx_;      // (n_rows,)
  std::vector<int64_t> first_edge_;       // (n_centers + 1,)
  std::vector<int32_t> neighbor_atom_;    // (n_edges,) as LAMMPS numbers atoms
  std::vector<int32_t> neighbor_row_;     // (n_edges,) where that differs
  std::vector<double> edge_vectors_;      // (n_edges, 3)
  std::vector<double> gradient_;          // (n_edges, 3)
  std::vector<double> atomic_energies_;   // (n_centers,)
  Rows rows_;
};

}  // namespace mlffd
#endif
