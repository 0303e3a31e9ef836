// SPDX-License-Identifier: MIT
// The painn student (mlffd/students/painn.py): energies, and their gradient by hand.
//
// What is exact and saves work:
// - Features of the first layer depend on the species alone, and its vectors are zero. Its messages are
//   therefore linear in the radial densities sum_j R_n(r_ij) (1, u_ij) of each species of neighbors: few
//   functions an edge, and the filters times the species' features are a dense layer over atoms.
// - In the later layers filters are tabulated and evaluated again in the backward pass (messages.hpp).
// - The vectors that the last update would give are not used.
//
// Ghosts: one layer needs nothing. With more, before each layer after the first `exchange->forward` copies
// to the ghosts what their owners send, one row an atom: 6 x padded(F) values, phi (3) and vectors (3) in
// blocks of channels. In the backward pass `exchange->reverse` adds the gradients of those rows to the
// owners. So each is called n_layers - 1 times in an evaluation, whether there are ghosts or not.
#pragma once

#include "gemm.hpp"
#include "messages.hpp"
#include "tensors.hpp"

namespace mlffd {
namespace MLFFD_ISA {

// A linear layer and its transpose, for the backward pass.
template <class T>
struct Linear {
  Dense<T> forward, backward;
  Linear() = default;
  Linear(const double *weight, const double *bias, int n_out, int n_in, int row_stride)
      : forward(weight, bias, n_out, n_in, row_stride),
        backward(weight, nullptr, n_in, n_out, row_stride, true) {}
};

template <class T>
struct PainnLayer {
  // not in the first layer
  Linear<T> message_in, message_out[3];
  Table<T, 3> filters;
  Linear<T> mix[2], update_scalars, update_norm, update_out[3];

  void read_message(const Tensors &tensors, const RadialPieces<T> &radial, int features) {
    const size_t F = features;
    const double *in = tensors("network.0.weight", F, F), *in_bias = tensors("network.0.bias", F);
    message_in = {in, in_bias, features, features, features};
    const double *weight = tensors("network.2.weight", 3 * F, F), *bias = tensors("network.2.bias", 3 * F);
    for (int k = 0; k < 3; ++k)
      message_out[k] = {weight + k * F * F, bias + k * F, features, features, features};
    filters = Table<T, 3>(radial, tensors("filters.weight", 3 * F, radial.n_radial()), features);
  }
  void read_update(const Tensors &tensors, int features) {
    const size_t F = features;
    const double *both = tensors("mix.weight", 2 * F, F);
    for (int k = 0; k < 2; ++k) mix[k] = {both + k * F * F, nullptr, features, features, features};
    const double *in = tensors("network.0.weight", F, 2 * F);
    update_scalars = {in, tensors("network.0.bias", F), features, features, 2 * features};
    update_norm = {in + F, nullptr, features, features, 2 * features};
    const double *weight = tensors("network.2.weight", 3 * F, F), *bias = tensors("network.2.bias", 3 * F);
    for (int k = 0; k < 3; ++k)
      update_out[k] = {weight + k * F * F, bias + k * F, features, features, features};
  }
};

// The first message network and its filters as one dense layer from radial densities, for each species.
template <class T>
struct FirstMessage {
  Linear<T> to_scalars, to_vectors;
};

template <class T>
class PainnKernel : public Kernel {
 public:
  explicit PainnKernel(const Block &block)
      : n_species_(int(block.count("species_numbers"))),
        features_(block.integer("architecture.features", 2, 4096)),
        n_layers_(block.integer("architecture.layers", 1, 16)), baseline_(block, n_species_),
        radial_(block.number("cutoff_radius"), block.integer("architecture.n_radial", 1, 512)),
        close_(block.number("cutoff_radius"), n_species_), layers_(n_layers_), first_(n_species_),
        kept_(n_layers_), sources_(n_layers_) {
    n_blocks_ = padded<T>(features_) / lanes;
    n_radial_blocks_ = padded<T>(radial_.n_radial()) / lanes;
    read_densities();
    read_first_message(block);
    for (int l = 0; l < n_layers_; ++l) {
      if (l) layers_[l].read_message(Tensors(block, "messages", l), radial_, features_);
      layers_[l].read_update(Tensors(block, "updates", l), features_);
    }
    read_readout(Tensors(block, "readout", -1));
  }

