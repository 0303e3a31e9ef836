// SPDX-License-Identifier: MIT
// The neighbor densities of a block of centers, and the way back from their gradient to the edges.
#pragma once

#include "radial.hpp"

namespace mlffd {
namespace MLFFD_ISA {

// The density of a center is the sum over its edges of weights[species of the neighbor][d] R_n(r) Y_lm; the
// index of its columns is d n_radial + n.
struct DensityDefinition {
  double cutoff;
  int n_radial, n_species, n_weights;
  int n_columns() const { return n_weights * n_radial; }
};

// out[column][row] = in[row][column]; whole vectors of `out` are written, zero where `in` has no more rows.
template <class T>
inline void transpose(const T *in, size_t in_stride, int n_rows, T *out, size_t out_stride, int n_columns) {
  constexpr int width = Simd<T>::width;
  for (int row = 0; row < n_rows; row += width)
    for (int column = 0; column < n_columns; column += width) {
      Vector<T> square[width];
      for (int k = 0; k < width; ++k)
        square[k] = row + k < n_rows ? load(in + (row + k) * in_stride + column) : Vector<T>{};
      transpose<T>(square);
      for (int k = 0; k < width && column + k < n_columns; ++k)
        store(out + (column + k) * out_stride + row, square[k]);
    }
}

// The edges of each center are sorted by the species of the neighbor; each species' edges fill groups of as
// many as a vector has lanes. A group keeps, side by side, the components of the unit vectors, 1 / r, the
// radial functions and their derivatives.
template <class T>
class NeighborDensity {
 public:
  static constexpr int width = Simd<T>::width;
  template <int L>
  static constexpr int n_harmonics = (L + 1) * (L + 1);
  template <int L>
  static constexpr int harmonics_width = padded<T>(n_harmonics<L>);  // values a row of the transposed ones

  // Memory for up to n_centers with up to most_edges each; `weights` (n_species, n_weights).
  void reserve(const DensityDefinition &definition, const T *weights, size_t n_centers, size_t most_edges) {
    definition_ = definition;
    weights_ = weights;
    constants_ = typename BesselBasis<Vector<double>>::Constants(definition.cutoff);
    const size_t n_species = definition.n_species;
    const size_t most_runs = most_edges < n_species ? most_edges : n_species;
    const size_t most_groups = most_edges / width + most_runs;
    bin_size_ = (most_edges / width + 1) * width;
    x_.resize(n_species * bin_size_), y_.resize(x_.size()), z_.resize(x_.size()), edge_.resize(x_.size());
    r_.resize(bin_size_);
    bin_end_.resize(n_species);
    groups_.resize(n_centers * most_groups * group_size());
    group_edges_.resize(n_centers * most_groups * width);
    runs_.resize(n_centers * most_runs), first_run_.resize(n_centers + 1);
    one_species_.resize(size_t(definition.n_radial) * harmonics_width<3>);
    clear();
  }
  void clear() { n_centers_ = n_runs_ = 0, n_groups_ = 0; }

  // The density (n_columns, harmonics_width) of the next center. Returns its shortest distance squared.
  template <int L>
  double add_center(const mlffd_edges &edges, int64_t center, T *density) {
    fill_bins(edges, center);
    memset(static_cast<void *>(density), 0, definition_.n_columns() * harmonics_width<L> * sizeof(T));
    shortest2_ = broadcast<double>(definition_.cutoff * definition_.cutoff);
    first_run_[n_centers_++] = n_runs_;
    for (int species = 0; species < definition_.n_species; ++species)
      if (bin_end_[species] > species * bin_size_) add_run<L>(species, density);
    first_run_[n_centers_] = n_runs_;
    return smallest_of(shortest2_);
  }

  // From dE/d(density) (n_columns, harmonics_width) of the center that was added as number k to the gradient
  // of its edges within the cutoff: written to their rows of `gradient` (n_edges, 3).
  template <int L>
  void edge_gradients(int k, const T *density_gradient, double *gradient) {
    for (int run = first_run_[k]; run < first_run_[k + 1]; ++run)
      run_gradients<L>(runs_[run], density_gradient, gradient);
  }

 private:
  struct Run {
    int species, n_edges;
    size_t first_group;
  };

  size_t group_size() const { return size_t(4 + 2 * definition_.n_radial) * width; }

