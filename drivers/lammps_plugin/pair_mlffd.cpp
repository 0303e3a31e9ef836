// SPDX-License-Identifier: MIT
#include "pair_mlffd.h"

#include <algorithm>
#include <chrono>
#include <climits>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <numeric>
#include <set>
#include <thread>

#include "atom.h"
#include "comm.h"
#include "error.h"
#include "force.h"
#include "memory.h"
#include "neigh_list.h"
#include "neighbor.h"
#include "update.h"
#include "utils.h"

using namespace LAMMPS_NS;

namespace mlffd {

namespace {

const char *const SYMBOLS[] = {
    "",   "H",  "He", "Li", "Be", "B",  "C",  "N",  "O",  "F",  "Ne", "Na", "Mg", "Al", "Si", "P",  "S",
    "Cl", "Ar", "K",  "Ca", "Sc", "Ti", "V",  "Cr", "Mn", "Fe", "Co", "Ni", "Cu", "Zn", "Ga", "Ge", "As",
    "Se", "Br", "Kr", "Rb", "Sr", "Y",  "Zr", "Nb", "Mo", "Tc", "Ru", "Rh", "Pd", "Ag", "Cd", "In", "Sn",
    "Sb", "Te", "I",  "Xe", "Cs", "Ba", "La", "Ce", "Pr", "Nd", "Pm", "Sm", "Eu", "Gd", "Tb", "Dy", "Ho",
    "Er", "Tm", "Yb", "Lu", "Hf", "Ta", "W",  "Re", "Os", "Ir", "Pt", "Au", "Hg", "Tl", "Pb", "Bi", "Po",
    "At", "Rn", "Fr", "Ra", "Ac", "Th", "Pa", "U",  "Np", "Pu", "Am", "Cm", "Bk", "Cf", "Es", "Fm", "Md",
    "No", "Lr", "Rf", "Db", "Sg", "Bh", "Hs", "Mt", "Ds", "Rg", "Cn", "Nh", "Fl", "Mc", "Lv", "Ts", "Og"};
constexpr int N_SYMBOLS = sizeof(SYMBOLS) / sizeof(SYMBOLS[0]);

std::string symbol(int atomic_number) {
  return atomic_number > 0 && atomic_number < N_SYMBOLS ? SYMBOLS[atomic_number] : "?";
}

std::string known_elements(const mlffd_student *student) {
  std::string known;
  for (int k = 0; k < mlffd_n_species(student); ++k) known += " " + symbol(mlffd_species(student)[k]);
  return known.substr(1);
}

// Index of an element into the student's species; -1 where it is not among them.
int species_index(const mlffd_student *student, const std::string &element) {
  for (int k = 0; k < mlffd_n_species(student); ++k)
    if (symbol(mlffd_species(student)[k]) == element) return k;
  return -1;
}

// The most doubles a row takes in any exchange of the student, from an atom with one ghost beside it.
struct WidestRow {
  int doubles = 1;
  static void note(void *context, void *, int n_per_row, int bytes_per_value) {
    int &doubles = static_cast<WidestRow *>(context)->doubles;
    doubles = std::max(doubles, (n_per_row * bytes_per_value + 7) / 8);
  }
};

template <class T>
void grow(std::vector<T> &values, size_t n) {
  if (values.size() < n) values.resize(n + n / 8);
}

}  // namespace

PairMLFFD::PairMLFFD(LAMMPS *lmp) : Pair(lmp), guard_(lmp) {
  single_enable = 0;
  restartinfo = 0;  // as with other many-body styles, pair_style and pair_coeff are given again
  one_coeff = 1;
  manybody_flag = 1;
}

PairMLFFD::~PairMLFFD() {
  if (!allocated) return;
  memory->destroy(setflag);
  memory->destroy(cutsq);
}

// ---- the input's commands ----

void PairMLFFD::settings(int n_words, char **words) {
  precision_ = 32;
  n_threads_ = 0;
  student_.reset();  // pair_coeff has to follow once more
  guard_.read_environment();
  if (allocated) memset(&setflag[0][0], 0, sizeof(int) * (atom->ntypes + 1) * (atom->ntypes + 1));
  for (int k = 0; k < n_words; k += 2) {
    const std::string name = words[k], value = k + 1 < n_words ? words[k + 1] : "";
    if (name == "precision" && (value == "float32" || value == "float64"))
      precision_ = value == "float32" ? 32 : 64;
    else if (name == "threads" && utils::is_integer(value) && std::atoi(value.c_str()) > 0)
      n_threads_ = std::atoi(value.c_str());
    else if (name != "guard" || !guard_.set_policy(value))
      error->all(
          FLERR, "pair_style mlffd takes [precision float32|float64] [threads N] "
                 "[guard warn|stop|collect|off], not '" + name +
                     (value.empty() ? "" : " ") + value + "'");
  }
}

void PairMLFFD::coeff(int n_words, char **words) {
  if (n_words != 3 + atom->ntypes)
    error->all(
        FLERR, "pair_style mlffd takes pair_coeff * * FILE and one element or NULL for each of the " +
                   std::to_string(atom->ntypes) + " atom types");
  if (!allocated) allocate();
  map_element2type(n_words - 3, words + 3);
  load(words[2]);
  choose_species(words[2]);
  set_up_guard();
  provide_communication();
  introduce(words[2]);
}

void PairMLFFD::allocate() {
  const int n = atom->ntypes + 1;
  allocated = 1;
  memory->create(setflag, n, n, "pair:setflag");
  memory->create(cutsq, n, n, "pair:cutsq");
  memset(&setflag[0][0], 0, sizeof(int) * n * n);
  map = new int[n];  // LAMMPS frees this one
}

// Every rank gets what the first one read; all of them stop where it cannot be read.
std::string PairMLFFD::read_on_first_rank(const std::string &file) {
  std::string content;
  int size = -1;
  if (comm->me == 0) {
    const std::string path = utils::get_potential_file_path(file);  // here or in LAMMPS_POTENTIALS
    std::ifstream stream(path.empty() ? file : path, std::ios::binary);
    if (stream) content.assign(std::istreambuf_iterator<char>(stream), {});
    if (stream && content.size() < INT_MAX) size = int(content.size());
  }
  MPI_Bcast(&size, 1, MPI_INT, 0, world);
  if (size < 0)
    error->all(
        FLERR, "pair_style mlffd cannot read '" + file +
                   "': write it with `mlffd lammps export STUDENT -o FILE.weights`");
  content.resize(size);
  MPI_Bcast(&content[0], size, MPI_CHAR, 0, world);
  return content;
}

void PairMLFFD::load(const std::string &file) {
  const std::string block = read_on_first_rank(file);
  char message[512] = "";
  student_.reset(mlffd_create(block.data(), block.size(), precision_, "auto", message, sizeof message));
  fail_together(student_ ? "" : "pair_style mlffd cannot load '" + file + "': " + message);
  cutoff_ = mlffd_cutoff(student_.get());
  // dE/d(edge vectors) of a student that passes messages is not the gradient of the center's energy alone
  centroidstressflag = mlffd_n_layers(student_.get()) > 1 ? CENTROID_NOTAVAIL : CENTROID_AVAIL;
}

// LAMMPS' collective error, also where only some ranks have a message: the first of these speaks.
void PairMLFFD::fail_together(const std::string &message) {
  int speaker = message.empty() ? comm->nprocs : comm->me, first = 0;
  MPI_Allreduce(&speaker, &first, 1, MPI_INT, MPI_MIN, world);
  if (first == comm->nprocs) return;
  char text[1024] = "";
  if (comm->me == first) snprintf(text, sizeof text, "%s", message.c_str());
  MPI_Bcast(text, sizeof text, MPI_CHAR, first, world);
  error->all(FLERR, std::string(text));
}

// Ends all ranks from this one. All may have failed alike, so the first gets time to speak for them; and what
// mpiexec has not passed on when a rank aborts may be lost, so it gets time to be read.
void PairMLFFD::fail_alone(const std::string &message) {
  if (comm->me > 0) std::this_thread::sleep_for(std::chrono::seconds(2));
  try {
    error->one(FLERR, "mlffd: " + message);
  } catch (...) {  // LAMMPS aborts once it has caught this
    fflush(nullptr);
    if (comm->nprocs > 1) std::this_thread::sleep_for(std::chrono::milliseconds(500));
    throw;
  }
}

void PairMLFFD::choose_species(const std::string &file) {
  species_of_type_.assign(atom->ntypes + 1, 0);
  for (int type = 1; type <= atom->ntypes; ++type) {
    if (map[type] < 0) continue;
    species_of_type_[type] = species_index(student_.get(), elements[map[type]]);
    if (species_of_type_[type] < 0)
      error->all(
          FLERR, "pair_coeff names " + std::string(elements[map[type]]) + ", but the student of '" + file +
                     "' knows only " + known_elements(student_.get()));
  }
}

void PairMLFFD::set_up_guard() {
  std::vector<std::string> symbols(atom->ntypes + 1, "X");  // ASE's for no element: types mapped to NULL
  for (int type = 1; type <= atom->ntypes; ++type)
    if (map[type] >= 0) symbols[type] = elements[map[type]];
  guard_.watch(student_.get(), species_of_type_, symbols);
}

// LAMMPS reserves its buffers before the first step, so the widest row must be known by then.
void PairMLFFD::provide_communication() {
  comm_forward = comm_reverse = 0;
  if (mlffd_n_layers(student_.get()) == 1) return;
  WidestRow widest;
  const mlffd_exchange note{&widest, WidestRow::note, WidestRow::note};
  const int32_t species_idx[2] = {0, 0}, neighbor[1] = {1};
  const int64_t first_edge[2] = {0, 1};
  const double edge_vector[3] = {0.9 * cutoff_, 0.0, 0.0};
  const mlffd_edges edges{2, 1, 1, species_idx, first_edge, neighbor, edge_vector, 0};
  double energy, gradient[3];
  char message[512] = "";
  const int failed =
      mlffd_evaluate_pairs(student_.get(), &edges, &note, 1, &energy, gradient, message, sizeof message);
  fail_together(failed ? std::string("mlffd: ") + message : "");
  comm_forward = comm_reverse = widest.doubles;
  // pair_style hybrid asked its styles before pair_coeff
  force->pair->comm_forward = std::max(force->pair->comm_forward, comm_forward);
  force->pair->comm_reverse = std::max(force->pair->comm_reverse, comm_reverse);
}

void PairMLFFD::introduce(const std::string &file) {
  if (comm->me != 0) return;
  const int n_layers = mlffd_n_layers(student_.get());
  char cutoff[32];
  snprintf(cutoff, sizeof cutoff, "%g", cutoff_);
  utils::logmesg(
      lmp, "mlffd: " + file + ": elements " + known_elements(student_.get()) + ", cutoff " + cutoff + " A, " +
               (n_layers > 1 ? std::to_string(n_layers) + " message layers, " : "") + "float" +
               std::to_string(precision_) + ", " + mlffd_instructions(student_.get()) + "\n");
  const std::string verdict = mlffd_verdict(student_.get());
  const char *wanted = getenv("MLFFD_VERDICT");
  static std::set<std::string> said;  // once in a process, however often pair_coeff is given
  if (!verdict.empty() && !(wanted && !strcmp(wanted, "off")) && said.insert(verdict).second)
    utils::logmesg(lmp, "mlffd: " + verdict + "\n");
}

void PairMLFFD::init_style() {
  const std::string units = update->unit_style;
  if (units == "metal")
    energy_unit_ = 1.0;
  else if (units == "real")
    energy_unit_ = utils::get_conversion_factor(utils::ENERGY, utils::METAL2REAL);
  else
    error->all(FLERR, "pair_style mlffd works in units metal or real, not " + units);
  if (!force->newton_pair) error->all(FLERR, "pair_style mlffd requires newton on");
  // in pair_style hybrid the bonds may be those of atoms of other types; LAMMPS warns
  const bool knows_all_types = std::all_of(map + 1, map + atom->ntypes + 1, [](int e) { return e >= 0; });
  bool bonded_are_hidden = false;
  for (int bonds = 1; bonds <= 3; ++bonds)
    bonded_are_hidden |= force->special_lj[bonds] == 0.0 && force->special_coul[bonds] == 0.0;
  if (knows_all_types && atom->nbonds > 0 && bonded_are_hidden)
    error->all(
        FLERR, "special_bonds hides bonded atoms from pair_style mlffd: give `special_bonds lj/coul 1 1 1`");
  neighbor->add_request(this, NeighConst::REQ_FULL);
}

// ---- a step ----

void PairMLFFD::compute(int eflag, int vflag) {
  ev_init(eflag, vflag);
  check_coordinates();
  number_atoms();
  collect_edges();
  evaluate();
  look_out();
  convert_units();
  double sum = add_forces();
  for (int k = 0; k < n_centers_; ++k) sum += atomic_energies_[k];
  if (!std::isfinite(sum)) fail_alone("energies or forces are not finite; do two atoms coincide?");
  if (eflag_either) tally_energies();
  if (vflag_fdotr) virial_fdotr_compute();
  if (vflag_atom || cvflag_atom || (vflag_global && !vflag_fdotr)) tally_virial();
}

// Pairs at a distance that is not a number would pass for pairs beyond the cutoff.
void PairMLFFD::check_coordinates() {
  double sum = 0.0;
  const int n_atoms = atom->nlocal + atom->nghost;
  for (int i = 0; i < n_atoms; ++i) sum += atom->x[i][0] + atom->x[i][1] + atom->x[i][2];
  if (!std::isfinite(sum)) fail_alone("coordinates are not numbers any more; did the run explode?");
}

// The kernel wants centers first. LAMMPS' list may leave some local atoms out (pair_style hybrid), and types
// may change from one step to the next (fix atom/swap), so this is done anew in every step.
void PairMLFFD::number_atoms() {
  const int n_atoms = atom->nlocal + atom->nghost;
  n_centers_ = n_rows_ = list->inum;
  row_of_atom_.assign(n_atoms, -1);
  grow(species_idx_, n_atoms);
  for (int k = 0; k < n_centers_; ++k) row_of_atom_[list->ilist[k]] = k;
  rows_are_atoms_ = true;
  for (int i = 0; i < n_atoms; ++i) {
    if (row_of_atom_[i] < 0) row_of_atom_[i] = n_rows_++;
    species_idx_[row_of_atom_[i]] = species_of_type_[atom->type[i]];
    rows_are_atoms_ = rows_are_atoms_ && row_of_atom_[i] == i;
  }
  if (comm->nprocs == 1 && mlffd_n_layers(student_.get()) > 1) merge_images();
}

// On one rank all ghosts are images of atoms that are here: they share a row, and no message has to be sent.
void PairMLFFD::merge_images() {
  grow(owner_, n_rows_);
  std::iota(owner_.begin(), owner_.end(), 0);
  exchange({reinterpret_cast<char *>(owner_.data()), 1, sizeof owner_[0]}, true);
  for (int i = atom->nlocal; i < atom->nlocal + atom->nghost; ++i) row_of_atom_[i] = owner_[row_of_atom_[i]];
  n_rows_ = n_centers_;
  rows_are_atoms_ = false;
}

void PairMLFFD::collect_edges() {
  size_t n_pairs = 0;
  for (int k = 0; k < n_centers_; ++k) n_pairs += list->numneigh[list->ilist[k]];
  grow(neighbor_atom_, n_pairs + 1);  // every pair is written, and kept by counting it
  grow(edge_vectors_, 3 * (n_pairs + 1));
  grow(first_edge_, n_centers_ + 1);
  const double *x = n_centers_ ? atom->x[0] : nullptr;  // LAMMPS' arrays are in one piece
  const double cutoff_squared = cutoff_ * cutoff_;
  int32_t *neighbor_atom = neighbor_atom_.data();
  double *edge_vectors = edge_vectors_.data();
  int64_t n = 0;
  for (int k = 0; k < n_centers_; ++k) {
    const int i = list->ilist[k], n_neighbors = list->numneigh[i], *neighbors = list->firstneigh[i];
    const double xi = x[3 * size_t(i)], yi = x[3 * size_t(i) + 1], zi = x[3 * size_t(i) + 2];
    first_edge_[k] = n;
    for (int m = 0; m < n_neighbors; ++m) {
      const int j = neighbors[m] & NEIGHMASK;
      const double *xj = x + 3 * size_t(j);
      const double dx = xj[0] - xi, dy = xj[1] - yi, dz = xj[2] - zi;
      double *vector = edge_vectors + 3 * n;
      vector[0] = dx;
      vector[1] = dy;
      vector[2] = dz;
      neighbor_atom[n] = j;
      n += dx * dx + dy * dy + dz * dz < cutoff_squared;
    }
  }
  first_edge_[n_centers_] = n;
  if (rows_are_atoms_) return;
  grow(neighbor_row_, n);
  for (int64_t k = 0; k < n; ++k) neighbor_row_[k] = row_of_atom_[neighbor_atom_[k]];
}

void PairMLFFD::evaluate() {
  const int64_t n_edges = first_edge_[n_centers_];
  grow(gradient_, 3 * n_edges + 1);
  grow(atomic_energies_, n_centers_ + 1);
  const mlffd_edges edges{
      n_rows_, n_centers_, n_edges, species_idx_.data(), first_edge_.data(),
      rows_are_atoms_ ? neighbor_atom_.data() : neighbor_row_.data(), edge_vectors_.data(), 0};
  const mlffd_exchange through_lammps{this, to_ghosts, to_owners};
  char message[512] = "";
  const int failed = mlffd_evaluate_pairs(
      student_.get(), &edges, comm->nprocs > 1 ? &through_lammps : nullptr,
      n_threads_ ? n_threads_ : comm->nthreads, atomic_energies_.data(), gradient_.data(), message,
      sizeof message);
  if (failed) fail_alone(message);
}

void PairMLFFD::look_out() {
  guard_.check(
      {n_centers_, list->ilist, first_edge_.data(), neighbor_atom_.data(), edge_vectors_.data(),
       gradient_.data()});
}

void PairMLFFD::convert_units() {
  if (energy_unit_ == 1.0) return;
  for (int k = 0; k < n_centers_; ++k) atomic_energies_[k] *= energy_unit_;
  for (int64_t k = 0; k < 3 * first_edge_[n_centers_]; ++k) gradient_[k] *= energy_unit_;
}

// Returns a sum that is finite if all forces are.
double PairMLFFD::add_forces() {
  double *f = n_centers_ ? atom->f[0] : nullptr, sum = 0.0;
  const int32_t *neighbor_atom = neighbor_atom_.data();
  for (int k = 0; k < n_centers_; ++k) {
    double fx = 0.0, fy = 0.0, fz = 0.0;
    const int64_t end = first_edge_[k + 1];
    for (int64_t n = first_edge_[k]; n < end; ++n) {
      const double *g = gradient_.data() + 3 * n;
      double *fj = f + 3 * size_t(neighbor_atom[n]);
      fx += g[0];
      fy += g[1];
      fz += g[2];
      fj[0] -= g[0];
      fj[1] -= g[1];
      fj[2] -= g[2];
    }
    double *fi = f + 3 * size_t(list->ilist[k]);
    fi[0] += fx;
    fi[1] += fy;
    fi[2] += fz;
    sum += fx + fy + fz;
  }
  return sum;
}

// An atom that fix gcmc tries to do without is not even in group all until that is decided.
void PairMLFFD::tally_energies() {
  for (int k = 0; k < n_centers_; ++k) {
    if (!(atom->mask[list->ilist[k]] & 1)) continue;
    if (eflag_global) eng_vdwl += atomic_energies_[k];
    if (eflag_atom) eatom[list->ilist[k]] += atomic_energies_[k];
  }
}

// -r (x) dE/dr of an edge. In stress/atom half of it belongs to either end, as with a pair potential. In
// centroid/stress/atom all of it belongs to the neighbor, whom the energy of the center pulls: the form that
// gives the heat flux of a many-body potential (Fan et al., Phys. Rev. B 92, 094301, 2015).
void PairMLFFD::tally_virial() {
  static const int a[9] = {0, 1, 2, 0, 0, 1, 1, 2, 2}, b[9] = {0, 1, 2, 1, 2, 2, 0, 0, 1};
  for (int k = 0; k < n_centers_; ++k)
    for (int64_t n = first_edge_[k]; n < first_edge_[k + 1]; ++n) {
      const int i = list->ilist[k], j = neighbor_atom_[n];
      for (int m = 0; m < 9; ++m) {
        const double v = -edge_vectors_[3 * n + a[m]] * gradient_[3 * n + b[m]];
        if (cvflag_atom) cvatom[j][m] += v;
        if (m >= 6) continue;
        if (vflag_global && !vflag_fdotr) virial[m] += v;
        if (vflag_atom) vatom[i][m] += 0.5 * v, vatom[j][m] += 0.5 * v;
      }
    }
}

// ---- message passing: ghosts get their owners' rows, or add theirs to the owners' ----

void PairMLFFD::to_ghosts(void *pair, void *rows, int n_per_row, int bytes_per_value) {
  static_cast<PairMLFFD *>(pair)->exchange({static_cast<char *>(rows), n_per_row, bytes_per_value}, true);
}

void PairMLFFD::to_owners(void *pair, void *rows, int n_per_row, int bytes_per_value) {
  static_cast<PairMLFFD *>(pair)->exchange({static_cast<char *>(rows), n_per_row, bytes_per_value}, false);
}

void PairMLFFD::exchange(const Rows &rows, bool from_owners) {
  const int forward_before = comm_forward, reverse_before = comm_reverse;
  rows_ = rows;
  comm_forward = comm_reverse = rows.doubles();  // what LAMMPS sends; there is room for the widest
  if (from_owners)
    comm->forward_comm(this);
  else
    comm->reverse_comm(this);
  comm_forward = forward_before;
  comm_reverse = reverse_before;
}

int PairMLFFD::pack_forward_comm(int n, int *atoms, double *buffer, int, int *) {
  const size_t size = rows_.doubles();
  for (int k = 0; k < n; ++k) memcpy(buffer + k * size, row(atoms[k]), rows_.bytes());
  return int(n * size);
}

void PairMLFFD::unpack_forward_comm(int n, int first, double *buffer) {
  const size_t size = rows_.doubles();
  for (int k = 0; k < n; ++k) memcpy(row(first + k), buffer + k * size, rows_.bytes());
}

int PairMLFFD::pack_reverse_comm(int n, int first, double *buffer) {
  const size_t size = rows_.doubles();
  for (int k = 0; k < n; ++k) memcpy(buffer + k * size, row(first + k), rows_.bytes());
  return int(n * size);
}

template <class T>
static void add(char *row, const double *received, int n) {
  T *sum = reinterpret_cast<T *>(row);
  const T *values = reinterpret_cast<const T *>(received);
  for (int k = 0; k < n; ++k) sum[k] += values[k];
}

void PairMLFFD::unpack_reverse_comm(int n, int *atoms, double *buffer) {
  for (int k = 0; k < n; ++k) {
    const double *received = buffer + size_t(k) * rows_.doubles();
    if (rows_.bytes_per_value == 4)
      add<float>(row(atoms[k]), received, rows_.n_per_row);
    else
      add<double>(row(atoms[k]), received, rows_.n_per_row);
  }
}

double PairMLFFD::memory_usage() {
  return Pair::memory_usage() + sizeof(double) * double(edge_vectors_.size() + gradient_.size()) +
         sizeof(int32_t) * double(neighbor_atom_.size() + neighbor_row_.size() + 3 * species_idx_.size());
}

}  // namespace mlffd
