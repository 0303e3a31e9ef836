// SPDX-License-Identifier: MIT
// What a kernel is, for the code that picks one: compiled once, without any special instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "mlffd.h"

namespace mlffd {

// Named float64 arrays read from a weight block; the names are those of the student's tensors, and
// "architecture.channels" and the like for its sizes. All functions throw std::runtime_error with one line.
class Block {
 public:
  Block(const void *bytes, size_t n_bytes);  // copies
  ~Block();
  Block(const Block &) = delete;
  Block &operator=(const Block &) = delete;
  const char *family() const;
  bool has(const char *name) const;
  const double *array(const char *name, size_t count) const;  // exactly `count` values
  size_t count(const char *name) const;                       // number of values
  double number(const char *name) const;                      // an array of one value
  int integer(const char *name, int smallest, int largest) const;

 private:
  struct Content;
  Content *content_;
};

class Kernel {
 public:
  virtual ~Kernel();
  virtual void evaluate(
      const mlffd_edges &edges, const mlffd_exchange *exchange, int n_threads, double *atomic_energies,
      double *gradient) = 0;
};

// printf into a std::runtime_error that is thrown.
[[noreturn]] void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

// Each instruction set has these, compiled from students.cpp; precision is 32 or 64.
namespace baseline { Kernel *make_kernel(const Block &block, int precision); }
namespace avx2 { Kernel *make_kernel(const Block &block, int precision); }
namespace avx512 { Kernel *make_kernel(const Block &block, int precision); }

}  // namespace mlffd
