// SPDX-License-Identifier: MIT
// The C interface (mlffd.h): picks the instruction set, keeps C++ exceptions inside, checks sizes.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "kernel.hpp"

using mlffd::Block;
using mlffd::fail;
using mlffd::Kernel;

struct mlffd_student {
  std::unique_ptr<Kernel> kernel;
  std::string instructions, verdict;
  std::vector<int> species;
  double cutoff = 0.0, largest_pair_force = INFINITY;
  std::vector<double> shortest, fewest, most;  // (n_species, n_species)
  int n_layers = 1;
  std::mutex turn;  // kernels keep their workspace
};

namespace {

constexpr int64_t centers_per_thread = 16;  // with fewer, a thread more costs more than it brings

struct InstructionSet {
  const char *name;
  Kernel *(*make_kernel)(const Block &, int);
  bool supported;
};

// the best first
std::vector<InstructionSet> instruction_sets() {
  std::vector<InstructionSet> sets;
#ifdef MLFFD_X86
  __builtin_cpu_init();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  sets.push_back({"avx512", mlffd::avx512::make_kernel, avx512 && avx2});
  sets.push_back({"avx2", mlffd::avx2::make_kernel, avx2});
#endif
  sets.push_back({"baseline", mlffd::baseline::make_kernel, true});
  return sets;
}

InstructionSet chosen(const char *instructions) {
  std::string wanted = instructions ? instructions : "auto", said_by = "instructions";
  const char *variable = getenv("MLFFD_INSTRUCTIONS");
  if (wanted == "auto" && variable && *variable) {
    wanted = variable;
    said_by = "MLFFD_INSTRUCTIONS";
  }
  std::string known;
  for (const InstructionSet &set : instruction_sets()) {
    if (wanted == "auto" ? set.supported : wanted == set.name) {
      if (!set.supported)
        fail("this processor has no %s, which %s asks for", set.name, said_by.c_str());
      return set;
    }
    known += std::string(", ") + set.name;
  }
  fail("%s may be auto%s, not %s", said_by.c_str(), known.c_str(), wanted.c_str());
}

std::vector<double> array_or(const Block &block, const char *name, size_t n_values, double otherwise) {
  if (!block.has(name)) return std::vector<double>(n_values, otherwise);
  const double *values = block.array(name, n_values);
  return std::vector<double>(values, values + n_values);
}

// One byte a value; what is no letter becomes a blank, so that it is one line whoever has written it.
std::string text_or_nothing(const Block &block, const char *name) {
  if (!block.has(name)) return "";
  const size_t n_bytes = block.count(name);
  const double *values = block.array(name, n_bytes);
  std::string text;
  for (size_t k = 0; k < n_bytes; ++k) text += values[k] > 31.0 && values[k] < 256.0 ? char(int(values[k])) : ' ';
  return text;
}

void read_facts(const Block &block, mlffd_student &student) {
  const size_t n_species = block.count("species_numbers");
  if (n_species < 1 || n_species > 118) fail("the weight block has %zu species", n_species);
  const double *species = block.array("species_numbers", n_species);
  for (size_t k = 0; k < n_species; ++k) {
    const bool is_element = species[k] >= 1.0 && species[k] <= 118.0 && species[k] == std::floor(species[k]);
    if (!is_element || std::count(species, species + k, species[k]))
      fail("species %g is no atomic number, or there twice", species[k]);
    student.species.push_back(int(species[k]));
  }
  student.cutoff = block.number("cutoff_radius");
  if (!(student.cutoff > 0.0)) fail("the cutoff is %g", student.cutoff);
  student.shortest = array_or(block, "guard.shortest", n_species * n_species, 0.0);
  student.fewest = array_or(block, "guard.fewest", n_species * n_species, 0.0);
  student.most = array_or(block, "guard.most", n_species * n_species, INFINITY);
  if (block.has("guard.largest_pair_force"))
    student.largest_pair_force = block.number("guard.largest_pair_force");
  student.verdict = text_or_nothing(block, "verdict");
  if (block.has("architecture.layers")) student.n_layers = block.integer("architecture.layers", 1, 16);
}

void check(const mlffd_edges &edges, size_t n_species) {
  if (edges.n_atoms < 0 || edges.n_edges < 0 || edges.n_centers < 0 || edges.n_centers > edges.n_atoms)
    fail("numbers of atoms, centers and edges do not fit together");
  if (edges.n_atoms > INT32_MAX || edges.n_edges > INT32_MAX) fail("more than 2^31 atoms or edges");
  if (edges.symmetric && edges.n_centers != edges.n_atoms) fail("edges with ghosts are not symmetric");
  if (edges.first_edge[0] != 0 || edges.first_edge[edges.n_centers] != edges.n_edges)
    fail("first_edge does not span all edges");
  for (int64_t i = 0; i < edges.n_centers; ++i)
    if (edges.first_edge[i] > edges.first_edge[i + 1]) fail("first_edge falls at center %lld", (long long)i);
  for (int64_t k = 0; k < edges.n_edges; ++k)
    if (uint32_t(edges.neighbor[k]) >= uint32_t(edges.n_atoms))
      fail("edge %lld names atom %d, which there is not", (long long)k, edges.neighbor[k]);
  for (int64_t i = 0; i < edges.n_atoms; ++i)
    if (uint32_t(edges.species_idx[i]) >= n_species)
      fail("atom %lld has the species index %d, which there is not", (long long)i, edges.species_idx[i]);
}

// Runs `work`; an exception becomes a message and `false`.
template <class Work>
bool succeeds(Work work, char *message, size_t message_size) {
  try {
    work();
    return true;
  } catch (const std::exception &error) {
    if (message && message_size) snprintf(message, message_size, "%s", error.what());
  } catch (...) {
    if (message && message_size) snprintf(message, message_size, "unknown error");
  }
  return false;
}

}  // namespace