  void evaluate(
      const mlffd_edges &edges, const mlffd_exchange *exchange, int n_threads, double *atomic_energies,
      double *gradient) override {
    if (n_layers_ > 1 && edges.n_centers != edges.n_atoms && !exchange)
      fail("this student passes messages %d edges far: with ghost atoms it needs mlffd_exchange", n_layers_);
    edges_ = &edges, n_threads_ = n_threads;
    close_.measure(edges, n_threads, radial_, baseline_, atomic_energies, gradient);
    reserve();
    forward(exchange, atomic_energies);
    backward(exchange);
    close_.add_gradient(radial_.slope_scale(), gradient);
  }

 private:
  static constexpr int lanes = Simd<T>::width;
  // atoms that go through dense layers together, and through a block of a table
  static constexpr int dense_chunk = 48, edge_chunk = 256;
  // slots of what an update keeps for the backward pass; left and right are vectors
  enum {
    left = 0, right = 3, norm = 6, scale_product = 7, scale_vectors = 8, update_slope = 9, message_slope = 10,
    kept_slots = 11
  };
  // slots of the working space of a thread
  enum {
    hidden = 0, by_product = 1, by_vectors = 2, by_norm = 3, by_left = 4, by_right = 7, scratch_slots = 10
  };

  struct Chunk {
    int64_t begin;
    int n;
    Features<T> *scratch;
  };

  // ---- construction

  void read_densities() {
    const int n = radial_.n_radial();
    Array<double> identity(size_t(n) * n);
    for (int k = 0; k < n; ++k) identity[size_t(k) * n + k] = 1.0;
    densities_table_ = Table<T, 1>(radial_, identity.data(), n);
  }

  void read_first_message(const Block &block) {
    const size_t F = features_, K = radial_.n_radial();
    const double *embedding = block.array("embedding.weight", n_species_ * F);
    const Tensors tensors(block, "messages", 0);
    const double *filters = tensors("filters.weight", 3 * F, K);
    embedding_.resize(size_t(n_species_) * n_blocks_ * lanes);
    Array<double> phi(3 * F), weight(F * K);
    for (int s = 0; s < n_species_; ++s) {
      for (size_t f = 0; f < F; ++f) embedding_[s * n_blocks_ * lanes + f] = T(embedding[s * F + f]);
      two_layers(tensors, embedding + s * F, phi.data());
      first_[s].to_scalars = scaled(filters, phi.data(), weight.data());
      first_[s].to_vectors = scaled(filters + 2 * F * K, phi.data() + 2 * F, weight.data());
    }
  }

  // The message network for one atom, in float64.
  void two_layers(const Tensors &tensors, const double *x, double *y) const {
    const size_t F = features_;
    const double *in = tensors("network.0.weight", F, F), *in_bias = tensors("network.0.bias", F);
    const double *out = tensors("network.2.weight", 3 * F, F), *out_bias = tensors("network.2.bias", 3 * F);
    for (size_t n = 0; n < 3 * F; ++n) y[n] = out_bias[n];
    for (size_t k = 0; k < F; ++k) {
      double z = in_bias[k];
      for (size_t f = 0; f < F; ++f) z += in[k * F + f] * x[f];
      z /= 1.0 + __builtin_exp(-z);
      for (size_t n = 0; n < 3 * F; ++n) y[n] += out[n * F + k] * z;
    }
  }

  // Filters (features, n_radial) times a factor for each feature.
  Linear<T> scaled(const double *filters, const double *factor, double *weight) const {
    const int K = radial_.n_radial();
    for (int f = 0; f < features_; ++f)
      for (int n = 0; n < K; ++n) weight[size_t(f) * K + n] = factor[f] * filters[size_t(f) * K + n];
    return Linear<T>(weight, nullptr, features_, K, K);
  }

  void read_readout(const Tensors &tensors) {
    const int n = features_ / 2;
    readout_ = {tensors("0.weight", n, features_), tensors("0.bias", n), n, features_, features_};
    readout_weight_.resize(padded<T>(n));
    for (int k = 0; k < n; ++k) readout_weight_[k] = T(tensors("2.weight", n)[k]);
    readout_bias_ = *tensors("2.bias", 1);
  }

