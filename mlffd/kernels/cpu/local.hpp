// SPDX-License-Identifier: MIT
// The `local` student (mlffd/students/local.py) and its gradient by hand: blocks of centers of one species go
// from edges to energies and back while all that belongs to them is in the cache.
#pragma once

#include <omp.h>

#include <cstdio>

#include "baseline.hpp"
#include "density.hpp"
#include "gemm.hpp"
#include "tensors.hpp"

namespace mlffd {
namespace MLFFD_ISA {

// Centers that go through the networks together; fixed, so that results do not depend on the threads.
constexpr int block_centers = 16;

// The numbers that say how large everything is; the constructor refuses those that do not fit together.
struct LocalSizes {
  static constexpr int most_hidden = 8;
  DensityDefinition density;
  int l_max, channels, n_hidden, hidden[most_hidden];

  explicit LocalSizes(const Block &block) {
    const size_t n_species = block.count("species_numbers"), n_weights = block.count("neighbor_weights");
    if (n_species < 1 || n_weights < n_species || n_weights % n_species || n_weights / n_species > 118)
      fail("%zu neighbor_weights do not fit %zu species", n_weights, n_species);
    density.n_species = int(n_species), density.n_weights = int(n_weights / n_species);
    density.cutoff = block.number("cutoff_radius");
    density.n_radial = block.integer("architecture.n_radial", 1, 256);
    l_max = block.integer("architecture.l_max", 0, 3);
    channels = block.integer("architecture.channels", 1, 4096);
    const size_t n = block.count("architecture.hidden");
    if (n > most_hidden) fail("%zu hidden layers; the CPU kernels have room for %d", n, most_hidden);
    n_hidden = int(n);
    const double *sizes = block.array("architecture.hidden", n);
    for (int k = 0; k < n_hidden; ++k) {
      if (!(sizes[k] >= 1 && sizes[k] <= 16384)) fail("hidden layer %d has the size %g", k, sizes[k]);
      hidden[k] = int(sizes[k]);
    }
  }
  int n_harmonics() const { return (l_max + 1) * (l_max + 1); }
  int n_kinds() const { return 2 + l_max + (l_max >= 2 ? 2 : 0); }  // invariants of a channel
};

// `in` (n_rows, channels) with each row filled up with zeros to whole vectors.
template <class T>
inline Array<double> fill_up(const double *in, size_t n_rows, int channels) {
  const size_t wide = padded<T>(channels);
  Array<double> out(n_rows * wide);
  for (size_t row = 0; row < n_rows; ++row)
    for (int c = 0; c < channels; ++c) out[row * wide + c] = in[row * channels + c];
  return out;
}

// Values from one row of channels to the next: an odd number of vectors, as rows a power of two apart would
// compete for the same lines of the cache.
template <class T>
constexpr size_t channels_stride(int channels) {
  return 2 * padded<T>(channels) + Simd<T>::width;
}

// What the networks need for the atoms of a block; n is the number of them, rows of T are whole vectors.
template <class T>
struct NetworkWorkspace {
  Array<T> channels;                         // (n_harmonics, n, 2 * channels)
  Array<T> invariants;                       // (n, n_kinds * channels)
  Array<T> hidden[LocalSizes::most_hidden];  // (n, hidden[k])
  Array<T> slopes[LocalSizes::most_hidden];  // of the activations
  Array<double> gradient, product;           // of one hidden layer

  void reserve(const LocalSizes &sizes) {
    const size_t wide = padded<T>(sizes.channels);
    channels.resize(size_t(block_centers) * sizes.n_harmonics() * channels_stride<T>(sizes.channels));
    invariants.resize(size_t(block_centers) * sizes.n_kinds() * wide);
    for (int k = 0; k < sizes.n_hidden; ++k) {
      hidden[k].resize(size_t(block_centers) * padded<T>(sizes.hidden[k]));
      slopes[k].resize(hidden[k].size());
      if (hidden[k].size() < gradient.size()) continue;
      gradient.resize(hidden[k].size()), product.resize(hidden[k].size());
    }
  }
};

// Invariants -> energies, and back. The standardization's scale is in the weights of the first layer.
template <class T>
class Perceptron {
 public:
  void read(const Block &block, int species, const LocalSizes &sizes) {
    n_hidden_ = sizes.n_hidden;
    const size_t n_invariants = size_t(sizes.n_kinds()) * sizes.channels;
    const Tensors tensors(block, "networks", species);
    const double *scale = tensors("invariant_scale", n_invariants);
    int n_in = int(n_invariants);
    for (int k = 0; k <= n_hidden_; ++k) {
      const int n_out = k < n_hidden_ ? sizes.hidden[k] : 1;
      char name[32];
      snprintf(name, sizeof name, "layers.%d.weight", k);
      const double *weight = tensors(name, n_out, n_in);
      snprintf(name, sizeof name, "layers.%d.bias", k);
      const double *bias = tensors(name, n_out);
      Array<double> filled_up;
      if (k == 0) {
        filled_up = fill_up<T>(weight, size_t(n_out) * sizes.n_kinds(), sizes.channels);
        const Array<double> scales = fill_up<T>(scale, sizes.n_kinds(), sizes.channels);
        for (size_t at = 0; at < filled_up.size(); ++at) filled_up[at] *= scales[at % scales.size()];
        weight = filled_up.data(), n_in = int(scales.size());
      }
      set_layer(k, weight, bias, n_out, n_in);
      n_in = n_out;
    }
  }

