// SPDX-License-Identifier: MIT
// All kernels, compiled once for each instruction set into the namespace MLFFD_ISA.
//
// Nothing but that namespace may be left in the object file: an inline function of the standard library that
// was compiled for AVX-512 here could be the copy that the linker keeps for everyone (tests look for such).
#include <cstring>

#include "kernel.hpp"
#include "lennard_jones.hpp"
#include "local.hpp"
#include "painn.hpp"

namespace mlffd {
namespace MLFFD_ISA {

Kernel *make_kernel(const Block &block, int precision) {
  const bool single = precision == 32;
  if (!strcmp(block.family(), "local")) {
    if (single) return new LocalKernel<float>(block);
    return new LocalKernel<double>(block);
  }
  if (!strcmp(block.family(), "painn")) {
    if (single) return new PainnKernel<float>(block);
    return new PainnKernel<double>(block);
  }
  if (!strcmp(block.family(), "lennard_jones")) {
    if (single) return new LennardJonesKernel<float>(block);
    return new LennardJonesKernel<double>(block);
  }
  fail("no compiled kernel for students of the family %s", block.family());
}

}  // namespace MLFFD_ISA
}  // namespace mlffd