  // ---- work shared between threads

  template <class Work>
  void share(int64_t n_atoms, int size, Work work) {
    for_chunks(n_atoms, size, n_threads_, [&](int64_t begin, int n, int thread) {
      work(Chunk{begin, n, &scratch_[thread]});
    });
  }

  // Calls `work` for the channels of a block and an atom of the chunk, with their part of the scratch.
  template <class Work>
  void for_blocks(const Chunk &chunk, Work work) {
    for (int b = 0; b < n_blocks_; ++b)
      for (int k = 0; k < chunk.n; ++k) work(b, chunk.begin + k, chunk.scratch->at(b, k));
  }

  // Calls `work` for each radial density: pieces of its functions, its edges, and its slots.
  template <class Work>
  void for_densities(Work work) {
    share(edges_->n_centers, edge_chunk, [&](const Chunk &chunk) {
      for (int b = 0; b < n_radial_blocks_; ++b)
        for (int64_t i = chunk.begin; i < chunk.begin + chunk.n; ++i)
          close_.for_species(i, [&](int p, const Edge<T> *edge, const Edge<T> *end) {
            work(densities_table_.block(b), edge, end, densities_.at(b, i, state_slots * p));
          });
    });
  }

  void reserve() {
    const int64_t n_atoms = edges_->n_atoms, n_centers = edges_->n_centers;
    densities_.resize(n_radial_blocks_, n_centers, state_slots * close_.n_present());
    state_.resize(n_blocks_, n_centers, state_slots);
    gradient_.resize(n_blocks_, n_centers, state_slots);
    source_gradient_.resize(n_blocks_, n_layers_ > 1 ? n_atoms : 0, source_slots);
    for (int l = 0; l < n_layers_; ++l) {
      kept_[l].resize(n_blocks_, n_centers, kept_slots);
      sources_[l].resize(n_blocks_, l ? n_atoms : 0, source_slots);
    }
    if (int(scratch_.size()) < n_threads_) {
      scratch_.replace(n_threads_);
      for (int k = 0; k < n_threads_; ++k) scratch_[k].resize(n_blocks_, dense_chunk, scratch_slots);
    }
  }

  // ---- forward

  void forward(const mlffd_exchange *exchange, double *atomic_energies) {
    sum_densities();
    for (int l = 0; l < n_layers_; ++l) {
      if (l) {
        send(exchange, l);
        pass_messages(l);
      }
      share(edges_->n_centers, dense_chunk, [&](const Chunk &chunk) {
        if (l == 0) first_messages(chunk);
        update(l, chunk);
        if (l + 1 < n_layers_)
          prepare_messages(l + 1, chunk);
        else
          read_out(chunk, atomic_energies);
      });
    }
  }

  void sum_densities() {
    for_densities([](const T *pieces, const Edge<T> *edge, const Edge<T> *end, T *density) {
      std::memset(density, 0, state_slots * lanes * sizeof(T));
      add_densities(pieces, edge, end, density);
    });
  }

  void first_messages(const Chunk &chunk) {
    for_blocks(chunk, [&](int b, int64_t i, T *) {
      const int species = edges_->species_idx[i];
      std::memset(state_.at(b, i), 0, sizeof(T) * state_slots * lanes);
      store(state_.at(b, i), load(embedding_.data() + (species * n_blocks_ + b) * lanes));
    });
    for (int p = 0; p < close_.n_present(); ++p)
      for (int s = 0; s < state_slots; ++s) {
        const FirstMessage<T> &first = first_[close_.present(p)];
        const Dense<T> &dense = (s ? first.to_vectors : first.to_scalars).forward;
        apply(dense, chunk, densities_, state_slots * p + s, state_, s, true);
      }
  }

  // y = x W^T + b, or added to y, for atoms of a chunk; x and y are slots.
  static void apply(
      const Dense<T> &dense, const Chunk &chunk, Features<T> &x, int x_slot, Features<T> &y, int y_slot,
      bool add) {
    const T *from = x.at(0, &x == chunk.scratch ? 0 : chunk.begin, x_slot);
    T *to = y.at(0, &y == chunk.scratch ? 0 : chunk.begin, y_slot);
    dense.apply(from, x.layout(), chunk.n, to, y.layout(), add);
  }

