"""What drivers hold: a student on a device, its neighbor lists, and checks on the way in and out."""

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from ase import Atoms

from mlffd.allocator import keep_freed_memory
from mlffd.bundle import Bundle, read_bundle
from mlffd.errors import ConfigError, NonFinitePositionsError, NonFiniteResultError, StructureError
from mlffd.graph import Exchange, Graph, from_edges
from mlffd.kernels import cpu
from mlffd.neighbors import Edges, NeighborList, NeighborLists
from mlffd.predict import StructurePrediction, array, from_gradient, pair_gradient
from mlffd.students.student import Student, check_species

DTYPES = {"float32": torch.float32, "float64": torch.float64}
BACKENDS = ("reference", "cpu")
SKIN = 0.7  # Å; in liquid water at 300 K a list then lasts 14 steps of 0.5 fs; 0.5 to 0.8 cost the same
TUNING_SECONDS = 2.0  # after which no larger batch is tried
TRIALS = 5  # of each of two sizes, one after the other; the fastest counts
WORTHWHILE = 0.9  # of the time that an atom takes in smaller batches; noise does not reach it
OUT_OF_MEMORY = (MemoryError, torch.cuda.OutOfMemoryError)


@dataclass(frozen=True, eq=False)
class EdgeGradients:
    """The edges of structures that were evaluated together, and what the energy feels of each.

    Every edge has its reverse, and on the backend ``cpu`` the two may carry each other's share.
    """

    first_structure: int  # its place in the list that is being evaluated
    first_atom: np.ndarray  # (n_structures + 1,): atoms of structure k are first_atom[k] to first_atom[k + 1]
    atomic_numbers: np.ndarray  # (n_atoms,)
    center: np.ndarray  # (n_edges,) sorted
    neighbor: np.ndarray  # (n_edges,)
    vectors: np.ndarray  # (n_edges, 3) Å; some may be longer than the cutoff
    gradient: np.ndarray  # (n_edges, 3) eV/Å, dE/d(vector), 0 beyond the cutoff


Watch = Callable[[EdgeGradients], None]


