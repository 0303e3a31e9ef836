// SPDX-License-Identifier: MIT
// Edges within the cutoff: their lengths and directions, their order, and what becomes of their gradients.
#pragma once

#include <omp.h>

#include "baseline.hpp"
#include "table.hpp"

namespace mlffd {
namespace MLFFD_ISA {

// An edge within the cutoff. `row` is where it lies in the caller's list.
template <class T>
struct Edge {
  int32_t atom, row, interval;  // the atom at the other end
  T t, x, y, z, inverse;        // place in the interval; unit vector from center to neighbor; 1 / r
};

// Edges by atom.
template <class T>
struct EdgeList {
  const Edge<T> *edge;
  const int64_t *first, *last;
  const Edge<T> *begin(int64_t i) const { return edge + first[i]; }
  const Edge<T> *end(int64_t i) const { return edge + last[i]; }
};

// What the gradient of an edge is summed up in: dE/dt and dE/du, u its unit vector.
constexpr int edge_slots = 4;

// Calls `work` with the first atom of a chunk, their number and the number of the thread.
template <class Work>
inline void for_chunks(int64_t n_atoms, int64_t size, int n_threads, Work work) {
  const int64_t even = (n_atoms + n_threads - 1) / n_threads;
  if (size > even && even > 0) size = even;
  const int64_t n_chunks = (n_atoms + size - 1) / size;
#pragma omp parallel for num_threads(n_threads) schedule(static)
  for (int64_t c = 0; c < n_chunks; ++c) {
    const int64_t begin = n_atoms * c / n_chunks, end = n_atoms * (c + 1) / n_chunks;
    work(begin, int(end - begin), omp_get_thread_num());
  }
}

template <class T>
class CloseEdges {
 public:
  CloseEdges(double cutoff, int n_species) : cutoff_(cutoff), n_species_(n_species) {}

  // Sorts out the edges within the cutoff; writes reference energies and repulsion to `atomic_energies` and
  // `gradient`. The edges of a center are grouped by the species of the neighbor.
  void measure(
      const mlffd_edges &edges, int n_threads, const RadialPieces<T> &radial, const Baseline &baseline,
      double *atomic_energies, double *gradient) {
    given_ = &edges, n_threads_ = n_threads;
    edge_.resize(edges.n_edges);
    distance_.resize(edges.n_edges);
    gradient_.resize(size_t(edges.n_edges) * edge_slots);
    last_.resize(edges.n_centers);
    counts_.resize(size_t(n_threads) * (n_species_ + 1));
    find_species();
    for_chunks(edges.n_centers, 64, n_threads, [&](int64_t begin, int n, int thread) {
      int32_t *counts = counts_.data() + size_t(thread) * (n_species_ + 1);
      for (int64_t i = begin; i < begin + n; ++i)
        atomic_energies[i] = measure_center(i, radial, baseline, counts, gradient);
    });
  }

  int n_present() const { return n_present_; }  // species that there are
  int present(int place) const { return present_[place]; }
  EdgeList<T> own() const { return {edge_.data(), given_->first_edge, last_.data()}; }
  T *gradient() { return gradient_.data(); }  // (n_edges, edge_slots) by `row`

  // Each species that is there, with the edges of center i that lead to it.
  template <class Work>
  void for_species(int64_t i, Work work) const {
    const Edge<T> *edge = own().begin(i), *const end = own().end(i);
    for (int place = 0; place < n_present_; ++place) {
      const Edge<T> *const begin = edge;
      while (edge < end && given_->species_idx[edge->atom] == present_[place]) ++edge;
      work(place, begin, edge);
    }
  }

  // Edges by the atom they lead to, `atom` being the center. In the caller's symmetric list these are the
  // reverse of an atom's own edges, which are returned instead: unit vectors then have the other sign.
  EdgeList<T> incoming() {
    if (given_->symmetric) return own();
    const int64_t n_atoms = given_->n_atoms;
    incoming_.resize(given_->n_edges);
    incoming_first_.resize(n_atoms);
    incoming_last_.resize(n_atoms);
    for (int64_t j = 0; j < n_atoms; ++j) incoming_last_[j] = 0;
    for_own([&](int64_t, const Edge<T> &edge) { ++incoming_last_[edge.atom]; });
    for (int64_t j = 0, sum = 0; j < n_atoms; ++j) {
      incoming_first_[j] = sum;
      sum += incoming_last_[j];
      incoming_last_[j] = incoming_first_[j];
    }
    for_own([&](int64_t i, const Edge<T> &edge) {
      Edge<T> &copy = incoming_[incoming_last_[edge.atom]++];
      copy = edge;
      copy.atom = int32_t(i);
    });
    return {incoming_.data(), incoming_first_.data(), incoming_last_.data()};
  }