  // Edges within the cutoff go to the bins of their neighbors' species; what is not a number stays, to show.
  void fill_bins(const mlffd_edges &edges, int64_t center) {
    const double cutoff2 = definition_.cutoff * definition_.cutoff;
    for (int species = 0; species < definition_.n_species; ++species) bin_end_[species] = species * bin_size_;
    double *x = x_.data(), *y = y_.data(), *z = z_.data();
    for (int64_t k = edges.first_edge[center]; k < edges.first_edge[center + 1]; ++k) {
      const double *vector = edges.edge_vectors + 3 * k;
      const double r2 = vector[0] * vector[0] + vector[1] * vector[1] + vector[2] * vector[2];
      const int species = edges.species_idx[edges.neighbor[k]];
      const size_t slot = bin_end_[species];
      x[slot] = vector[0], y[slot] = vector[1], z[slot] = vector[2];
      edge_[slot] = int32_t(k);
      bin_end_[species] = slot + !(r2 >= cutoff2);
    }
  }

  // Lays out the edges in one bin, and adds them to the density.
  template <int L>
  void add_run(int species, T *density) {
    const size_t first = species * bin_size_;
    const Run run = {species, int(bin_end_[species] - first), n_groups_};
    runs_[n_runs_++] = run;
    n_groups_ += padded<T>(run.n_edges) / width;
    int32_t *group_edges = group_edges_.data() + run.first_group * width;
    for (int k = 0; k < run.n_edges; ++k) group_edges[k] = edge_[first + k];
    distances(first, run.n_edges);
    const int n_values = definition_.n_radial * harmonics_width<L>;
    memset(static_cast<void *>(one_species_.data()), 0, n_values * sizeof(T));
    T *values = groups_.data() + run.first_group * group_size();
    for (int begin = 0; begin < run.n_edges; begin += width, values += group_size()) {
      const int n_edges = run.n_edges - begin < width ? run.n_edges - begin : width;
      geometry<L>(first, begin, n_edges, values);
      add_group<L, rows_at_once<L>()>(values, n_edges, 0);
    }
    for (int d = 0; d < definition_.n_weights; ++d)
      add_weighted(weight(species, d), n_values, one_species_.data(), density + d * n_values);
  }

  T weight(int species, int d) const { return weights_[species * definition_.n_weights + d]; }

  static void add_weighted(T weight, int n_values, const T *values, T *sum) {
    if (weight == 0) return;
    for (int k = 0; k < n_values; k += width) store(sum + k, load(sum + k) + weight * load(values + k));
  }

  // As many sums as hide the latency of an addition and fit the registers.
  template <int L>
  static constexpr int rows_at_once() {
    constexpr int n_sums = MLFFD_VECTOR_BYTES == 64 ? 16 : 8, n_vectors = harmonics_width<L> / width;
    return n_vectors == 1 ? 8 : (n_sums > n_vectors ? n_sums / n_vectors : 1);
  }

  // Fills up the last group of a bin with edges that have no effect, and finds all distances.
  void distances(size_t first, int n_edges) {
    double *__restrict x = x_.data() + first, *__restrict y = y_.data() + first;
    double *__restrict z = z_.data() + first, *__restrict r = r_.data();
    const int end = padded<T>(n_edges);
    for (int k = n_edges; k < end; ++k) x[k] = definition_.cutoff, y[k] = z[k] = 0.0;
    for (int k = 0; k < end; ++k) r[k] = __builtin_sqrt(x[k] * x[k] + y[k] * y[k] + z[k] * z[k]);
  }

  // The group of the edges from `begin` on in the bin at `first`, and their harmonics_. Lanes past the last
  // edge hold anything: nobody reads what comes of them.
  template <int L>
  void geometry(size_t first, int begin, int n_edges, T *values) {
    const typename BesselBasis<Vector<double>>::Constants constants = constants_;
    for (int lane = 0; lane < n_edges; lane += Simd<double>::width) {
      const size_t slot = first + begin + lane;
      const Vector<double> r = load(r_.data() + begin + lane), inverse = 1.0 / r, r2 = r * r;
      shortest2_ = r2 < shortest2_ ? r2 : shortest2_;
      store_rounded(values + lane, load(x_.data() + slot) * inverse);
      store_rounded(values + width + lane, load(y_.data() + slot) * inverse);
      store_rounded(values + 2 * width + lane, load(z_.data() + slot) * inverse);
      store_rounded(values + 3 * width + lane, inverse);
      BesselBasis<Vector<double>> basis(r, inverse, constants);
      T *radial = values + 4 * width + lane, *radial_slope = radial + definition_.n_radial * width;
      for (int n = 0; n < definition_.n_radial; ++n) {
        Vector<double> value, slope;
        basis.next(&value, &slope);
        store_rounded(radial + n * width, value);
        store_rounded(radial_slope + n * width, slope);
      }
    }
    Vector<T> rows[harmonics_width<L>];
    spherical_harmonics<T, L>(load(values), load(values + width), load(values + 2 * width), rows);
    for (int m = n_harmonics<L>; m < harmonics_width<L>; ++m) rows[m] = Vector<T>{};
    for (int m = 0; m < harmonics_width<L>; m += width) {
      transpose<T>(rows + m);
      for (int k = 0; k < width; ++k) store(harmonics_ + k * harmonics_width<L> + m, rows[m + k]);
    }
  }