class Engine:
    """Evaluates a student for one structure or many.

    Args:
        source: a bundle, the path of one, the name of a shipped student, or a student.
        device: a torch device, such as ``cpu`` or ``cuda``.
        dtype: ``float32`` (energies are still summed in float64) or ``float64``.
        backend: ``cpu``, fused C++ kernels; ``reference``, plain PyTorch, on any device; ``auto``, the first
            of these that can run the student on the device.
        max_batch_atoms: structures are evaluated together up to so many atoms; more are split into chunks.
            By default 2048, or 256 for the backend ``cpu`` on one thread, whose work then stays in the cache.
        skin: in Å. Neighbor lists reach so much farther than the cutoff, and are used again until an atom has
            moved by half of it; 0 builds them anew each time. Results do not depend on it.

    Threads may share an engine.

    Raises:
        BundleError: the bundle cannot be read.
        ConfigError: unknown dtype or backend, a device this machine does not have, or a backend that cannot
            run the student there.
    """

    def __init__(
        self,
        source: Bundle | Student | str | Path,
        device: str = "cpu",
        dtype: str = "float32",
        backend: str = "auto",
        max_batch_atoms: int | None = None,
        skin: float = SKIN,
    ):
        if dtype not in DTYPES:
            raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
        if backend not in ("auto", *BACKENDS):
            raise ConfigError(f"backend must be auto or one of {', '.join(BACKENDS)}, not {backend!r}")
        if not 0 <= skin < np.inf:
            raise ConfigError(f"skin must be 0 Å or more, not {skin!r}")
        if isinstance(source, str | Path):
            source = read_bundle(source)
        if not isinstance(source, Bundle | Student):
            raise ConfigError(f"an engine takes a bundle, its path or a student, not {type(source).__name__}")
        self.metadata = source.metadata if isinstance(source, Bundle) else {}
        self.verdict = source.verdict if isinstance(source, Bundle) else ""
        self.dtype = dtype
        self.device = usable_device(device)
        if self.device.type == "cpu":
            keep_freed_memory()
        student = source.student if isinstance(source, Bundle) else source
        self.cutoff, self.species, self.n_layers = student.cutoff, student.species, student.n_layers
        self.kernel = kernel_for(student, dtype, backend, self.device)
        self.backend = "reference" if self.kernel is None else "cpu"
        if max_batch_atoms is None:
            max_batch_atoms = 256 if self.backend == "cpu" and torch.get_num_threads() == 1 else 2048
        self.max_batch_atoms = max_batch_atoms
        self.neighbor_lists = NeighborLists(self.cutoff, skin)
        self._index_of_number = array(student.index_of_number).astype(np.int32)
        self.student = deepcopy(student).cast(DTYPES[dtype]).to(self.device).requires_grad_(False).eval()

    def evaluate(
        self, structures: Atoms | Sequence[Atoms], watch: Watch | None = None
    ) -> list[StructurePrediction]:
        """Energy, forces and virial of each structure, or of a single one; sizes, cells and pbc may differ.

        ``watch`` is called after each chunk with all of its edges, and may raise what it likes.

        Raises:
            StructureError: a structure is empty, has an unknown element, a position that is not finite or a
                singular cell; the message says which structure.
            NonFiniteResultError: the student returned NaN or infinity.
        """
        structures = [structures] if isinstance(structures, Atoms) else list(structures)
        predictions = []
        for chunk in chunks(structures, self.max_batch_atoms):
            predictions += self._predict(chunk, len(predictions), len(structures), watch)
        return predictions

    def tune_batch(self, structures: Sequence[Atoms]) -> int:
        """Find by trial how many atoms to evaluate together when structures like these come in numbers.

        Batches are doubled as long as an atom takes less time in them, for TUNING_SECONDS at most. Where
        memory ends, half of what fitted is the most: other structures may have more neighbors. What is timed
        are copies that have moved a little, each with a neighbor list of its own.

        Returns:
            The number that it has set ``max_batch_atoms`` to; batches up to it have been evaluated.

        Raises:
            ConfigError: there is not enough memory for one structure.
            What ``evaluate`` raises.
        """
        trial = BatchTrial(self, structures)
        deadline = time.perf_counter() + TUNING_SECONDS
        best, n_structures, n_in_vain = 1, 1, 0
        try:
            trial.prepare(1)
            while n_in_vain < 2 and time.perf_counter() < deadline:
                n_structures *= 2
                trial.prepare(n_structures)
                gained = trial.ratio(n_structures, best, deadline) < WORTHWHILE
                best, n_in_vain = (n_structures, 0) if gained else (best, n_in_vain + 1)
        except OUT_OF_MEMORY as error:
            if n_structures == 1:
                size = f"{len(structures[0])} atoms"
                raise ConfigError(f"there is not enough memory on {self.device} for {size}") from error
            best = min(best, max(n_structures // 4, 1))
            torch.cuda.empty_cache()  # does nothing without a GPU
        self.max_batch_atoms = trial.n_atoms(best)
        return self.max_batch_atoms

    def _predict(
        self, chunk: list[Atoms], start: int, n_structures: int, watch: Watch | None
    ) -> list[StructurePrediction]:
        """Evaluate ``chunk`` in one go: structures ``start`` and on of ``n_structures``."""
        found = [self._find_list(atoms, start + k, n_structures) for k, atoms in enumerate(chunk)]
        lists, positions, species_idx = zip(*found)
        edges, positions = self.neighbor_lists.join(list(lists)), np.concatenate(positions)
        cells = np.array([atoms.cell.array for atoms in chunk])
        periodic = np.array([atoms.pbc for atoms in chunk]).all(axis=1)
        volumes = np.where(periodic, np.abs(np.linalg.det(cells)), np.nan)
        if self.kernel is not None:
            predictions, on_edges = self._on_kernel(
                np.concatenate(species_idx), edges, positions, cells, volumes
            )
        else:
            numbers = np.concatenate([atoms.numbers for atoms in chunk])
            vectors = edges.vectors(positions, cells)
            graph = from_edges(edges, vectors, numbers, volumes, self.cutoff, DTYPES[self.dtype], self.device)
            predictions, on_edges = self._on_pytorch(graph)
        check_finite(predictions, chunk, start)
        if watch is not None:
            numbers = np.concatenate([atoms.numbers for atoms in chunk])
            watch(EdgeGradients(start, edges.first_atom, numbers, *on_edges()))
        return predictions

    def _find_list(
        self, atoms: Atoms, place: int, n_structures: int
    ) -> tuple[NeighborList, np.ndarray, np.ndarray]:
        """A neighbor list, the positions to use with it and the species' indices; errors say which structure
        of several it was."""
        try:
            species_idx = self._species_idx(atoms.numbers)
            found = self.neighbor_lists.find(atoms.positions, atoms.cell.array, atoms.pbc, place)
            return *found, species_idx
        except StructureError as error:
            if n_structures == 1:
                raise
            raise type(error)(f"structure {place}: {error}") from error

    def _on_pytorch(self, graph: Graph) -> tuple[list[StructurePrediction], Callable[[], tuple]]:
        """Predictions, and how to get centers, neighbors, vectors and gradients of edges on the host."""
        energies, gradient = pair_gradient(self.student, graph)

        def on_edges() -> tuple[np.ndarray, ...]:
            vectors = (array(tensor).astype(np.float64) for tensor in (graph.edge_vectors, gradient))
            return (*array(graph.edge_index), *vectors)

        return from_gradient(graph, energies, gradient).split(), on_edges

    def _on_kernel(
        self,
        species_idx: np.ndarray,
        edges: Edges,
        positions: np.ndarray,
        cells: np.ndarray,
        volumes: np.ndarray,
    ) -> tuple[list[StructurePrediction], Callable[[], tuple]]:
        """The same from arrays of all structures; ``volumes`` as in ``Graph``."""
        csr = edges.first_atom, edges.first_edge, edges.neighbor
        vectors = cpu.edge_vectors(*csr, edges.cell_shifts, positions, cells)
        energies, gradient = self.kernel.evaluate(
            species_idx, *csr[1:], vectors, symmetric=True, n_threads=torch.get_num_threads()
        )
        forces, virials = cpu.sum_forces(*csr, vectors, gradient)
        stresses = -virials / volumes[:, None, None]
        ends = edges.first_atom.tolist()
        predictions = [
            StructurePrediction(
                float(energies[start:end].sum()), energies[start:end], forces[start:end], virial, stress
            )
            for start, end, virial, stress in zip(ends, ends[1:], virials, stresses)
        ]
        return predictions, lambda: (edges.center, edges.neighbor, vectors, gradient)

    def _species_idx(self, atomic_numbers: np.ndarray) -> np.ndarray:
        """Index (n_atoms,) int32 into ``species``. Raises UnknownElementError."""
        index = self._index_of_number.take(atomic_numbers, mode="clip")
        if (index < 0).any():
            check_species(np.asarray(atomic_numbers).tolist(), self.species)
        return index

    def evaluate_pairs(
        self,
        atomic_numbers: np.ndarray,
        pair_i: np.ndarray,
        pair_j: np.ndarray,
        rij: np.ndarray,
        n_centers: int,
        exchange: Exchange | None = None,
        n_owned: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Evaluate from a caller's own neighbor list, as LAMMPS has it.

        A student that passes messages (``n_layers`` > 1) has to know of neighbors' neighbors: through an
        ``exchange``, or from ghosts that are centers too (``n_owned``), with all their neighbors as far as
        messages travel.

        Args:
            atomic_numbers: (n_atoms,), ghosts last.
            pair_i, pair_j: (n_pairs,), every neighbor of every center, in any order;
                ``pair_i`` < ``n_centers`` and ``pair_j`` < ``n_atoms`` are the caller's to keep.
            rij: (n_pairs, 3) in Å, ``x_j - x_i``.
            n_centers: atoms from this index on are ghosts.
            exchange: sends features of atoms between their owners and their ghosts, n_layers - 1 times there
                and back whatever this rank has; see ``mlffd.graph.Exchange``. dE/drij is then that of the
                energy of all ranks. Ranks that run as threads each need an engine of their own.
            n_owned: only the first so many centers have an energy that counts. This is evaluated in plain
                PyTorch, whatever the backend.

        Returns:
            atomic_energies (n_centers,) or (n_owned,) in eV and dE/drij (n_pairs, 3) in eV/Å, both float64.

        Raises:
            NonFinitePositionsError, NonFiniteResultError, UnknownElementError.
            ValueError: ghosts that messages would have to come from, without an exchange; or an exchange
                together with ``n_owned``.
            What the exchange raises; the exchange is not called again then.
        """
        if exchange is not None and n_owned is not None:
            raise ValueError("n_owned is for ghosts that are centers too: they need no exchange")
        if not np.isfinite(rij).all():
            raise NonFinitePositionsError("a distance between two atoms is not finite; did the run explode?")
        if np.any(np.diff(pair_i) < 0):
            order = np.argsort(pair_i, kind="stable")
            pairs, gradient = (pair_i[order], pair_j[order], rij[order]), np.empty(rij.shape)
            energies, gradient[order] = self.evaluate_pairs(
                atomic_numbers, *pairs, n_centers, exchange, n_owned
            )
            return energies, gradient
        if self.kernel is None or n_owned is not None:
            graph = self._pair_graph(atomic_numbers, pair_i, pair_j, rij, n_centers, exchange)
            energies, gradient = pair_gradient(self.student, graph, n_owned=n_owned)
            energies, gradient = array(energies), array(gradient).astype(np.float64)
        else:
            energies, gradient = self.kernel.evaluate(
                self._species_idx(atomic_numbers),
                first_edges(pair_i, n_centers),
                np.ascontiguousarray(pair_j, dtype=np.int32),
                np.ascontiguousarray(rij, dtype=np.float64),
                n_threads=torch.get_num_threads(),
                exchange=exchange,
            )
        if not (np.isfinite(energies).all() and np.isfinite(gradient).all()):
            raise NonFiniteResultError("energies or forces are not finite; do two atoms coincide?")
        return energies, gradient

    def _pair_graph(self, atomic_numbers, pair_i, pair_j, rij, n_centers: int, exchange) -> Graph:
        numbers = torch.as_tensor(np.asarray(atomic_numbers, dtype=np.int64), device=self.device)
        edge_index = np.stack([pair_i, pair_j]).astype(np.int64)
        return Graph(
            atomic_numbers=numbers,
            edge_index=torch.as_tensor(edge_index, device=self.device),
            edge_vectors=torch.as_tensor(np.ascontiguousarray(rij), device=self.device).to(
                DTYPES[self.dtype]
            ),
            system_idx=torch.zeros_like(numbers),
            n_systems=1,
            volume=torch.full((1,), torch.nan, dtype=torch.float64, device=self.device),
            n_centers=int(n_centers),
            exchange=exchange,
        )


class BatchTrial:
    """Times batches of copies of some structures."""

    def __init__(self, engine: Engine, structures: Sequence[Atoms]):
        self.engine, self.structures = engine, structures
        self.random = np.random.default_rng(0)
        self.copies: list[Atoms] = []

    def n_atoms(self, n_structures: int) -> int:
        """Of the first copies."""
        return sum(len(self.structures[k % len(self.structures)]) for k in range(n_structures))

    def prepare(self, n_structures: int) -> None:
        """Have so many copies, their neighbor lists and the memory for all of them."""
        for k in range(len(self.copies), n_structures):
            atoms = self.structures[k % len(self.structures)].copy()
            atoms.positions += k * self.engine.neighbor_lists.skin  # too far to share a list
            self.copies.append(atoms)
        self.seconds(n_structures)

    def ratio(self, n_structures: int, n_others: int, deadline: float) -> float:
        """The time that an atom takes in batches of one size over that in another."""
        sizes = (n_structures, n_others)
        fastest = [math.inf, math.inf]
        for _ in range(TRIALS):
            fastest = [min(fast, self.seconds(size)) for fast, size in zip(fastest, sizes)]
            if time.perf_counter() > deadline:
                break
        one, other = (fast / self.n_atoms(size) for fast, size in zip(fastest, sizes))
        return one / other

    def seconds(self, n_structures: int) -> float:
        """That one batch takes, after atoms have moved as in a step."""
        batch = self.copies[:n_structures]
        for atoms in batch:
            atoms.positions += self.random.uniform(-0.01, 0.01, atoms.positions.shape)
        self.engine.max_batch_atoms = self.n_atoms(n_structures)
        started = time.perf_counter()
        self.engine.evaluate(batch)
        return time.perf_counter() - started


def check_finite(predictions: list[StructurePrediction], structures: list[Atoms], start: int) -> None:
    """Refuse results that no driver can use; the first structure is number ``start``.

    Raises:
        NonFiniteResultError: naming the structure and the first atom, counted from 0.
    """
    for k, (prediction, atoms) in enumerate(zip(predictions, structures)):
        # one sum: forces that are finite and whose sum is not are past using, too
        if not np.isfinite(prediction.energy + prediction.forces.sum()):
            wrong = np.flatnonzero(~np.isfinite(prediction.forces).all(axis=1))
            where = f", first of all at atom {wrong[0]} ({atoms.symbols[wrong[0]]})," if len(wrong) else ""
            raise NonFiniteResultError(
                f"energy or forces of structure {start + k} ({atoms.get_chemical_formula()}){where} "
                "are not finite; do two atoms coincide?"
            )


def first_edges(centers: np.ndarray, n_centers: int) -> np.ndarray:
    """Where the edges of each center begin, and where all end: (n_centers + 1,) int64; ``centers`` sorted."""
    # values of the same dtype: others would have all centers cast
    return np.searchsorted(centers, np.arange(n_centers + 1, dtype=centers.dtype)).astype(np.int64)


def kernel_for(student: Student, dtype: str, backend: str, device: torch.device) -> cpu.CpuKernel | None:
    """The compiled kernel that ``backend`` asks for; None for plain PyTorch."""
    if backend == "reference":
        return None
    if backend == "cpu" and device.type != "cpu":
        raise ConfigError(f"the backend cpu does not run on {device}; use auto or reference there")
    if backend == "auto" and (device.type != "cpu" or student.family not in cpu.FAMILIES):
        return None
    try:
        return cpu.CpuKernel(student, dtype)
    except cpu.KernelsNotCompiled as error:
        if backend == "cpu":
            raise
        say_once(f"{error}: students run on plain PyTorch, many times slower")
        return None


@cache
def say_once(line: str) -> None:
    """A line for the user on standard error, the first time only."""
    print(f"mlffd: {line}", file=sys.stderr, flush=True)


def chunks(structures: Sequence[Atoms], max_atoms: int) -> Iterator[list[Atoms]]:
    """Split a list so that no part has more than ``max_atoms`` atoms, unless one structure alone has."""
    chunk, n_atoms = [], 0
    for structure in structures:
        if chunk and n_atoms + len(structure) > max_atoms:
            yield chunk
            chunk, n_atoms = [], 0
        chunk.append(structure)
        n_atoms += len(structure)
    if chunk:
        yield chunk


def usable_device(name: str) -> torch.device:
    """The torch device of that name.

    Raises:
        ConfigError: not a device, or not on this machine.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ConfigError(f"device {name!r} is not usable here: {str(error).splitlines()[0]}") from error
    return device
