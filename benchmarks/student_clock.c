/* SPDX-License-Identifier: MIT
 *
 * Preloaded into a program: what CPU time it spends in mlffd_evaluate_pairs, which is the student, and in all.
 * STUDENT_LIBRARY is the path of libmlffd.so; when the program ends, a line goes to the file STUDENT_CLOCK:
 * evaluations, seconds from the end of the first WARM_UP of them to the end of the last, seconds in the student. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "mlffd.h"

static double seconds, all_seconds;
static long n_calls;

static double cpu_seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

int mlffd_evaluate_pairs(
    mlffd_student *student, const mlffd_edges *edges, const mlffd_exchange *exchange, int n_threads,
    double *atomic_energies, double *gradient, char *message, size_t message_size) {
  static __typeof__(mlffd_evaluate_pairs) *evaluate;
  static double first;
  if (!evaluate) {
    void *library = dlopen(getenv("STUDENT_LIBRARY"), RTLD_LAZY | RTLD_NOLOAD);
    evaluate = library ? (__typeof__(evaluate))dlsym(library, "mlffd_evaluate_pairs") : 0;
    if (!evaluate) abort();
  }
  const double begin = cpu_seconds();
  const int failed = evaluate(
      student, edges, exchange, n_threads, atomic_energies, gradient, message, message_size);
  const double end = cpu_seconds();
  if (++n_calls == WARM_UP) first = end;
  if (n_calls > WARM_UP) seconds += end - begin, all_seconds = end - first;
  return failed;
}

__attribute__((destructor)) static void report(void) {
  if (n_calls <= WARM_UP) return;
  FILE *file = fopen(getenv("STUDENT_CLOCK"), "w");
  if (!file) return;
  fprintf(file, "%ld %.9g %.9g\n", n_calls - WARM_UP, all_seconds, seconds);
  fclose(file);
}