  // What the atoms of a chunk send in layer l: phi; the vectors are there already.
  void prepare_messages(int l, const Chunk &chunk) {
    const PainnLayer<T> &layer = layers_[l];
    apply(layer.message_in.forward, chunk, state_, 0, *chunk.scratch, hidden, false);
    activate(chunk, kept_[l], message_slope);
    for (int k = 0; k < 3; ++k)
      apply(layer.message_out[k].forward, chunk, *chunk.scratch, hidden, sources_[l], k, false);
  }

  // SiLU of the hidden slot of the scratch; its derivative is kept.
  void activate(const Chunk &chunk, Features<T> &kept, int slope_slot) {
    for_blocks(chunk, [&](int b, int64_t i, T *work) {
      Vector<T> slope;
      T *z = work + hidden * lanes;
      store(z, silu<T>(load(z), &slope));
      store(kept.at(b, i, slope_slot), slope);
    });
  }

  void pass_messages(int l) {
    const EdgeList<T> edges = close_.own();
    share(edges_->n_centers, edge_chunk, [&](const Chunk &chunk) {
      for (int b = 0; b < n_blocks_; ++b)
        for (int64_t i = chunk.begin; i < chunk.begin + chunk.n; ++i) {
          T *state = state_.at(b, i);
          const T *own = sources_[l].at(b, i, 3);
          for (int s = 0; s < 3; ++s) store(state + (1 + s) * lanes, load(own + s * lanes));
          add_messages(
              layers_[l].filters.block(b), edges.begin(i), edges.end(i), sources_[l].at(b, 0), state);
        }
    });
  }

  // Eqs. 9 and 10; the new vectors go to what the next layer sends.
  void update(int l, const Chunk &chunk) {
    const PainnLayer<T> &layer = layers_[l];
    Features<T> &kept = kept_[l], &scratch = *chunk.scratch;
    for (int c = 0; c < 3; ++c) {
      apply(layer.mix[0].forward, chunk, state_, 1 + c, kept, left + c, false);
      apply(layer.mix[1].forward, chunk, state_, 1 + c, kept, right + c, false);
    }
    take_norms(kept, chunk);
    apply(layer.update_scalars.forward, chunk, state_, 0, scratch, hidden, false);
    apply(layer.update_norm.forward, chunk, kept, norm, scratch, hidden, true);
    activate(chunk, kept, update_slope);
    const bool last = l + 1 == n_layers_;
    if (!last) apply(layer.update_out[0].forward, chunk, scratch, hidden, kept, scale_vectors, false);
    apply(layer.update_out[1].forward, chunk, scratch, hidden, kept, scale_product, false);
    apply(layer.update_out[2].forward, chunk, scratch, hidden, state_, 0, true);
    for_blocks(chunk, [&](int b, int64_t i, T *) {
      add_update(state_.at(b, i), kept.at(b, i), last ? nullptr : sources_[l + 1].at(b, i, 3));
    });
  }

  static Vector<T> dot(const T *a, const T *b) {
    return load(a) * load(b) + load(a + lanes) * load(b + lanes) + load(a + 2 * lanes) * load(b + 2 * lanes);
  }

  void take_norms(Features<T> &kept, const Chunk &chunk) {
    for_blocks(chunk, [&](int b, int64_t i, T *) {
      T square[lanes], *of_right = kept.at(b, i, right), *root = kept.at(b, i, norm);
      store(square, dot(of_right, of_right) + T(1e-8));
      for (int k = 0; k < lanes; ++k) root[k] = __builtin_sqrt(square[k]);
    });
  }

  static void add_update(T *state, const T *kept, T *vectors) {
    const Vector<T> product = dot(kept + left * lanes, kept + right * lanes);
    store(state, load(state) + load(kept + scale_product * lanes) * product);
    const Vector<T> scale = load(kept + scale_vectors * lanes);
    for (int c = 0; vectors && c < 3; ++c)
      store(vectors + c * lanes, load(state + (1 + c) * lanes) + scale * load(kept + (left + c) * lanes));
  }