  // work.invariants (n, n_kinds * channels) become the gradient of the sum of energies (n,).
  void evaluate(int n, NetworkWorkspace<T> &work, double *energies) const {
    for (int k = 0; k < n_hidden_; ++k) {
      const Dense<T> &layer = forward_[k];
      T *hidden = work.hidden[k].data(), *slopes = work.slopes[k].data();
      const T *input = k ? work.hidden[k - 1].data() : work.invariants.data();
      layer.apply(input, k ? forward_[k - 1].width() : padded<T>(layer.n_in()), n, hidden, layer.width());
      for (size_t at = 0; at < size_t(n) * layer.width(); at += Simd<T>::width) {
        Vector<T> slope;
        store(hidden + at, silu<T>(load(hidden + at), &slope));
        store(slopes + at, slope);
      }
    }
    T *last = n_hidden_ ? work.hidden[n_hidden_ - 1].data() : work.invariants.data();
    const size_t wide = readout_.size();
    for (int row = 0; row < n; ++row) energies[row] = read_out(last + row * wide);
    for (int k = n_hidden_ - 1; k > 0; --k) hidden_gradient(k, n, work);
    if (n_hidden_ == 0) return;
    T *hidden = work.hidden[0].data();
    const T *slopes = work.slopes[0].data();
    const size_t width = forward_[0].width();
    for (size_t at = 0; at < n * width; at += Simd<T>::width)
      store(hidden + at, load(hidden + at) * load(slopes + at));
    backward_.apply(hidden, width, n, work.invariants.data(), backward_.width());
  }

 private:
  void set_layer(int k, const double *weight, const double *bias, int n_out, int n_in) {
    if (k < n_hidden_) {
      forward_[k] = Dense<T>(weight, bias, n_out, n_in, n_in);
      if (k == 0) backward_ = Dense<T>(weight, nullptr, n_in, n_out, n_in, true);
      if (k > 0) hidden_backward_[k] = Dense<double>(weight, nullptr, n_in, n_out, n_in, true);
      return;
    }
    readout_.resize(padded<T>(n_in));
    for (int c = 0; c < n_in; ++c) readout_[c] = T(weight[c]);
    readout_bias_ = *bias;
  }

  // From the activations of hidden layer k to those before it. In float64: this small product has the largest
  // share in the rounding errors of forces.
  void hidden_gradient(int k, int n, NetworkWorkspace<T> &work) const {
    const size_t width = forward_[k].width(), width_before = forward_[k - 1].width();
    const T *hidden = work.hidden[k].data(), *slopes = work.slopes[k].data();
    double *gradient = work.gradient.data(), *product = work.product.data();
    for (size_t at = 0; at < n * width; ++at) gradient[at] = double(hidden[at]) * slopes[at];
    hidden_backward_[k].apply(gradient, width, n, product, width_before);
    T *before = work.hidden[k - 1].data();
    for (size_t at = 0; at < n * width_before; ++at) before[at] = T(product[at]);
  }

  // The energy of an atom; the row of features becomes its gradient with respect to them.
  double read_out(T *features) const {
    Vector<T> sum{};
    for (size_t c = 0; c < readout_.size(); c += Simd<T>::width) {
      const Vector<T> weight = load(readout_.data() + c);
      sum += weight * load(features + c);
      store(features + c, weight);
    }
    return double(sum_of<T>(sum)) + readout_bias_;
  }

