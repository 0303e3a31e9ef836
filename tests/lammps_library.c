// SPDX-License-Identifier: MIT
// Stands in for LAMMPS' C library: three atoms, the last a ghost of the first. TAG is the type of atom ids.
#include <stdint.h>
#include <string.h>

static TAG tags[] = {7, (TAG)5000000000, 7};
static int types[] = {1, 2, 1}, periodicity[] = {1, 0, 1}, n_all = 3;
static double x[3][3] = {{1, 2, 3}, {4, 5, 6}, {11, 2, 3}}, *rows[] = {x[0], x[1], x[2]};
static double boxlo[] = {-1, -2, -3}, boxhi[] = {9, 10, 11}, xy = 0.5, xz = 0.25, yz = -0.5, skin = 2.0;
static int64_t step = 6000000000;
static char units[] = "metal";

int lammps_version(void *handle) { return 20260704; }
int lammps_config_has_mpi_support(void) { return 0; }
int lammps_get_mpi_comm(void *handle) { return -1; }

int lammps_extract_setting(void *handle, const char *name) {
  if (!strcmp(name, "tagint")) return sizeof(TAG);
  if (!strcmp(name, "bigint")) return sizeof(step);
  if (!strcmp(name, "nlocal")) return n_all ? 2 : 0;
  if (!strcmp(name, "nall")) return n_all;
  return !strcmp(name, "world_size") ? 1 : -1;
}

void *lammps_extract_atom(void *handle, const char *name) {
  if (!strcmp(name, "id")) return tags;
  if (!strcmp(name, "type")) return types;
  return n_all ? rows : 0;
}

void *lammps_extract_global(void *handle, const char *name) {
  static const char *const names[] = {"ntimestep", "units", "boxlo", "boxhi", "xy", "xz",
                                      "yz", "neigh_skin", "periodicity"};
  void *const values[] = {&step, units, boxlo, boxhi, &xy, &xz, &yz, &skin, periodicity};
  for (int k = 0; k < 9; ++k)
    if (!strcmp(name, names[k])) return values[k];
  return 0;
}

void take_ids_away(void) { memset(tags, 0, sizeof tags); }
void take_atoms_away(void) { n_all = 0; }
