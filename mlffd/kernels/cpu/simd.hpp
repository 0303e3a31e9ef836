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
struct Simd;

template <>
struct Simd<float> {
  static constexpr int width = MLFFD_VECTOR_BYTES / sizeof(float);
  typedef float type __attribute__((vector_size(MLFFD_VECTOR_BYTES)));
  typedef float unaligned __attribute__((vector_size(MLFFD_VECTOR_BYTES), aligned(sizeof(float)), may_alias));
  typedef float half __attribute__((vector_size(MLFFD_VECTOR_BYTES / 2)));
  typedef float unaligned_half
      __attribute__((vector_size(MLFFD_VECTOR_BYTES / 2), aligned(sizeof(float)), may_alias));
  typedef int32_t integers __attribute__((vector_size(MLFFD_VECTOR_BYTES)));
};

template <>
struct Simd<double> {
  static constexpr int width = MLFFD_VECTOR_BYTES / sizeof(double);
  typedef double type __attribute__((vector_size(MLFFD_VECTOR_BYTES)));
  typedef double unaligned
      __attribute__((vector_size(MLFFD_VECTOR_BYTES), aligned(sizeof(double)), may_alias));
  typedef int64_t integers __attribute__((vector_size(MLFFD_VECTOR_BYTES)));
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

// As many doubles as fill a register, rounded to the type of `values`.
inline void store_rounded(double *values, Vector<double> vector) { store(values, vector); }

inline void store_rounded(float *values, Vector<double> vector) {
  *reinterpret_cast<Simd<float>::unaligned_half *>(values) =
      __builtin_convertvector(vector, Simd<float>::half);
}

template <class T>
inline Vector<T> broadcast(T value) {
  return Vector<T>{} + value;
}

template <class T>
inline T sum_of(Vector<T> vector) {
  T sum = 0;
  for (int k = 0; k < Simd<T>::width; ++k) sum += vector[k];
  return sum;
}

inline double smallest_of(Vector<double> vector) {
  double smallest = vector[0];
  for (int k = 1; k < Simd<double>::width; ++k) smallest = vector[k] < smallest ? vector[k] : smallest;
  return smallest;
}

#if defined(__clang__)
#define MLFFD_SHUFFLE(integers, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define MLFFD_SHUFFLE(integers, a, b, ...) __builtin_shuffle(a, b, integers{__VA_ARGS__})
#endif

// a0 b0 a1 b1 ... of the first halves of two vectors, and of the second halves.
template <class T>
inline void interleave(Vector<T> a, Vector<T> b, Vector<T> *first, Vector<T> *second) {
  typedef typename Simd<T>::integers integers [[maybe_unused]];
  if constexpr (Simd<T>::width == 2) {
    *first = MLFFD_SHUFFLE(integers, a, b, 0, 2);
    *second = MLFFD_SHUFFLE(integers, a, b, 1, 3);
  } else if constexpr (Simd<T>::width == 4) {
    *first = MLFFD_SHUFFLE(integers, a, b, 0, 4, 1, 5);
    *second = MLFFD_SHUFFLE(integers, a, b, 2, 6, 3, 7);
  } else if constexpr (Simd<T>::width == 8) {
    *first = MLFFD_SHUFFLE(integers, a, b, 0, 8, 1, 9, 2, 10, 3, 11);
    *second = MLFFD_SHUFFLE(integers, a, b, 4, 12, 5, 13, 6, 14, 7, 15);
  } else {
    *first = MLFFD_SHUFFLE(integers, a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    *second = MLFFD_SHUFFLE(integers, a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  }
}

// `rows` holds a square matrix of `width` vectors. Each stage makes the highest bit of the column the lowest
// of the row, and that of the row the lowest of the column; after all bits they have changed places.
template <class T>
inline void transpose(Vector<T> *rows) {
  constexpr int width = Simd<T>::width;
  for (int stage = 1; stage < width; stage *= 2) {
    Vector<T> next[width];
    for (int k = 0; k < width / 2; ++k)
      interleave<T>(rows[k], rows[k + width / 2], next + 2 * k, next + 2 * k + 1);
    for (int k = 0; k < width; ++k) rows[k] = next[k];
  }
}

// Constants of exp: 1.5 * 2^p rounds to whole numbers when added (p bits of mantissa); ln 2 in two parts, the
// first so short that its product with those whole numbers is exact.
template <class T>
struct Exponential;

template <>
struct Exponential<float> {
  static constexpr float rounding = 12582912.0f, ln2 = 0.693359375f, ln2_rest = -2.12194440e-4f;
  static constexpr float largest = 87.0f;
  static constexpr int mantissa_bits = 23, degree = 7;
};

template <>
struct Exponential<double> {
  static constexpr double rounding = 6755399441055744.0, ln2 = 6.93145751953125e-1, largest = 708.0;
  static constexpr double ln2_rest = 1.42860682030941723212e-6;
  static constexpr int mantissa_bits = 52, degree = 13;
};

// exp(x) to about one unit in the last place; beyond the range of T its smallest or largest values.
template <class T>
inline Vector<T> exponential(Vector<T> x) {
  typedef Exponential<T> E;
  typedef typename Simd<T>::integers integers;
  x = x < -E::largest ? broadcast<T>(-E::largest) : x;
  x = x > E::largest ? broadcast<T>(E::largest) : x;
  const Vector<T> shifted = x * T(1.44269504088896340736) + E::rounding;
  const Vector<T> whole = shifted - E::rounding;
  const Vector<T> rest = (x - whole * E::ln2) - whole * E::ln2_rest;
  Vector<T> series = broadcast<T>(1);
  for (int k = E::degree; k > 0; --k) series = series * (rest * T(1.0 / k)) + T(1);
  return (Vector<T>)((integers)series + ((integers)shifted << E::mantissa_bits));
}

// z sigmoid(z) and its derivative.
template <class T>
inline Vector<T> silu(Vector<T> z, Vector<T> *slope) {
  const Vector<T> inverse = exponential<T>(-z), sigmoid = T(1) / (T(1) + inverse);
  *slope = sigmoid + z * sigmoid * (inverse * sigmoid);
  return z * sigmoid;
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
  Array &operator=(Array &&other) noexcept {
    T *const values = values_;
    const size_t size = size_, capacity = capacity_;
    values_ = other.values_, size_ = other.size_, capacity_ = other.capacity_;
    other.values_ = values, other.size_ = size, other.capacity_ = capacity;
    return *this;
  }
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

// n objects made by their default constructor.
template <class Item>
class Items {
 public:
  Items() = default;
  explicit Items(size_t n) : items_(new Item[n]), size_(n) {}
  ~Items() { delete[] items_; }
  Items(const Items &) = delete;
  Items &operator=(const Items &) = delete;
  void replace(size_t n) {  // all by new ones
    delete[] items_;
    items_ = nullptr, size_ = 0;
    items_ = new Item[n], size_ = n;
  }
  size_t size() const { return size_; }
  Item &operator[](size_t k) { return items_[k]; }
  const Item &operator[](size_t k) const { return items_[k]; }

 private:
  Item *items_ = nullptr;
  size_t size_ = 0;
};

}  // namespace MLFFD_ISA
}  // namespace mlffd