  int n_hidden_ = 0;
  Dense<T> forward_[LocalSizes::most_hidden], backward_;
  Dense<double> hidden_backward_[LocalSizes::most_hidden];
  Array<T> readout_;
  double readout_bias_ = 0.0;
};

// v Q v and det Q of `four_body` in students/local.py, for vectors of channels.
template <class T>
struct FourBody {
  static constexpr T root = T(1.15470053837925152902);  // 2 / sqrt(3)
  Vector<T> y, z, x, xy, yz, zz, xz, xx, yy;

  FourBody(const Vector<T> *a) : y(a[1]), z(a[2]), x(a[3]), xy(a[4]), yz(a[5]), zz(root * a[6]), xz(a[7]) {
    xx = T(-0.5) * zz + a[8];
    yy = T(-0.5) * zz - a[8];
  }
  Vector<T> contraction() const {
    return xx * x * x + yy * y * y + zz * z * z + T(2) * (xy * x * y + yz * y * z + xz * x * z);
  }
  Vector<T> determinant() const {
    return xx * (yy * zz - yz * yz) - xy * (xy * zz - yz * xz) + xz * (xy * yz - yy * xz);
  }
  // Adds the gradient of c * contraction + d * determinant with respect to a[1] ... a[8].
  void add_gradient(Vector<T> c, Vector<T> d, Vector<T> *gradient) const {
    const Vector<T> by_xx = c * x * x + d * (yy * zz - yz * yz), by_yy = c * y * y + d * (xx * zz - xz * xz);
    const Vector<T> by_zz = c * z * z + d * (xx * yy - xy * xy);
    gradient[1] += T(2) * c * (yy * y + xy * x + yz * z);
    gradient[2] += T(2) * c * (zz * z + yz * y + xz * x);
    gradient[3] += T(2) * c * (xx * x + xy * y + xz * z);
    gradient[4] += T(2) * (c * x * y + d * (yz * xz - xy * zz));
    gradient[5] += T(2) * (c * y * z + d * (xy * xz - xx * yz));
    gradient[6] += root * (by_zz - T(0.5) * (by_xx + by_yy));
    gradient[7] += T(2) * (c * x * z + d * (xy * yz - yy * xz));
    gradient[8] += by_xx - by_yy;
  }
};

// One species' SpeciesNetwork: densities of a block of atoms -> their energies, and back.
template <class T>
class LocalNetwork {
 public:
  void read(const Block &block, int species, const LocalSizes &sizes) {
    const int l_max = sizes.l_max;
    wide_ = padded<T>(sizes.channels), stride_ = channels_stride<T>(sizes.channels);
    const int n_in = sizes.density.n_columns();
    const size_t per_l = size_t(n_in) * 2 * sizes.channels;
    const Tensors tensors(block, "networks", species);
    const double *mixing = tensors("mixing", l_max + 1, per_l);
    for (int l = 0; l <= l_max; ++l) {
      const Array<double> filled_up = fill_up<T>(mixing + l * per_l, size_t(n_in) * 2, sizes.channels);
      mix_[l] = Dense<T>(filled_up.data(), nullptr, 2 * wide_, n_in, 2 * wide_, true);
      unmix_[l] = Dense<T>(filled_up.data(), nullptr, n_in, 2 * wide_, 2 * wide_);
    }
    const size_t n_invariants = size_t(sizes.n_kinds()) * sizes.channels;
    const double *mean = tensors("invariant_mean", n_invariants);
    const Array<double> filled_up = fill_up<T>(mean, sizes.n_kinds(), sizes.channels);
    mean_.resize(filled_up.size());
    for (size_t k = 0; k < mean_.size(); ++k) mean_[k] = T(filled_up[k]);
    perceptron_.read(block, species, sizes);
  }

  // density ((L + 1)^2, n, stride) becomes the gradient of the sum of energies (n,) with respect to it.
  template <int L>
  void evaluate(int n, T *density, size_t stride, NetworkWorkspace<T> &work, double *energies) const {
    const size_t row = stride_;
    T *channels = work.channels.data();
    for (int l = 0; l <= L; ++l)
      mix_[l].apply(density + l * l * n * stride, stride, (2 * l + 1) * n, channels + l * l * n * row, row);
    for (int atom = 0; atom < n; ++atom) invariants<L>(n, atom, work);
    perceptron_.evaluate(n, work, energies);
    for (int atom = 0; atom < n; ++atom) channel_gradients<L>(n, atom, work);
    for (int l = 0; l <= L; ++l)
      unmix_[l].apply(channels + l * l * n * row, row, (2 * l + 1) * n, density + l * l * n * stride, stride);
  }