  // Energies, and their gradient with respect to the last scalars.
  void read_out(const Chunk &chunk, double *atomic_energies) {
    Features<T> &scratch = *chunk.scratch;
    apply(readout_.forward, chunk, state_, 0, scratch, hidden, false);
    for (int k = 0; k < chunk.n; ++k) {
      Vector<T> sum{};
      for (int n = 0; n < int(readout_weight_.size()); n += lanes) {
        Vector<T> slope;
        T *z = scratch.at(n / lanes, k, hidden);
        const Vector<T> weight = load(readout_weight_.data() + n);
        sum += weight * silu<T>(load(z), &slope);
        store(z, weight * slope);
      }
      atomic_energies[chunk.begin + k] += readout_bias_ + double(sum_of<T>(sum));
    }
    apply(readout_.backward, chunk, scratch, hidden, gradient_, 0, false);
  }

  // ---- backward: gradient_ holds that of the state

  void backward(const mlffd_exchange *exchange) {
    if (n_layers_ > 1) incoming_ = close_.incoming();
    for (int l = n_layers_ - 1; l >= 0; --l) {
      share(edges_->n_centers, dense_chunk, [&](const Chunk &chunk) {
        if (l + 1 < n_layers_) prepare_messages_backward(l + 1, chunk);
        update_backward(l, chunk);
        if (l == 0) first_messages_backward(chunk);
      });
      if (l) {
        pass_messages_backward(l);
        send_backward(exchange);
      }
    }
    sum_densities_backward();
  }

  void update_backward(int l, const Chunk &chunk) {
    const PainnLayer<T> &layer = layers_[l];
    const bool last = l + 1 == n_layers_;
    Features<T> &kept = kept_[l], &scratch = *chunk.scratch;
    for_blocks(chunk, [&](int b, int64_t i, T *work) {
      by_outputs(gradient_.at(b, i), kept.at(b, i), work, last);
    });
    apply(layer.update_out[2].backward, chunk, gradient_, 0, scratch, hidden, false);
    apply(layer.update_out[1].backward, chunk, scratch, by_product, scratch, hidden, true);
    if (!last) apply(layer.update_out[0].backward, chunk, scratch, by_vectors, scratch, hidden, true);
    times_slope(chunk, kept, update_slope);
    apply(layer.update_norm.backward, chunk, scratch, hidden, scratch, by_norm, false);
    for_blocks(chunk, [&](int b, int64_t i, T *work) {
      by_mixed(gradient_.at(b, i), kept.at(b, i), work, last);
    });
    apply(layer.update_scalars.backward, chunk, scratch, hidden, gradient_, 0, true);
    for (int c = 0; c < 3; ++c) {
      apply(layer.mix[0].backward, chunk, scratch, by_left + c, gradient_, 1 + c, !last);
      apply(layer.mix[1].backward, chunk, scratch, by_right + c, gradient_, 1 + c, true);
    }
  }

  // Gradients of scale_product and scale_vectors.
  static void by_outputs(const T *g, const T *kept, T *work, bool last) {
    store(work + by_product * lanes, load(g) * dot(kept + left * lanes, kept + right * lanes));
    if (!last) store(work + by_vectors * lanes, dot(g + lanes, kept + left * lanes));
  }

  // Gradients of left and right.
  static void by_mixed(const T *g, const T *kept, T *work, bool last) {
    const Vector<T> on_product = load(g) * load(kept + scale_product * lanes);
    const Vector<T> on_right = load(work + by_norm * lanes) / load(kept + norm * lanes);
    for (int c = 0; c < 3; ++c) {
      const Vector<T> l = load(kept + (left + c) * lanes), r = load(kept + (right + c) * lanes);
      Vector<T> on_left = on_product * r;
      if (!last) on_left += load(kept + scale_vectors * lanes) * load(g + (1 + c) * lanes);
      store(work + (by_left + c) * lanes, on_left);
      store(work + (by_right + c) * lanes, on_product * l + on_right * r);
    }
  }

  void times_slope(const Chunk &chunk, Features<T> &kept, int slope_slot) {
    for_blocks(chunk, [&](int b, int64_t i, T *work) {
      store(work + hidden * lanes, load(work + hidden * lanes) * load(kept.at(b, i, slope_slot)));
    });
  }

