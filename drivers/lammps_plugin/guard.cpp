// SPDX-License-Identifier: MIT
#include "guard.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "atom.h"
#include "comm.h"
#include "domain.h"
#include "error.h"
#include "update.h"
#include "utils.h"

using namespace LAMMPS_NS;

namespace mlffd {

namespace {

constexpr int looks_per_count = 10;
const char *const POLICIES[] = {"off", "warn", "stop", "collect"};

std::string text(const char *format, double value) {
  char buffer[64];
  snprintf(buffer, sizeof buffer, format, value);
  return buffer;
}

// A variable's value; -1 if it is no positive whole number.
int positive(const char *variable, int otherwise) {
  const char *value = getenv(variable);
  if (!value) return otherwise;
  const size_t n = strlen(value);
  return n > 0 && n < 9 && strspn(value, "0123456789") == n && atoi(value) > 0 ? atoi(value) : -1;
}

// 1, 10, 100, ...: so often one wants to hear of the same thing.
bool is_round(bigint n) {
  while (n % 10 == 0) n /= 10;
  return n == 1;
}

}  // namespace

// ---- what the user wants ----

void Guard::read_environment() {
  rank_ = comm->me;
  const char *variables[] = {"MLFFD_GUARD", "MLFFD_GUARD_EVERY", "MLFFD_GUARD_FRAMES"};
  const char *policy = getenv(variables[0]), *file = getenv("MLFFD_GUARD_FILE");
  int values[] = {
      policy && !set_policy(policy) ? -1 : policy_, positive(variables[1], 10), positive(variables[2], 100)};
  char name[1024];
  snprintf(name, sizeof name, "%s", file && *file ? file : "guard.extxyz");
  MPI_Bcast(values, 3, MPI_INT, 0, world);  // mpiexec may leave other ranks without the variables
  MPI_Bcast(name, sizeof name, MPI_CHAR, 0, world);
  for (int k = 0; k < 3; ++k)
    if (values[k] < 0)
      error->all(
          FLERR, std::string(variables[k]) + " must be " +
                     (k == 0 ? "off, warn, stop or collect" : "a positive whole number"));
  policy_ = Policy(values[0]);
  every_ = values[1];
  n_frames_ = values[2];
  file_ = name;
}

bool Guard::set_policy(const std::string &word) {
  for (int k = 0; k < 4; ++k)
    if (word == POLICIES[k]) {
      policy_ = Policy(k);
      return true;
    }
  return false;
}

void Guard::watch(
    const mlffd_student *student, const std::vector<int32_t> &species_of_type,
    const std::vector<std::string> &symbols) {
  species_of_type_ = species_of_type;
  symbols_ = symbols;
  n_species_ = mlffd_n_species(student);
  const mlffd_limits limits = mlffd_trained_limits(student);
  const size_t n_pairs = n_species_ * n_species_;
  least_squares_.assign(limits.shortest, limits.shortest + n_pairs);
  for (double &value : least_squares_) value *= value;
  fewest_.assign(limits.fewest, limits.fewest + n_pairs);
  most_.assign(limits.most, limits.most + n_pairs);
  largest_pair_force_ = limits.largest_pair_force;
  species_.assign(n_species_, "");
  for (size_t type = 1; type < symbols.size(); ++type)
    if (symbols[type] != "X") species_[species_of_type[type]] = symbols[type];
}

// ---- an evaluation ----

void Guard::check(const Pairs &pairs) {
  if (policy_ == OFF || !is_due()) return;
  ++n_checked_;
  const Found found = look(pairs);
  struct {
    double excess;
    int rank;
  } mine{found.excess, rank_}, worst{};
  MPI_Allreduce(&mine, &worst, 1, MPI_DOUBLE_INT, MPI_MAXLOC, world);
  if (worst.excess > 1.0) act(found, worst.rank);
}

// Every n-th evaluation, and any that does not follow the step before: the first of a run, frames of rerun.
bool Guard::is_due() {
  const bool goes_on = update->ntimestep == last_step_ + 1;
  last_step_ = update->ntimestep;
  if (goes_on && ++n_skipped_ < every_) return false;
  n_skipped_ = 0;
  n_looks_ = goes_on ? n_looks_ + 1 : 0;
  return true;
}

Guard::Found Guard::look(const Pairs &pairs) const {
  Found worst;
  double distance_excess = 1.0, force_excess = 1.0;  // squares
  const double force_limit = largest_pair_force_ * largest_pair_force_;
  for (int k = 0; k < pairs.n_centers; ++k) {
    const int i = pairs.center[k];
    const double *limits = least_squares_.data() + n_species_ * species_of_type_[atom->type[i]];
    for (int64_t n = pairs.first_edge[k]; n < pairs.first_edge[k + 1]; ++n) {
      const int j = pairs.neighbor[n];
      const double *r = pairs.vectors + 3 * n, *g = pairs.gradient + 3 * n;
      const double distance = r[0] * r[0] + r[1] * r[1] + r[2] * r[2];
      const double force = g[0] * g[0] + g[1] * g[1] + g[2] * g[2];
      const double limit = limits[species_of_type_[atom->type[j]]];
      if (limit > distance_excess * distance) {
        distance_excess = limit / distance;
        if (distance_excess > worst.excess * worst.excess)
          worst = {std::sqrt(distance_excess), std::sqrt(distance), std::sqrt(limit), i, j, DISTANCE};
      }
      if (force > force_excess * force_limit) {
        force_excess = force / force_limit;
        if (force_excess > worst.excess * worst.excess)
          worst = {std::sqrt(force_excess), std::sqrt(force), largest_pair_force_, i, j, FORCE};
      }
    }
  }
  if (n_looks_ % looks_per_count == 0) count_neighbors(pairs, worst);
  return worst;
}

// Atoms without any neighbor are left out, as in the routes with Python, which cannot tell whose they are.
void Guard::count_neighbors(const Pairs &pairs, Found &worst) const {
  std::vector<int> counts(n_species_);
  for (int k = 0; k < pairs.n_centers; ++k) {
    if (pairs.first_edge[k] == pairs.first_edge[k + 1]) continue;
    std::fill(counts.begin(), counts.end(), 0);
    for (int64_t n = pairs.first_edge[k]; n < pairs.first_edge[k + 1]; ++n)
      ++counts[species_of_type_[atom->type[pairs.neighbor[n]]]];
    const size_t row = n_species_ * species_of_type_[atom->type[pairs.center[k]]];
    for (size_t s = 0; s < n_species_; ++s) {
      const double fewest = fewest_[row + s], most = most_[row + s], count = counts[s];
      if (count < fewest && fewest / std::max(count, 0.5) > worst.excess)
        worst = {fewest / std::max(count, 0.5), count, fewest, pairs.center[k], int(s), NEIGHBORS};
      if (count > most && count / most > worst.excess)
        worst = {count / most, count, most, pairs.center[k], int(s), NEIGHBORS};
    }
  }
}

// What was found is that of `rank`; all ranks take part.
void Guard::act(const Found &found, int rank) {
  char what[512] = "";
  double excess = found.excess;
  if (rank == rank_) snprintf(what, sizeof what, "%s", describe(found).c_str());
  MPI_Bcast(what, sizeof what, MPI_CHAR, rank, world);
  MPI_Bcast(&excess, 1, MPI_DOUBLE, rank, world);
  const std::string flag = "step " + std::to_string(update->ntimestep) + ": " + what;
  if (++n_flagged_ == 1) first_step_ = update->ntimestep;
  if (excess > worst_excess_) worst_excess_ = excess, worst_ = flag;
  std::string written;
  if (policy_ == STOP || (policy_ == COLLECT && n_gathered_ < n_frames_)) written = write_frame(flag);
  if (policy_ == STOP) {
    n_checked_ = 0;  // the error says it all
    error->all(FLERR, "mlffd: guard: " + flag + ": outside of what the student was trained on" + written);
  }
  if (rank_ == 0 && is_round(n_flagged_))
    error->warning(
        FLERR, "mlffd: guard: " + flag + written + " (flagged: " + std::to_string(n_flagged_) + ")");
}

std::string Guard::describe(const Found &found) const {
  const auto name = [this](int i) { return symbols_[atom->type[i]] + " " + std::to_string(atom->tag[i]); };
  if (found.kind == NEIGHBORS)
    return name(found.i) + " has " + text("%.0f", found.value) + " neighbors " + species_[found.j] +
           (found.value < found.limit ? ", fewer than " : ", more than ") + text("%.1f", found.limit);
  const std::string both = name(found.i) + " and " + name(found.j);
  if (found.kind == FORCE)
    return "the force between " + both + " is " + text("%.4g", found.value) + " eV/A, more than " +
           text("%.4g", found.limit) + " eV/A";
  return both + " are " + text("%.3f", found.value) + " A apart, less than " + text("%.3f", found.limit) +
         " A";
}

// ---- frames ----

// All atoms to the first rank, which adds them to the file in the order of their ids.
std::string Guard::write_frame(const std::string &why) {
  std::vector<double> own, all;  // five numbers an atom: id, type, position
  for (int i = 0; i < atom->nlocal; ++i) {
    const double *x = atom->x[i];
    own.insert(own.end(), {double(atom->tag[i]), double(atom->type[i]), x[0], x[1], x[2]});
  }
  const int n_own = int(own.size());
  std::vector<int> sizes(comm->nprocs), starts(comm->nprocs, 0);
  MPI_Gather(&n_own, 1, MPI_INT, sizes.data(), 1, MPI_INT, 0, world);
  for (int k = 1; k < comm->nprocs; ++k) starts[k] = starts[k - 1] + sizes[k - 1];
  if (rank_ == 0) all.resize(starts.back() + sizes.back());
  MPI_Gatherv(
      own.data(), n_own, MPI_DOUBLE, all.data(), sizes.data(), starts.data(), MPI_DOUBLE, 0, world);
  ++n_gathered_;
  return rank_ == 0 ? append(all, why) : "";
}

std::string Guard::append(const std::vector<double> &rows, const std::string &why) {
  FILE *stream = fopen(file_.c_str(), "a");
  if (!stream) return "; the frame cannot be written to " + file_ + ": " + strerror(errno);
  std::vector<const double *> atoms;
  for (size_t k = 0; k < rows.size(); k += 5) atoms.push_back(rows.data() + k);
  std::sort(atoms.begin(), atoms.end(), [](const double *a, const double *b) { return a[0] < b[0]; });
  const double *h = domain->h, *origin = domain->boxlo;  // xx yy zz yz xz xy
  fprintf(
      stream, "%zu\nLattice=\"%.12g 0 0 %.12g %.12g 0 %.12g %.12g %.12g\" ", atoms.size(), h[0], h[5], h[1],
      h[4], h[3], h[2]);
  const std::string step = std::to_string(update->ntimestep);
  fprintf(stream, "Properties=species:S:1:pos:R:3:tag:I:1 step=%s ", step.c_str());
  fprintf(
      stream, "guard=\"%s\" pbc=\"%c %c %c\"\n", why.c_str(), domain->xperiodic ? 'T' : 'F',
      domain->yperiodic ? 'T' : 'F', domain->zperiodic ? 'T' : 'F');
  for (const double *a : atoms)
    fprintf(
        stream, "%-2s %.10g %.10g %.10g %.0f\n", symbols_[int(a[1])].c_str(), a[2] - origin[0],
        a[3] - origin[1], a[4] - origin[2], a[0]);
  const bool failed = ferror(stream) != 0;
  if (fclose(stream) || failed) return "; the frame could not be written to " + file_;
  ++n_written_;
  return "; frame in " + file_;
}

void Guard::summarize() {
  if (n_checked_ == 0 || rank_ != 0) return;
  std::string line = "mlffd: guard: " + std::to_string(n_flagged_) + " of " + std::to_string(n_checked_) +
                     " evaluations flagged";
  if (*std::max_element(least_squares_.begin(), least_squares_.end()) == 0.0)
    line += " (by pair forces alone, as the weights do not say what training saw: mlffd repair --labels)";
  if (n_flagged_) line += "; first at step " + std::to_string(first_step_) + "; worst at " + worst_;
  if (n_written_) line += "; " + std::to_string(n_written_) + " frames in " + file_;
  utils::logmesg(lmp, line + "\n");
}

}  // namespace mlffd
