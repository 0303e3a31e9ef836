/* SPDX-License-Identifier: MIT
 * A program without Python that evaluates a student through mlffd.h:
 *   cpu_program BLOCK GRAPH PRECISION INSTRUCTIONS THREADS RESULT
 * GRAPH: n_atoms, n_centers, n_edges, symmetric (int64), then species_idx, first_edge, neighbor, edge_vectors.
 * RESULT: atomic energies, then the gradient.
 * Every array has a block of memory to itself, so that a checker sees the first value read past its end.
 */
#include <stdio.h>
#include <stdlib.h>

#include "mlffd.h"

static void *read_values(FILE *file, size_t n, size_t size) {
  void *values = malloc(n * size + (n == 0));
  if (!values || fread(values, size, n, file) != n) exit(2);
  return values;
}

static void *read_file(const char *path, size_t *n_bytes) {
  FILE *file = fopen(path, "rb");
  if (!file) exit(2);
  fseek(file, 0, SEEK_END);
  *n_bytes = (size_t)ftell(file);
  rewind(file);
  void *bytes = read_values(file, *n_bytes, 1);
  fclose(file);
  return bytes;
}

int main(int n_arguments, char **arguments) {
  if (n_arguments != 7) return 2;
  char message[512] = "";
  size_t n_bytes;
  void *block = read_file(arguments[1], &n_bytes);
  mlffd_student *student =
      mlffd_create(block, n_bytes, atoi(arguments[3]), arguments[4], message, sizeof message);
  free(block);
  if (!student) {
    fprintf(stderr, "%s\n", message);
    return 1;
  }
  FILE *file = fopen(arguments[2], "rb");
  if (!file) return 2;
  int64_t *sizes = read_values(file, 4, sizeof *sizes);
  mlffd_edges edges = {sizes[0], sizes[1], sizes[2]};
  edges.species_idx = read_values(file, (size_t)edges.n_atoms, sizeof(int32_t));
  edges.first_edge = read_values(file, (size_t)edges.n_centers + 1, sizeof(int64_t));
  edges.neighbor = read_values(file, (size_t)edges.n_edges, sizeof(int32_t));
  edges.edge_vectors = read_values(file, 3 * (size_t)edges.n_edges, sizeof(double));
  edges.symmetric = (int)sizes[3];
  fclose(file);
  double *energies = malloc((size_t)edges.n_centers * sizeof(double) + 1);
  double *gradient = malloc(3 * (size_t)edges.n_edges * sizeof(double) + 1);
  if (mlffd_evaluate_pairs(student, &edges, NULL, atoi(arguments[5]), energies, gradient, message,
                           sizeof message)) {
    fprintf(stderr, "%s\n", message);
    return 1;
  }
  file = fopen(arguments[6], "wb");
  if (!file) return 2;
  fwrite(energies, sizeof(double), (size_t)edges.n_centers, file);
  fwrite(gradient, sizeof(double), 3 * (size_t)edges.n_edges, file);
  fclose(file);
  mlffd_destroy(student);
  free(sizes);
  free((void *)edges.species_idx);
  free((void *)edges.first_edge);
  free((void *)edges.neighbor);
  free((void *)edges.edge_vectors);
  free(energies);
  free(gradient);
  return 0;
}