 private:
  template <int L>
  void invariants(int n, int atom, NetworkWorkspace<T> &work) const {
    const size_t step = n * stride_;
    T *out = work.invariants.data() + atom * mean_.size();
    for (int c = 0; c < wide_; c += Simd<T>::width) {
      const T *channels = work.channels.data() + atom * stride_ + c;
      Vector<T> first[9];
      first[0] = load(channels);
      put(out, 0, c, first[0]);
      for (int l = 0; l <= L; ++l) {
        Vector<T> product{};
        for (int m = l * l; m < (l + 1) * (l + 1); ++m) {
          const Vector<T> a = load(channels + m * step), b = load(channels + m * step + wide_);
          product += a * b;
          if (l <= 2) first[m] = a;
        }
        put(out, 1 + l, c, product);
      }
      if constexpr (L >= 2) {
        const FourBody<T> coupling(first);
        put(out, 2 + L, c, coupling.contraction());
        put(out, 3 + L, c, coupling.determinant());
      }
    }
  }

  void put(T *out, int kind, int c, Vector<T> value) const {
    const size_t at = size_t(kind) * wide_ + c;
    store(out + at, value - load(mean_.data() + at));
  }

  // Channels become the gradient with respect to them.
  template <int L>
  void channel_gradients(int n, int atom, NetworkWorkspace<T> &work) const {
    const size_t step = n * stride_;
    for (int c = 0; c < wide_; c += Simd<T>::width) {
      const T *by_kind = work.invariants.data() + atom * mean_.size() + c;
      T *channels = work.channels.data() + atom * stride_ + c;
      Vector<T> extra[9] = {};
      extra[0] = load(by_kind);
      if constexpr (L >= 2) {
        Vector<T> first[9];
        for (int m = 1; m < 9; ++m) first[m] = load(channels + m * step);
        const T *couplings = by_kind + (2 + L) * wide_;
        FourBody<T>(first).add_gradient(load(couplings), load(couplings + wide_), extra);
      }
      for (int l = 0; l <= L; ++l) {
        const Vector<T> by_product = load(by_kind + (1 + l) * wide_);
        for (int m = l * l; m < (l + 1) * (l + 1); ++m) {
          T *at = channels + m * step;
          const Vector<T> a = load(at), b = load(at + wide_);
          store(at, l <= 2 ? by_product * b + extra[m] : by_product * b);
          store(at + wide_, by_product * a);
        }
      }
    }
  }

  int wide_ = 0;
  size_t stride_ = 0;
  Dense<T> mix_[4], unmix_[4];
  Array<T> mean_;
  Perceptron<T> perceptron_;
};

template <class T>
class LocalKernel : public Kernel {
 public:
  explicit LocalKernel(const Block &block)
      : sizes_(block), baseline_(block, sizes_.density.n_species), networks_(sizes_.density.n_species) {
    const size_t n_weights = size_t(sizes_.density.n_species) * sizes_.density.n_weights;
    const double *weights = block.array("neighbor_weights", n_weights);
    weights_.resize(n_weights);
    for (size_t k = 0; k < n_weights; ++k) weights_[k] = T(weights[k]);
    for (int k = 0; k < sizes_.density.n_species; ++k) networks_[k].read(block, k, sizes_);
  }

  void evaluate(
      const mlffd_edges &edges, const mlffd_exchange *, int n_threads, double *energies,
      double *gradient) override {
    const int n_blocks = divide(edges);
    if (n_threads > n_blocks) n_threads = n_blocks > 0 ? n_blocks : 1;
    reserve(edges, n_threads);
#pragma omp parallel for num_threads(n_threads) schedule(dynamic)
    for (int k = 0; k < n_blocks; ++k)
      evaluate_any(edges, blocks_[k], workspaces_[omp_get_thread_num()], energies, gradient);
  }

 private:
  struct CenterBlock {
    int species, n_centers;
    const int32_t *centers;
  };
  struct Workspace {
    NeighborDensity<T> density;
    NetworkWorkspace<T> network;
    Array<T> by_column;  // (n_columns, harmonics) of one center
    Array<T> by_row;     // (harmonics, centers, n_columns)
    double shortest2[block_centers];
  };

