// SPDX-License-Identifier: MIT
// What `plugin load` calls: checks that this is the LAMMPS it was built for, then adds pair_style mlffd.
#include <cstring>
#include <string>

#include "error.h"
#include "lammps.h"
#include "library.h"
#include "lmptype.h"
#include "pair_mlffd.h"

using LAMMPS_NS::LAMMPS;

namespace {

// LAMMPS' interface for plugins; its header lammpsplugin.h is not installed with the others.
struct PluginEntry {
  const char *version, *style, *name, *info, *author;
  void *(*create)(void *);
  void *handle;
};
using Register = void (*)(PluginEntry *, void *);

const char REMEDY[] = ": run `mlffd lammps plugin` again for this LAMMPS";

// MPI's types differ from family to family.
#if defined(OPEN_MPI)
const char MPI_FAMILY[] = "Open MPI";
#elif defined(MPI_STUBS)
const char MPI_FAMILY[] = "no MPI";
#else
const char MPI_FAMILY[] = "MPICH";  // or one of its relatives, which have many names
#endif

const char *mpi_family_of_lammps() {
  char version[MPI_MAX_LIBRARY_VERSION_STRING] = "";
  int length = 0;
  MPI_Get_library_version(version, &length);
  if (strstr(version, "Open MPI")) return "Open MPI";
  return strstr(version, "STUBS") ? "no MPI" : "MPICH";
}

// Empty, or why the plugin must not be used: classes laid out otherwise than LAMMPS' own crash or corrupt.
std::string why_not(void *lammps) {
  const int version = lammps_version(lammps);
  if (version != MLFFD_LAMMPS_VERSION)
    return "was built for LAMMPS " + std::to_string(MLFFD_LAMMPS_VERSION) + " and this is LAMMPS " +
           std::to_string(version) + REMEDY;
  if (lammps_extract_setting(lammps, "tagint") != int(sizeof(LAMMPS_NS::tagint)))
    return std::string("was built for other integer sizes than this LAMMPS: set CXXFLAGS=-DLAMMPS_") +
           (sizeof(LAMMPS_NS::tagint) == 4 ? "BIGBIG" : "SMALLBIG") + " and run `mlffd lammps plugin`";
  if (strcmp(mpi_family_of_lammps(), MPI_FAMILY) != 0)
    return std::string("was built with ") + MPI_FAMILY + ", and this LAMMPS with " + mpi_family_of_lammps() +
           REMEDY;
  if (mlffd_interface() != MLFFD_INTERFACE)
    return "needs interface " + std::to_string(MLFFD_INTERFACE) + " of libmlffd.so, which has " +
           std::to_string(mlffd_interface()) + REMEDY;
  return "";
}

void *create_pair(void *lammps) { return new mlffd::PairMLFFD(static_cast<LAMMPS *>(lammps)); }

}  // namespace

extern "C" void lammpsplugin_init(void *lammps, void *handle, void *register_function) {
  LAMMPS *lmp = static_cast<LAMMPS *>(lammps);
  const std::string fault = why_not(lammps);
  if (!fault.empty()) lmp->error->all(FLERR, "the plugin mlffd " + fault);
  PluginEntry entry{
      lmp->version, "pair", "mlffd", "students of mlffd, pair_style mlffd", "mlffd developers", create_pair,
      handle};
  reinterpret_cast<Register>(register_function)(&entry, lammps);
}