  // Adds the group of edges in `values` to one_species_, to its rows from `first` on, N at a time.
  template <int L, int N>
  void add_group(const T *values, int n_edges, int first) {
    int n = first;
    for (; n + N <= definition_.n_radial; n += N)
      add_rows<L, N>(values + (4 + n) * width, n_edges, one_species_.data() + n * harmonics_width<L>);
    if constexpr (N > 1) add_group<L, N / 2>(values, n_edges, n);
  }

  // Each group is summed up by itself: rounding errors of many edges in a row would be larger.
  template <int L, int N>
  void add_rows(const T *radial, int n_edges, T *density) {
    constexpr int M = harmonics_width<L> / width;
    const T *harmonics = harmonics_;
    Vector<T> sum[N][M];
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n)
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) sum[n][m] = Vector<T>{};
    for (int k = 0; k < n_edges; ++k, harmonics += harmonics_width<L>)
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n)
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) sum[n][m] += radial[n * width + k] * load(harmonics + m * width);
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n)
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) {
        T *at = density + n * harmonics_width<L> + m * width;
        store(at, load(at) + sum[n][m]);
      }
  }

  // The gradients of one species' edges.
  template <int L>
  void run_gradients(const Run &run, const T *density_gradient, double *gradient) {
    const int n_values = definition_.n_radial * harmonics_width<L>;
    memset(static_cast<void *>(one_species_.data()), 0, n_values * sizeof(T));
    for (int d = 0; d < definition_.n_weights; ++d)
      add_weighted(weight(run.species, d), n_values, density_gradient + d * n_values, one_species_.data());
    const int32_t *edge = group_edges_.data() + run.first_group * width;
    const T *values = groups_.data() + run.first_group * group_size();
    for (int begin = 0; begin < run.n_edges; begin += width, values += group_size(), edge += width) {
      T components[3][width];
      group_gradients<L>(values, components);
      for (int k = 0; k < width && begin + k < run.n_edges; ++k)
        for (int axis = 0; axis < 3; ++axis) gradient[3 * int64_t(edge[k]) + axis] = components[axis][k];
    }
  }

  // dE/d(edge vector) of one group of edges from the gradient with respect to one species' density.
  template <int L>
  void group_gradients(const T *values, T (*components)[width]) {
    constexpr int n_rows = n_harmonics<L>;
    const Vector<T> x = load(values), y = load(values + width), z = load(values + 2 * width);
    Vector<T> harmonics[n_rows], by_harmonic[n_rows] = {}, by_distance{}, angular[3];
    spherical_harmonics<T, L>(x, y, z, harmonics);
    const T *radial = values + 4 * width, *radial_slope = radial + definition_.n_radial * width;
    const T *by_density = one_species_.data();
    for (int n = 0; n < definition_.n_radial; ++n, by_density += harmonics_width<L>) {
      const Vector<T> value = load(radial + n * width);
      Vector<T> by_radial{};
#pragma GCC unroll 16
      for (int m = 0; m < n_rows; ++m) {
        by_radial += by_density[m] * harmonics[m];
        by_harmonic[m] += by_density[m] * value;
      }
      by_distance += by_radial * load(radial_slope + n * width);
    }
    harmonics_gradient<T, L>(x, y, z, by_harmonic, angular);
    const Vector<T> along = x * angular[0] + y * angular[1] + z * angular[2];
    const Vector<T> inverse = load(values + 3 * width), radial_part = by_distance - along * inverse;
    store(components[0], x * radial_part + angular[0] * inverse);
    store(components[1], y * radial_part + angular[1] * inverse);
    store(components[2], z * radial_part + angular[2] * inverse);
  }

  DensityDefinition definition_ = {};
  const T *weights_ = nullptr;
  typename BesselBasis<Vector<double>>::Constants constants_{1.0};
  int n_centers_ = 0, n_runs_ = 0;
  size_t n_groups_ = 0;
  // bins of one center's edges, bin_size_ values a species
  size_t bin_size_ = 0;
  Array<size_t> bin_end_;
  Array<double> x_, y_, z_;
  Array<int32_t> edge_;
  // what is known of one species' edges
  Array<double> r_;
  Array<T> one_species_;                                 // (n_radial, harmonics_width)
  alignas(64) T harmonics_[width * harmonics_width<3>];  // (width, harmonics_width)
  Vector<double> shortest2_;
  // of all edges in the block
  Array<T> groups_;
  Array<int32_t> group_edges_;
  Array<Run> runs_;
  Array<int> first_run_;
};

}  // namespace MLFFD_ISA
}  // namespace mlffd
