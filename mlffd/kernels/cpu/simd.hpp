// SPDX-License-Identifier: MIT
// Vectors of the widest registers of the instruction set this is compiled for, and memory aligned for them.
#pragma once

#include <cstdlib>
#include <cstring>

#include "kernel.hpp"

#if defined(__AVX512F__)
#define MLFFD_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define MLFFD_VECTOR_BYTES 32
#else
#define MLFFD_VECTOR_BYTES 16
#endif

namespace mlffd {
namespace MLFFD_ISA {

template <class T>
struct Simd {
  static constexpr int width = MLFFD_VECTOR_BYTES / sizeof(T);
  typedef T type __attribute__((vector_size(MLFFD_VECTOR_BYTES)));
  typedef T unaligned __attribute__((vector_size(MLFFD_VECTOR_BYTES), aligned(sizeof(T)), may_alias));
};

template <class T>
using Vector = typename Simd<T>::type;

template <class T>
inline Vector<T> load(const T *values) {
  return *reinterpret_cast<const typename Simd<T>::unaligned *>(values);
}

template <class T>
inline void store(T *values, Vector<T> vector) {
  *reinterpret_cast<typename Simd<T>::unaligned *>(values) = vector;
}

template <class T>
inline Vector<T> broadcast(T value) {
  return Vector<T>{} + value;
}

// n rounded up to whole vectors
template <class T>
constexpr int padded(int n) {
  return (n + Simd<T>::width - 1) / Simd<T>::width * Simd<T>::width;
}

// Memory aligned to 64 bytes that only grows; in this namespace instead of std::vector, see students.cpp.
template <class T>
class Array {
 public:
  Array() = default;
  explicit Array(size_t n) { resize(n); }
  ~Array() { std::free(values_); }
  Array(const Array &) = delete;
  Array &operator=(const Array &) = delete;
  Array(Array &&other) noexcept : values_(other.values_), size_(other.size_), capacity_(other.capacity_) {
    other.values_ = nullptr;
    other.size_ = other.capacity_ = 0;
  }
  // New memory is zero; what was there before is lost when the memory must grow.
  T *resize(size_t n) {
    if (n > capacity_) {
      const size_t bytes = (n * sizeof(T) + 127) / 64 * 64;  // a spare vector: loads may reach past the end
      std::free(values_);
      values_ = static_cast<T *>(std::aligned_alloc(64, bytes));
      if (!values_) {
        size_ = capacity_ = 0;
        fail("out of memory: %zu bytes", bytes);
      }
      std::memset(static_cast<void *>(values_), 0, bytes);
      capacity_ = n;
    }
    size_ = n;
    return values_;
  }
  T *data() { return values_; }
  const T *data() const { return values_; }
  size_t size() const { return size_; }
  T &operator[](size_t k) { return values_[k]; }
  const T &operator[](size_t k) const { return values_[k]; }

 private:
  T *values_ = nullptr;
  size_t size_ = 0, capacity_ = 0;
};

}  // namespace MLFFD_ISA
}  // namespace mlffd
