// SPDX-License-Identifier: MIT
// The C interface for Python: NumPy arrays in and out, of exactly the dtypes and shapes named, no copies.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <exception>
#include <stdexcept>
#include <string>

#include "mlffd.h"

namespace py = pybind11;

template <class T>
using Values = py::array_t<T, py::array::c_style>;

template <class T>
const T *checked(const Values<T> &values, std::initializer_list<py::ssize_t> shape, const char *name) {
  bool fits = values.ndim() == py::ssize_t(shape.size());
  for (size_t axis = 0; fits && axis < shape.size(); ++axis) fits = values.shape(axis) == shape.begin()[axis];
  if (!fits) throw py::value_error(std::string(name) + " has the wrong shape");
  return values.data();
}

// mlffd_exchange answered by a Python object's forward(rows) and reverse(rows). Nothing may be thrown through
// the kernel, so an error waits until it has returned; calls that follow the error do nothing.
class PythonExchange {
 public:
  PythonExchange(const py::object &exchange, py::ssize_t n_rows) : exchange_(exchange), n_rows_(n_rows) {}
  mlffd_exchange callbacks() { return {this, forward, reverse}; }
  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  static void forward(void *context, void *rows, int n_per_row, int bytes_per_value) {
    static_cast<PythonExchange *>(context)->call("forward", rows, n_per_row, bytes_per_value);
  }
  static void reverse(void *context, void *rows, int n_per_row, int bytes_per_value) {
    static_cast<PythonExchange *>(context)->call("reverse", rows, n_per_row, bytes_per_value);
  }
  void call(const char *method, void *rows, py::ssize_t n_per_row, int bytes_per_value) {
    if (error_) return;
    const py::gil_scoped_acquire acquired;
    try {
      const py::dtype dtype(bytes_per_value == 4 ? "float32" : "float64");
      exchange_.attr(method)(py::array(dtype, {n_rows_, n_per_row}, rows, exchange_));  // no copy: has a base
    } catch (...) {
      error_ = std::current_exception();
    }
  }

  py::object exchange_;
  py::ssize_t n_rows_;
  std::exception_ptr error_;
};

class Student {
 public:
  Student(const py::bytes &block, int precision, const std::string &instructions) {
    char *bytes;
    py::ssize_t n_bytes;
    if (PyBytes_AsStringAndSize(block.ptr(), &bytes, &n_bytes)) throw py::error_already_set();
    char message[512] = "";
    student_ = mlffd_create(bytes, size_t(n_bytes), precision, instructions.c_str(), message, sizeof message);
    if (!student_) throw py::value_error(message);
  }
  ~Student() { mlffd_destroy(student_); }
  Student(const Student &) = delete;
  Student &operator=(const Student &) = delete;

  std::string instructions() const { return mlffd_instructions(student_); }

  py::tuple evaluate_pairs(
      const Values<int32_t> &species_idx, const Values<int64_t> &first_edge, const Values<int32_t> &neighbor,
      const Values<double> &edge_vectors, bool symmetric, int n_threads, const py::object &exchange) {
    mlffd_edges edges;
    edges.n_atoms = species_idx.size();
    edges.n_centers = first_edge.size() - 1;
    edges.n_edges = neighbor.size();
    edges.species_idx = checked(species_idx, {edges.n_atoms}, "species_idx");
    edges.first_edge = checked(first_edge, {edges.n_centers + 1}, "first_edge");
    edges.neighbor = checked(neighbor, {edges.n_edges}, "neighbor");
    edges.edge_vectors = checked(edge_vectors, {edges.n_edges, 3}, "edge_vectors");
    edges.symmetric = symmetric;
    if (edges.n_centers < 0) throw py::value_error("first_edge has the wrong shape");
    Values<double> atomic_energies(edges.n_centers), gradient({edges.n_edges, int64_t(3)});
    double *energies_out = atomic_energies.mutable_data(), *gradient_out = gradient.mutable_data();
    PythonExchange through_python(exchange, edges.n_atoms);
    const mlffd_exchange callbacks = through_python.callbacks();
    const mlffd_exchange *given = exchange.is_none() ? nullptr : &callbacks;
    char message[512] = "";
    int failed;
    {
      const py::gil_scoped_release released;
      failed = mlffd_evaluate_pairs(
          student_, &edges, given, n_threads, energies_out, gradient_out, message, sizeof message);
    }
    through_python.rethrow();
    if (failed) throw py::value_error(message);
    return py::make_tuple(atomic_energies, gradient);
  }

