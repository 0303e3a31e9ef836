// SPDX-License-Identifier: MIT
// Sums over edges of the painn student, forward and backward: one block of channels in registers at a time.
//
// Every sum is gathered by the atom it belongs to, in the order of its edges: threads share the atoms, and
// results do not depend on how many there are.
#pragma once

#include "edges.hpp"
#include "gemm.hpp"

namespace mlffd {
namespace MLFFD_ISA {

// Features of atoms in blocks of channels: [block][atom][slot][lane]; the slots of a block lie together.
template <class T>
class Features {
 public:
  void resize(int n_blocks, int64_t n_atoms, int n_slots) {
    n_atoms_ = n_atoms, n_slots_ = n_slots;
    values_.resize(size_t(n_blocks) * n_atoms * n_slots * Simd<T>::width);
  }
  T *at(int block, int64_t atom, int slot = 0) {
    return values_.data() + ((block * n_atoms_ + atom) * n_slots_ + slot) * Simd<T>::width;
  }
  Layout layout() const {
    const size_t of_atom = size_t(n_slots_) * Simd<T>::width;
    return {of_atom, of_atom * n_atoms_};
  }

 private:
  int64_t n_atoms_ = 0;
  int n_slots_ = 0;
  Array<T> values_;
};

// Adds the sums over the lanes of a, b, c and d to four values.
template <class T>
inline void add_lanes(T *sums, Vector<T> a, Vector<T> b, Vector<T> c, Vector<T> d) {
  constexpr int width = Simd<T>::width;
  if constexpr (width < 4) {
    sums[0] += sum_of<T>(a), sums[1] += sum_of<T>(b), sums[2] += sum_of<T>(c), sums[3] += sum_of<T>(d);
  } else {
    typedef T Quad __attribute__((vector_size(4 * sizeof(T)), aligned(sizeof(T)), may_alias));
    Vector<T> low, high, even, odd;
    interleave<T>(a, c, &low, &high);
    even = low + high;
    interleave<T>(b, d, &low, &high);
    odd = low + high;
    interleave<T>(even, odd, &low, &high);
    const Vector<T> quads = low + high;
    const Quad *parts = reinterpret_cast<const Quad *>(&quads);
    Quad sum = *reinterpret_cast<const Quad *>(sums);
    for (int k = 0; k < width / 4; ++k) sum += parts[k];
    *reinterpret_cast<Quad *>(sums) = sum;
  }
}

// What a message is made of: phi (3 slots: to scalars, from vectors, from directions) and vectors (3 slots).
constexpr int source_slots = 6;
// Scalars and vectors of an atom, and their gradient.
constexpr int state_slots = 4;
// Sums are taken over so many edges at a time: rounding errors grow with the length of a run only.
constexpr int edges_at_once = 32;

template <class T>
inline const Edge<T> *end_of_run(const Edge<T> *edge, const Edge<T> *end) {
  return end - edge < edges_at_once ? end : edge + edges_at_once;
}

template <class T, int n>
inline void add_to(T *totals, const Vector<T> (&sums)[n]) {
#pragma GCC unroll 8
  for (int s = 0; s < n; ++s) {
    T *total = totals + s * Simd<T>::width;
    store(total, load(total) + sums[s]);
  }
}

// Adds the radial densities sum_j R_n(r_ij) (1, u_ij) of some edges: 4 slots.
template <class T>
inline void add_densities(const T *pieces, const Edge<T> *edge, const Edge<T> *end, T *density) {
  while (edge < end) {
    Vector<T> sum[4] = {};
    for (const Edge<T> *const stop = end_of_run(edge, end); edge < stop; ++edge) {
      Vector<T> value;
      evaluate_piece<1>(pieces + size_t(edge->interval) * Table<T, 1>::size_of_piece, edge->t, &value);
      sum[0] += value;
      sum[1] += value * edge->x;
      sum[2] += value * edge->y;
      sum[3] += value * edge->z;
    }
    add_to(density, sum);
  }
}

// Gradient of those edges from that of the densities.
template <class T>
inline void add_densities_backward(
    const T *pieces, const Edge<T> *edge, const Edge<T> *end, const T *density_gradient, T *edge_gradient) {
  constexpr int lanes = Simd<T>::width;
  Vector<T> g[4];
  for (int s = 0; s < 4; ++s) g[s] = load(density_gradient + s * lanes);
  for (; edge < end; ++edge) {
    Vector<T> value, slope;
    evaluate_piece<1>(
        pieces + size_t(edge->interval) * Table<T, 1>::size_of_piece, edge->t, &value, &slope);
    const Vector<T> along = g[0] + g[1] * edge->x + g[2] * edge->y + g[3] * edge->z;
    add_lanes<T>(
        edge_gradient + size_t(edge->row) * edge_slots, slope * along, value * g[1], value * g[2],
        value * g[3]);
  }
}

// Eqs. 7 and 8: adds the messages of one atom's neighbors to its state. `sources` are those of the block.
template <class T>
inline void add_messages(
    const T *pieces, const Edge<T> *edge, const Edge<T> *end, const T *sources, T *state) {
  constexpr int lanes = Simd<T>::width;
  while (edge < end) {
    Vector<T> sum[4] = {};
    for (const Edge<T> *const stop = end_of_run(edge, end); edge < stop; ++edge) {
      const T *source = sources + size_t(edge->atom) * (source_slots * lanes);
      Vector<T> filter[3];
      evaluate_piece<3>(pieces + size_t(edge->interval) * Table<T, 3>::size_of_piece, edge->t, filter);
      sum[0] += filter[0] * load(source);
      const Vector<T> from_vectors = filter[1] * load(source + lanes);
      const Vector<T> from_direction = filter[2] * load(source + 2 * lanes);
      sum[1] += from_vectors * load(source + 3 * lanes) + from_direction * edge->x;
      sum[2] += from_vectors * load(source + 4 * lanes) + from_direction * edge->y;
      sum[3] += from_vectors * load(source + 5 * lanes) + from_direction * edge->z;
    }
    add_to(state, sum);
  }
}

// Adds to the gradient of one atom's source what comes from the states' `gradient` at the centers that it
// sends to, and to that of the edges on which it sends. `sign` is -1 where edges are given as they leave this
// atom, the reverse of those.
template <class T>
inline void gather_gradient(
    const T *pieces, const Edge<T> *edge, const Edge<T> *end, T sign, const T *gradient, const T *source,
    T *source_gradient, T *edge_gradient) {
  constexpr int lanes = Simd<T>::width;
  const Vector<T> phi_scalar = load(source), phi_vector = load(source + lanes);
  const Vector<T> phi_direction = load(source + 2 * lanes) * sign;
  const Vector<T> vx = load(source + 3 * lanes), vy = load(source + 4 * lanes), vz = load(source + 5 * lanes);
  while (edge < end) {
    Vector<T> sum[source_slots] = {};
    for (const Edge<T> *const stop = end_of_run(edge, end); edge < stop; ++edge) {
      const T *g = gradient + size_t(edge->atom) * (state_slots * lanes);
      const Vector<T> gs = load(g);
      const Vector<T> gx = load(g + lanes), gy = load(g + 2 * lanes), gz = load(g + 3 * lanes);
      Vector<T> filter[3], slope[3];
      evaluate_piece<3>(
          pieces + size_t(edge->interval) * Table<T, 3>::size_of_piece, edge->t, filter, slope);
      const Vector<T> on_vector = gx * vx + gy * vy + gz * vz;
      const Vector<T> on_direction = gx * edge->x + gy * edge->y + gz * edge->z;
      sum[0] += gs * filter[0];
      sum[1] += on_vector * filter[1];
      sum[2] += on_direction * filter[2];
      const Vector<T> from_vectors = phi_vector * filter[1], from_direction = phi_direction * filter[2];
      sum[3] += from_vectors * gx;
      sum[4] += from_vectors * gy;
      sum[5] += from_vectors * gz;
      const Vector<T> radial = (gs * phi_scalar) * slope[0] + (on_vector * phi_vector) * slope[1] +
                               (on_direction * phi_direction) * slope[2];
      add_lanes<T>(
          edge_gradient + size_t(edge->row) * edge_slots, radial, from_direction * gx, from_direction * gy,
          from_direction * gz);
    }
    sum[2] *= sign;
    add_to(source_gradient, sum);
  }
}

}  // namespace MLFFD_ISA
}  // namespace mlffd