  void pass_messages_backward(int l) {
    const T sign = edges_->symmetric ? T(-1) : T(1);
    share(edges_->n_atoms, edge_chunk, [&](const Chunk &chunk) {
      for (int b = 0; b < n_blocks_; ++b)
        for (int64_t j = chunk.begin; j < chunk.begin + chunk.n; ++j) {
          std::memset(source_gradient_.at(b, j), 0, source_slots * lanes * sizeof(T));
          gather_gradient(
              layers_[l].filters.block(b), incoming_.begin(j), incoming_.end(j), sign, gradient_.at(b, 0),
              sources_[l].at(b, j), source_gradient_.at(b, j), close_.gradient());
        }
    });
  }

  void prepare_messages_backward(int l, const Chunk &chunk) {
    const PainnLayer<T> &layer = layers_[l];
    Features<T> &scratch = *chunk.scratch;
    for (int k = 0; k < 3; ++k)
      apply(layer.message_out[k].backward, chunk, source_gradient_, k, scratch, hidden, k > 0);
    times_slope(chunk, kept_[l], message_slope);
    apply(layer.message_in.backward, chunk, scratch, hidden, gradient_, 0, true);
    for_blocks(chunk, [&](int b, int64_t i, T *) {
      T *g = gradient_.at(b, i, 1);
      const T *gathered = source_gradient_.at(b, i, 3);
      for (int c = 0; c < 3; ++c) store(g + c * lanes, load(g + c * lanes) + load(gathered + c * lanes));
    });
  }

  void first_messages_backward(const Chunk &chunk) {
    for (int p = 0; p < close_.n_present(); ++p)
      for (int s = 0; s < state_slots; ++s) {
        const FirstMessage<T> &first = first_[close_.present(p)];
        const Dense<T> &dense = (s ? first.to_vectors : first.to_scalars).backward;
        apply(dense, chunk, gradient_, s, densities_, state_slots * p + s, false);
      }
  }

  // densities_ holds the gradient now
  void sum_densities_backward() {
    for_densities([&](const T *pieces, const Edge<T> *edge, const Edge<T> *end, const T *density) {
      add_densities_backward(pieces, edge, end, density, close_.gradient());
    });
  }

  // ---- ghosts

  void send(const mlffd_exchange *exchange, int l) {
    if (!exchange) return;
    copy_rows(sources_[l], 0, edges_->n_centers, true);
    exchange->forward(exchange->context, rows_.data(), row_size(), int(sizeof(T)));
    copy_rows(sources_[l], edges_->n_centers, edges_->n_atoms, false);
  }

  void send_backward(const mlffd_exchange *exchange) {
    if (!exchange) return;
    copy_rows(source_gradient_, 0, edges_->n_atoms, true);
    exchange->reverse(exchange->context, rows_.data(), row_size(), int(sizeof(T)));
    copy_rows(source_gradient_, 0, edges_->n_centers, false);
  }

  int row_size() const { return n_blocks_ * source_slots * lanes; }

  // Between features and the rows that are exchanged.
  void copy_rows(Features<T> &features, int64_t begin, int64_t end, bool to_rows) {
    const size_t of_block = source_slots * lanes;
    rows_.resize(size_t(edges_->n_atoms) * row_size());
    for (int b = 0; b < n_blocks_; ++b)
      for (int64_t i = begin; i < end; ++i) {
        T *row = rows_.data() + i * row_size() + b * of_block, *here = features.at(b, i);
        std::memcpy(to_rows ? row : here, to_rows ? here : row, of_block * sizeof(T));
      }
  }

  int n_species_, features_, n_layers_, n_blocks_ = 0, n_radial_blocks_ = 0;
  Baseline baseline_;
  RadialPieces<T> radial_;
  CloseEdges<T> close_;
  Table<T, 1> densities_table_;
  Items<PainnLayer<T>> layers_;
  Items<FirstMessage<T>> first_;
  Array<T> embedding_, readout_weight_;
  Linear<T> readout_;
  double readout_bias_ = 0.0;

  // of the evaluation at hand
  const mlffd_edges *edges_ = nullptr;
  int n_threads_ = 1;
  EdgeList<T> incoming_{};
  Array<T> rows_;
  Features<T> densities_, state_, gradient_, source_gradient_;
  Items<Features<T>> kept_, sources_, scratch_;
};

}  // namespace MLFFD_ISA
}  // namespace mlffd