 private:
  mlffd_student *student_ = nullptr;
};

// The edges of a batch without ghosts: every index is one that there is.
struct Batch {
  const Values<int64_t> &first_atom, &first_edge;
  const Values<int32_t> &neighbor;
  py::ssize_t n_systems, n_atoms, n_edges;

  Batch(const Values<int64_t> &atoms, const Values<int64_t> &edges, const Values<int32_t> &neighbors)
      : first_atom(atoms), first_edge(edges), neighbor(neighbors), n_systems(atoms.size() - 1),
        n_atoms(edges.size() - 1), n_edges(neighbors.size()) {
    bool fits = rises(first_atom, n_atoms) && rises(first_edge, n_edges);
    const int32_t *index = neighbor.data();
    for (py::ssize_t k = 0; k < n_edges; ++k) fits &= uint32_t(index[k]) < uint32_t(n_atoms);
    if (!fits) throw py::value_error("first_atom, first_edge and neighbor do not fit together");
  }
  static bool rises(const Values<int64_t> &values, py::ssize_t last) {
    if (values.size() < 1 || values.data()[0] != 0 || values.data()[values.size() - 1] != last) return false;
    for (py::ssize_t k = 1; k < values.size(); ++k)
      if (values.data()[k] < values.data()[k - 1]) return false;
    return true;
  }
};

Values<double> edge_vectors(
    const Values<int64_t> &first_atom, const Values<int64_t> &first_edge, const Values<int32_t> &neighbor,
    const Values<int32_t> &cell_shifts, const Values<double> &positions, const Values<double> &cells) {
  const Batch batch(first_atom, first_edge, neighbor);
  Values<double> vectors({batch.n_edges, py::ssize_t(3)});
  mlffd_edge_vectors(
      batch.n_systems, first_atom.data(), first_edge.data(), neighbor.data(),
      checked(cell_shifts, {batch.n_edges, 3}, "cell_shifts"),
      checked(positions, {batch.n_atoms, 3}, "positions"), checked(cells, {batch.n_systems, 3, 3}, "cells"),
      vectors.mutable_data());
  return vectors;
}

py::tuple sum_forces(
    const Values<int64_t> &first_atom, const Values<int64_t> &first_edge, const Values<int32_t> &neighbor,
    const Values<double> &vectors, const Values<double> &gradient) {
  const Batch batch(first_atom, first_edge, neighbor);
  Values<double> forces({batch.n_atoms, py::ssize_t(3)});
  Values<double> virials({batch.n_systems, py::ssize_t(3), py::ssize_t(3)});
  mlffd_sum_forces(
      batch.n_systems, first_atom.data(), first_edge.data(), neighbor.data(),
      checked(vectors, {batch.n_edges, 3}, "edge_vectors"), checked(gradient, {batch.n_edges, 3}, "gradient"),
      forces.mutable_data(), virials.mutable_data());
  return py::make_tuple(forces, virials);
}

// Pairs closer than the cutoff from a neighbor list of LAMMPS, which `function`, its
// lammps_neighlist_element_neighbors, shows one atom at a time.
class LammpsList {
 public:
  LammpsList(uintptr_t function, uintptr_t lammps, int index, int n_listed, const Values<double> &positions)
      : function_(reinterpret_cast<Function *>(function)), lammps_(reinterpret_cast<void *>(lammps)),
        index_(index), n_listed_(n_listed), positions_(positions.data()), n_atoms_(positions.shape(0)) {}

