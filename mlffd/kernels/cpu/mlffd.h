/* SPDX-License-Identifier: MIT
 *
 * The kernels without Python: a student made from a weight block, and its energies and pair forces.
 *
 * A weight block is what `mlffd lammps export BUNDLE -o FILE.weights` writes. Lengths are in Angstrom, energies
 * in eV. Functions that can fail return NULL or a number other than 0 and write one line into `message`.
 * One student may be used by several threads; they take turns.
 */
#ifndef MLFFD_H
#define MLFFD_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#if defined(__GNUC__)
#pragma GCC visibility push(default)
#endif

#define MLFFD_INTERFACE 2 /* changes whenever a declaration below does */

typedef struct mlffd_student mlffd_student;

/* Atoms and the neighbors of the first n_centers of them; the rest are ghosts. Edges are sorted by center.
 * Edges longer than the cutoff may be among them (a list with a skin): they count for nothing. */
typedef struct {
  int64_t n_atoms, n_centers, n_edges;
  const int32_t *species_idx;  /* (n_atoms,) index into the student's species */
  const int64_t *first_edge;   /* (n_centers + 1,) edges of center i: first_edge[i] to first_edge[i + 1] */
  const int32_t *neighbor;     /* (n_edges,) index of an atom */
  const double *edge_vectors;  /* (n_edges, 3) position of the neighbor minus that of the center */
  int symmetric;               /* 1: every edge has its reverse among the edges, with exactly the opposite vector.
                                  Message passing is then faster, and an edge and its reverse may carry each
                                  other's share of the gradient; forces and virial are the same. Not with ghosts. */
} mlffd_edges;

/* How the rows of ghost atoms get their owners' values, and hand gradients back (MPI). `rows` has n_atoms rows
 * of n_per_row values, floats or doubles as bytes_per_value (4 or 8) says. A student that passes messages calls
 * each of them n_layers - 1 times in an evaluation, also where there are no atoms or no ghosts, so that they may
 * be collective: every rank has to evaluate. */
typedef struct {
  void *context;
  void (*forward)(void *context, void *rows, int n_per_row, int bytes_per_value);  /* owners to ghosts: copy */
  void (*reverse)(void *context, void *rows, int n_per_row, int bytes_per_value);  /* ghosts to owners: add */
} mlffd_exchange;

/* precision: 32 or 64 bits; instructions: "auto", "baseline", "avx2" or "avx512". NULL on failure. */
mlffd_student *mlffd_create(
    const void *block, size_t n_bytes, int precision, const char *instructions, char *message,
    size_t message_size);
void mlffd_destroy(mlffd_student *student);

double mlffd_cutoff(const mlffd_student *student);
int mlffd_n_layers(const mlffd_student *student);      /* more than 1: messages are passed */
int mlffd_n_species(const mlffd_student *student);
const int *mlffd_species(const mlffd_student *student); /* atomic numbers, (n_species,) */
const char *mlffd_instructions(const mlffd_student *student); /* the set that is used */
int mlffd_interface(void);                              /* MLFFD_INTERFACE of the library */

/* Limits of what the student was trained on, margins included; evaluate_pairs does not look at them. */
typedef struct {
  const double *shortest;      /* (n_species, n_species) least distances in Angstrom; 0 where nothing is known */
  const double *fewest, *most; /* (n_species, n_species) neighbors within the cutoff, row: of the center */
  double largest_pair_force;   /* |dE/d(edge vector)| in eV/Angstrom; infinite where nothing is known */
} mlffd_limits;

mlffd_limits mlffd_trained_limits(const mlffd_student *student);

/* One line of UTF-8 on whether to believe the student: its name, and what its fidelity report said when the
 * block was written; empty where the block has none. */
const char *mlffd_verdict(const mlffd_student *student);

/* Energies of the centers (n_centers,) and dE/d(edge_vectors) (n_edges, 3), E their sum.
 * `exchange` may be NULL; a student that passes messages needs it where there are ghosts.
 * Returns 0, or 1 with a message. */
int mlffd_evaluate_pairs(
    mlffd_student *student, const mlffd_edges *edges, const mlffd_exchange *exchange, int n_threads,
    double *atomic_energies, double *gradient, char *message, size_t message_size);

/* What a program needs around evaluate_pairs when it holds positions; systems of a batch lie one after the
 * other, atoms of system k from first_atom[k] to first_atom[k + 1]. */

/* positions[j] - positions[i] + cell_shifts @ cell, exactly opposite for an edge and its reverse. */
void mlffd_edge_vectors(
    int64_t n_systems, const int64_t *first_atom, /* (n_systems + 1,) */
    const int64_t *first_edge, const int32_t *neighbor,
    const int32_t *cell_shifts,                   /* (n_edges, 3) */
    const double *positions,                      /* (n_atoms, 3) */
    const double *cells,                          /* (n_systems, 3, 3), rows are lattice vectors */
    double *edge_vectors);                        /* (n_edges, 3), written */

/* Forces (n_atoms, 3) and virials -sum r (x) dE/dr (n_systems, 3, 3) from the pair gradient (n_edges, 3). */
void mlffd_sum_forces(
    int64_t n_systems, const int64_t *first_atom, const int64_t *first_edge, const int32_t *neighbor,
    const double *edge_vectors, const double *gradient, double *forces, double *virials);

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif
#ifdef __cplusplus
}
#endif
#endif