extern "C" {

mlffd_student *mlffd_create(
    const void *block_bytes, size_t n_bytes, int precision, const char *instructions, char *message,
    size_t message_size) {
  std::unique_ptr<mlffd_student> student;
  const bool created = succeeds(
      [&] {
        if (precision != 32 && precision != 64) fail("precision is 32 or 64, not %d", precision);
        const Block block(block_bytes, n_bytes);
        const InstructionSet set = chosen(instructions);
        student = std::make_unique<mlffd_student>();
        read_facts(block, *student);
        student->kernel.reset(set.make_kernel(block, precision));
        student->instructions = set.name;
      },
      message, message_size);
  return created ? student.release() : nullptr;
}

void mlffd_destroy(mlffd_student *student) { delete student; }

double mlffd_cutoff(const mlffd_student *student) { return student->cutoff; }
int mlffd_n_layers(const mlffd_student *student) { return student->n_layers; }
int mlffd_n_species(const mlffd_student *student) { return int(student->species.size()); }
const int *mlffd_species(const mlffd_student *student) { return student->species.data(); }
const char *mlffd_instructions(const mlffd_student *student) { return student->instructions.c_str(); }
int mlffd_interface(void) { return MLFFD_INTERFACE; }
const char *mlffd_verdict(const mlffd_student *student) { return student->verdict.c_str(); }

mlffd_limits mlffd_trained_limits(const mlffd_student *student) {
  return {student->shortest.data(), student->fewest.data(), student->most.data(), student->largest_pair_force};
}

int mlffd_evaluate_pairs(
    mlffd_student *student, const mlffd_edges *edges, const mlffd_exchange *exchange, int n_threads,
    double *atomic_energies, double *gradient, char *message, size_t message_size) {
  const bool evaluated = succeeds(
      [&] {
        const std::lock_guard<std::mutex> lock(student->turn);
        check(*edges, student->species.size());
        const int64_t useful = 1 + edges->n_centers / centers_per_thread;
        const int n = int(std::max<int64_t>(1, std::min<int64_t>(n_threads, useful)));
        student->kernel->evaluate(*edges, exchange, n, atomic_energies, gradient);
      },
      message, message_size);
  return evaluated ? 0 : 1;
}

void mlffd_edge_vectors(
    int64_t n_systems, const int64_t *first_atom, const int64_t *first_edge, const int32_t *neighbor,
    const int32_t *cell_shifts, const double *positions, const double *cells, double *edge_vectors) {
  double *__restrict vectors = edge_vectors;
  for (int64_t system = 0; system < n_systems; ++system) {
    double cell[9];
    memcpy(cell, cells + 9 * system, sizeof cell);
    for (int64_t i = first_atom[system]; i < first_atom[system + 1]; ++i) {
      const double own[3] = {positions[3 * i], positions[3 * i + 1], positions[3 * i + 2]};
      for (int64_t k = first_edge[i]; k < first_edge[i + 1]; ++k) {
        const double *other = positions + 3 * int64_t(neighbor[k]);
        const double a = cell_shifts[3 * k], b = cell_shifts[3 * k + 1], c = cell_shifts[3 * k + 2];
        // the difference first: an edge and its reverse are then exactly opposite
        for (int axis = 0; axis < 3; ++axis)
          vectors[3 * k + axis] =
              (other[axis] - own[axis]) + (a * cell[axis] + b * cell[3 + axis] + c * cell[6 + axis]);
      }
    }
  }
}

void mlffd_sum_forces(
    int64_t n_systems, const int64_t *first_atom, const int64_t *first_edge, const int32_t *neighbor,
    const double *edge_vectors, const double *gradient, double *forces, double *virials) {
  double *__restrict total = forces;
  memset(total, 0, sizeof(double) * 3 * size_t(first_atom[n_systems]));
  for (int64_t system = 0; system < n_systems; ++system) {
    double virial[9] = {};
    for (int64_t i = first_atom[system]; i < first_atom[system + 1]; ++i) {
      double own[3] = {};
      for (int64_t k = first_edge[i]; k < first_edge[i + 1]; ++k) {
        const double *g = gradient + 3 * k, *r = edge_vectors + 3 * k;
        double *other = total + 3 * int64_t(neighbor[k]);
        for (int a = 0; a < 3; ++a) {
          own[a] += g[a];
          other[a] -= g[a];
          for (int b = 0; b < 3; ++b) virial[3 * a + b] -= r[a] * g[b];
        }
      }
      for (int a = 0; a < 3; ++a) total[3 * i + a] += own[a];
    }
    memcpy(virials + 9 * system, virial, sizeof virial);
  }
}

}  // extern "C"