  py::tuple pairs(double cutoff) const {
    py::ssize_t n = 0;
    for (int k = 0; k < n_listed_; ++k) n += listed(k).n_neighbors;
    Values<int32_t> pair_i(n), pair_j(n);
    Values<double> rij({n, py::ssize_t(3)});
    n = fill(cutoff * cutoff, pair_i.mutable_data(), pair_j.mutable_data(), rij.mutable_data());
    pair_i.resize({n});
    pair_j.resize({n});
    rij.resize({n, py::ssize_t(3)});
    return py::make_tuple(pair_i, pair_j, rij);
  }

 private:
  using Function = void(void *lammps, int index, int k, int *atom, int *n_neighbors, int **neighbors);
  struct Listed {
    int atom, n_neighbors, *neighbors;
  };
  static constexpr int neighbor_mask = 0x1FFFFFFF;  // LAMMPS' NEIGHMASK: the other bits tell of bonds

  Listed listed(int k) const {
    Listed found{-1, 0, nullptr};
    function_(lammps_, index_, k, &found.atom, &found.n_neighbors, &found.neighbors);
    check(found.atom);
    return found;
  }
  void check(int atom) const {
    if (atom < 0 || atom >= n_atoms_) throw py::value_error("LAMMPS' list and the positions do not fit together");
  }
  // What is not a number stays, to be seen.
  py::ssize_t fill(double cutoff_squared, int32_t *pair_i, int32_t *pair_j, double *rij) const {
    py::ssize_t n = 0;
    for (int k = 0; k < n_listed_; ++k) {
      const Listed center = listed(k);
      const double *own = positions_ + 3 * py::ssize_t(center.atom);
      for (int m = 0; m < center.n_neighbors; ++m) {
        const int j = center.neighbors[m] & neighbor_mask;
        check(j);
        const double *other = positions_ + 3 * py::ssize_t(j);
        const double x = other[0] - own[0], y = other[1] - own[1], z = other[2] - own[2];
        pair_i[n] = center.atom, pair_j[n] = j;
        rij[3 * n] = x, rij[3 * n + 1] = y, rij[3 * n + 2] = z;
        n += !(x * x + y * y + z * z >= cutoff_squared);
      }
    }
    return n;
  }

  Function *function_;
  void *lammps_;
  int index_, n_listed_;
  const double *positions_;
  py::ssize_t n_atoms_;
};

py::tuple lammps_pairs(
    uintptr_t function_address, uintptr_t lammps_pointer, int list_index, int n_listed,
    const Values<double> &positions, double cutoff) {
  if (positions.ndim() != 2 || positions.shape(1) != 3) throw py::value_error("positions has the wrong shape");
  if (!function_address || !lammps_pointer) throw py::value_error("an address of LAMMPS is 0");
  return LammpsList(function_address, lammps_pointer, list_index, n_listed, positions).pairs(cutoff);
}

PYBIND11_MODULE(_binding, module) {
  using namespace py::literals;
  py::class_<Student>(module, "Student")
      .def(py::init<const py::bytes &, int, const std::string &>(), "block"_a, "precision"_a,
           "instructions"_a = "auto")
      .def_property_readonly("instructions", &Student::instructions)
      .def("evaluate_pairs", &Student::evaluate_pairs, "species_idx"_a.noconvert(),
           "first_edge"_a.noconvert(), "neighbor"_a.noconvert(), "edge_vectors"_a.noconvert(),
           "symmetric"_a = false, "n_threads"_a = 1, "exchange"_a = py::none());
  module.def("edge_vectors", &edge_vectors, "first_atom"_a.noconvert(), "first_edge"_a.noconvert(),
             "neighbor"_a.noconvert(), "cell_shifts"_a.noconvert(), "positions"_a.noconvert(),
             "cells"_a.noconvert());
  module.def("sum_forces", &sum_forces, "first_atom"_a.noconvert(), "first_edge"_a.noconvert(),
             "neighbor"_a.noconvert(), "edge_vectors"_a.noconvert(), "gradient"_a.noconvert());
  module.def("lammps_pairs", &lammps_pairs, "function_address"_a, "lammps_pointer"_a, "list_index"_a,
             "n_listed"_a, "positions"_a.noconvert(), "cutoff"_a);
}