  // Adds dE/d(edge vector); `dt_dr` is that of the table.
  void add_gradient(double dt_dr, double *gradient) const {
    for_chunks(given_->n_centers, 64, n_threads_, [&](int64_t begin, int n, int) {
      for (int64_t i = begin; i < begin + n; ++i)
        for (int64_t k = given_->first_edge[i]; k < last_[i]; ++k)
          add_gradient(edge_[k], dt_dr, gradient + 3 * size_t(edge_[k].row));
    });
  }

 private:
  // Species among the atoms, in their order: place_of_[species] and present_[place].
  void find_species() {
    place_of_.resize(n_species_);
    present_.resize(n_species_);
    n_present_ = 0;
    for (int s = 0; s < n_species_; ++s) place_of_[s] = 0;
    for (int64_t i = 0; i < given_->n_atoms; ++i) place_of_[given_->species_idx[i]] = 1;
    for (int s = 0; s < n_species_; ++s)
      if (place_of_[s]) present_[n_present_] = s, place_of_[s] = n_present_++;
  }

  // Returns reference energy and repulsion; edges that are left out have no gradient.
  double measure_center(
      int64_t i, const RadialPieces<T> &radial, const Baseline &baseline, int32_t *counts, double *gradient) {
    const int64_t first = given_->first_edge[i], end = given_->first_edge[i + 1];
    double energy = baseline.reference(given_->species_idx[i]);
    last_[i] = first;
    if (first == end) return energy;
    std::memset(gradient + 3 * first, 0, sizeof(double) * 3 * (end - first));
    std::memset(gradient_.data() + edge_slots * first, 0, sizeof(T) * edge_slots * (end - first));
    measure_distances(first, end);
    count_species(first, end, counts);
    last_[i] += counts[n_present_];
    for (int64_t k = first; k < end; ++k) {
      if (!within(k)) continue;
      edge_[first + counts[place(k)]++] = edge_of(k, radial);
      if (!(distance_[k] >= baseline.largest_reach()))
        energy += baseline.repulsion(*given_, i, k, distance_[k], gradient);
    }
    return energy;
  }

  void measure_distances(int64_t first, int64_t end) {
    const double *vector = given_->edge_vectors;
    double *distance = distance_.data();
    for (int64_t k = first; k < end; ++k) {
      const double x = vector[3 * k], y = vector[3 * k + 1], z = vector[3 * k + 2];
      distance[k] = __builtin_sqrt(x * x + y * y + z * z);
    }
  }

  // How many edges lead to the species before each that is present, and to all.
  void count_species(int64_t first, int64_t end, int32_t *counts) const {
    for (int place = 0; place <= n_present_; ++place) counts[place] = 0;
    for (int64_t k = first; k < end; ++k)
      if (within(k)) ++counts[1 + place(k)];
    for (int place = 0; place < n_present_; ++place) counts[place + 1] += counts[place];
  }

  // What is not a number stays, to be seen in the results.
  bool within(int64_t k) const { return !(distance_[k] >= cutoff_); }
  int place(int64_t k) const { return place_of_[given_->species_idx[given_->neighbor[k]]]; }

  Edge<T> edge_of(int64_t k, const RadialPieces<T> &radial) const {
    const double *vector = given_->edge_vectors + 3 * k, inverse = 1.0 / distance_[k];
    Edge<T> edge;
    edge.atom = given_->neighbor[k], edge.row = int32_t(k);
    radial.locate(distance_[k], &edge.interval, &edge.t);
    edge.x = T(vector[0] * inverse), edge.y = T(vector[1] * inverse), edge.z = T(vector[2] * inverse);
    edge.inverse = T(inverse);
    return edge;
  }

  template <class Work>
  void for_own(Work work) const {
    for (int64_t i = 0; i < given_->n_centers; ++i)
      for (int64_t k = given_->first_edge[i]; k < last_[i]; ++k) work(i, edge_[k]);
  }

  void add_gradient(const Edge<T> &edge, double dt_dr, double *gradient) const {
    const T *by = gradient_.data() + size_t(edge.row) * edge_slots;
    const double unit[3] = {edge.x, edge.y, edge.z};
    const double along = by[1] * unit[0] + by[2] * unit[1] + by[3] * unit[2];
    const double radial = by[0] * dt_dr - along * edge.inverse;
    for (int axis = 0; axis < 3; ++axis) gradient[axis] += radial * unit[axis] + by[1 + axis] * edge.inverse;
  }

  double cutoff_;
  int n_species_, n_present_ = 0, n_threads_ = 1;
  const mlffd_edges *given_ = nullptr;
  Array<int32_t> place_of_, present_, counts_;
  Array<double> distance_;
  Array<Edge<T>> edge_, incoming_;
  Array<int64_t> last_, incoming_first_, incoming_last_;
  Array<T> gradient_;
};

}  // namespace MLFFD_ISA
}  // namespace mlffd
