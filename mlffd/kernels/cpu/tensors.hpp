// SPDX-License-Identifier: MIT
// The arrays of a part of a student, read from its weight block.
#pragma once

#include <cstdio>

#include "simd.hpp"

namespace mlffd {
namespace MLFFD_ISA {

// Tensors by their names within a part, or within number `index` of several, with the sizes they must have.
class Tensors {
 public:
  Tensors(const Block &block, const char *part, int index) : block_(block) {
    if (index < 0)
      snprintf(prefix_, sizeof prefix_, "%s", part);
    else
      snprintf(prefix_, sizeof prefix_, "%s.%d", part, index);
  }
  const double *operator()(const char *name, size_t rows, size_t columns = 1) const {
    char full[96];
    snprintf(full, sizeof full, "%s.%s", prefix_, name);
    return block_.array(full, rows * columns);
  }

 private:
  const Block &block_;
  char prefix_[48];
};

}  // namespace MLFFD_ISA
}  // namespace mlffd