  // Sorts the centers by species and cuts them into blocks.
  int divide(const mlffd_edges &edges) {
    const int n_species = sizes_.density.n_species;
    order_.resize(edges.n_centers + 1);
    blocks_.resize(edges.n_centers / block_centers + n_species);
    int n_blocks = 0;
    int32_t *place = order_.data();
    for (int species = 0; species < n_species; ++species) {
      int32_t *first = place;
      for (int64_t i = 0; i < edges.n_centers; ++i)
        if (edges.species_idx[i] == species) *place++ = int32_t(i);
      for (; first < place; first += block_centers) {
        const int n = place - first < block_centers ? int(place - first) : block_centers;
        blocks_[n_blocks++] = {species, n, first};
      }
    }
    return n_blocks;
  }

  void reserve(const mlffd_edges &edges, int n_threads) {
    int64_t most_edges = 0;
    for (int64_t i = 0; i < edges.n_centers; ++i) {
      const int64_t n = edges.first_edge[i + 1] - edges.first_edge[i];
      if (n > most_edges) most_edges = n;
    }
    if (size_t(n_threads) > workspaces_.size()) workspaces_.replace(n_threads);
    const size_t wide = padded<T>(sizes_.density.n_columns());
    for (int k = 0; k < n_threads; ++k) {
      Workspace &work = workspaces_[k];
      work.density.reserve(sizes_.density, weights_.data(), block_centers, most_edges);
      work.network.reserve(sizes_);
      work.by_column.resize(wide * padded<T>(sizes_.n_harmonics()));
      work.by_row.resize(wide * sizes_.n_harmonics() * block_centers);
    }
  }

  void evaluate_any(
      const mlffd_edges &edges, const CenterBlock &block, Workspace &work, double *energies,
      double *gradient) const {
    if (sizes_.l_max == 0) evaluate_block<0>(edges, block, work, energies, gradient);
    if (sizes_.l_max == 1) evaluate_block<1>(edges, block, work, energies, gradient);
    if (sizes_.l_max == 2) evaluate_block<2>(edges, block, work, energies, gradient);
    if (sizes_.l_max == 3) evaluate_block<3>(edges, block, work, energies, gradient);
  }

  template <int L>
  void evaluate_block(
      const mlffd_edges &edges, const CenterBlock &block, Workspace &work, double *energies,
      double *gradient) const {
    constexpr int n_harmonics = (L + 1) * (L + 1), harmonics_width = padded<T>(n_harmonics);
    const int n = block.n_centers, n_columns = sizes_.density.n_columns();
    const size_t stride = padded<T>(n_columns);
    T *by_column = work.by_column.data(), *by_row = work.by_row.data();
    work.density.clear();
    for (int k = 0; k < n; ++k) {
      work.shortest2[k] = work.density.template add_center<L>(edges, block.centers[k], by_column);
      transpose(by_column, harmonics_width, n_columns, by_row + k * stride, n * stride, n_harmonics);
    }
    double network_energies[block_centers];
    networks_[block.species].template evaluate<L>(n, by_row, stride, work.network, network_energies);
    for (int k = 0; k < n; ++k) {
      const int64_t center = block.centers[k], end = edges.first_edge[center + 1];
      for (int64_t at = 3 * edges.first_edge[center]; at < 3 * end; ++at) gradient[at] = 0.0;
      transpose(by_row + k * stride, n * stride, n_harmonics, by_column, harmonics_width, n_columns);
      work.density.template edge_gradients<L>(k, by_column, gradient);
      energies[center] = network_energies[k] + baseline_.reference(block.species);
      if (work.shortest2[k] < baseline_.largest_reach() * baseline_.largest_reach())
        repel(edges, center, energies, gradient);
    }
  }

  void repel(const mlffd_edges &edges, int64_t center, double *energies, double *gradient) const {
    for (int64_t k = edges.first_edge[center]; k < edges.first_edge[center + 1]; ++k) {
      const double *vector = edges.edge_vectors + 3 * k;
      const double r = __builtin_sqrt(vector[0] * vector[0] + vector[1] * vector[1] + vector[2] * vector[2]);
      energies[center] += baseline_.repulsion(edges, center, k, r, gradient);
    }
  }

  LocalSizes sizes_;
  Baseline baseline_;
  Array<T> weights_;
  Items<LocalNetwork<T>> networks_;
  Items<Workspace> workspaces_;
  Array<int32_t> order_;
  Array<CenterBlock> blocks_;
};

}  // namespace MLFFD_ISA
}  // namespace mlffd
