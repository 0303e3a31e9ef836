# SPDX-License-Identifier: MIT
"""LAMMPS, through ``fix external`` and ``fix python/invoke``: for builds without ML-IAP, or without Python.

``pair_style zero`` makes LAMMPS keep a neighbor list and exchange ghost atoms, and computes nothing. A fix
reads the list each step, asks the student, and adds its forces.

- :func:`fix_external`, from a ``python`` command in an input, or from ``mlffd lammps run`` where LAMMPS has
  no Python: forces, energy, virial, energies and virials of atoms. As in ``pair_style mliap``, half of a
  pair's virial belongs to either atom. While LAMMPS minimizes it may not take energies of atoms from the fix;
  a line says so where something wants them then (``compute pe/atom``). A ``run 0`` before mends that.
- :func:`fix_python`, from a ``python`` command where LAMMPS has no ``fix external``: forces only. Potential
  energy and pressure are those of whatever else the input has, so there is no constant pressure, and LAMMPS
  does not call the fix when it minimizes.

An input of the first kind::

    python fix_external input 3 SELF water "O H" format pss here &
           "from mlffd.drivers.lammps_fix import fix_external"
    python fix_external invoke

``water`` is a bundle or the name of a shipped student; ``O H`` are the elements of the atom types, or NULL.
The student is no pair style then: ``compute pressure``, ``pe`` and ``stress/atom`` have its share under the
keyword ``fix``, not ``pair``, and what asks the pair style for pairs (``group/group``,
``centroid/stress/atom``) knows nothing of it.

Both functions issue the commands pair_style, pair_coeff and fix. The fix must come before those that change
forces (``fix setforce``, ``fix shake``), for LAMMPS takes fixes in the order in which they are defined.

The environment variables are those of ``drivers/lammps_mliap.py``, MLFFD_DEVICE, MLFFD_DTYPE, MLFFD_THREADS,
and of ``drivers/lammps_guard.py``, MLFFD_GUARD and its kin.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from ctypes import c_void_p
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
import torch
from ase.data import atomic_numbers, chemical_symbols

from mlffd.bundle import Bundle, read_bundle
from mlffd.drivers.lammps_exchange import GhostExchange
from mlffd.drivers.lammps_guard import Guard
from mlffd.drivers.lammps_instance import LammpsInstance, address_of, vectors
from mlffd.drivers.lammps_library import FUNCTIONS, VOIGT, call, check_for_error, command
from mlffd.drivers.lammps_ranks import EndsAllRanks, rank_and_size, threads_per_rank
from mlffd.drivers.verdict import in_ascii, verdict_to_say
from mlffd.engine import DTYPES, Engine, first_edges
from mlffd.errors import ConfigError, NonFinitePositionsError, UnknownElementError
from mlffd.kernels import cpu

FIX = "mlffd"  # the id of the fix
ENERGY_UNITS = {"metal": 1.0, "real": 23.060549}  # of LAMMPS per eV, as LAMMPS has it
NEIGHBOR_MASK = 0x1FFFFFFF  # the other bits tell of bonds
MINIMIZES = 2  # what LAMMPS says of itself then
WHILE_MINIMIZING = (
    "compute pe/atom may miss fix external in minimize; run 0 before, with the same output, helps"
)

# caller, step, nlocal, ids, positions, forces to fill in
_CALLBACK = ctypes.CFUNCTYPE(None, c_void_p, ctypes.c_int64, ctypes.c_int, c_void_p, c_void_p, c_void_p)
_callbacks: dict[int, object] = {}  # by instance: LAMMPS holds their address, Python must not forget them


def fix_external(handle, student: str, elements: str) -> None:
    """Let ``student`` move the atoms through ``fix external``; a ``python`` command of an input calls this.

    Args:
        handle: SELF of the ``python`` command (format p).
        student: bundle, or name of a shipped student.
        elements: one for each atom type, or NULL, separated by blanks.
    """
    with EndsAllRanks("fix external"):
        instance = LammpsInstance(address_of(handle), ctypes.CDLL(None))
        attach_external(instance, load_engine(read_bundle(student)), elements.split())


def fix_python(handle, student: str, elements: str) -> None:
    """As :func:`fix_external`, but through ``fix python/invoke``: forces and nothing else."""
    with EndsAllRanks("fix python/invoke"):
        instance = LammpsInstance(address_of(handle), ctypes.CDLL(None))
        attach_python(instance, load_engine(read_bundle(student)), elements.split())


def load_engine(bundle: Bundle, device: str = "cpu", dtype: str = "float32") -> Engine:
    """The engine of a rank; environment variables go before the arguments.

    Raises:
        ConfigError: an unknown dtype, device or number of threads.
    """
    dtype = os.environ.get("MLFFD_DTYPE", dtype)
    if dtype not in DTYPES:
        raise ConfigError(f"dtype is {dtype!r}; choose {' or '.join(DTYPES)}")
    torch.set_num_threads(threads_per_rank())
    return Engine(bundle, device=os.environ.get("MLFFD_DEVICE", device), dtype=dtype)


def attach_external(
    instance: LammpsInstance, engine: Engine, elements: list[str], in_hybrid: bool = False
) -> None:
    """Set up ``pair_style zero`` and ``fix external`` with ``engine``; on all ranks.

    Args:
        in_hybrid: ``zero`` is already one of the styles of ``pair_style hybrid`` or ``hybrid/overlay``.

    Raises:
        ConfigError, UnknownElementError: the student cannot run here.
        LammpsStopped: LAMMPS refuses a command.
    """
    atoms = AtomsOfLammps(instance, engine, elements)
    # Python would raise KeyboardInterrupt in the callback, where it is lost: the run would go on
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _prepare(atoms, "fix external", in_hybrid)
    command(instance, f"fix {FIX} all external pf/callback 1 1")
    command(instance, f"fix_modify {FIX} energy yes virial yes")
    _callbacks[instance.pointer] = callback = _external_callback(atoms)
    address = ctypes.cast(callback, c_void_p)
    # what comes last is handed to the callback, and must not be null
    call(instance, "lammps_set_fix_external_callback", FIX.encode(), address, instance.pointer)
    check_for_error(instance)


def attach_python(instance: LammpsInstance, engine: Engine, elements: list[str]) -> None:
    """Set up ``pair_style zero`` and ``fix python/invoke`` with ``engine``. Raises as attach_external."""
    atoms = AtomsOfLammps(instance, engine, elements)
    _prepare(atoms, "fix python/invoke, forces only: no energy, no pressure, no minimize")
    sys.modules["__main__"].mlffd_post_force = _post_force(atoms)  # where LAMMPS looks for it
    command(instance, f"fix {FIX} all python/invoke 1 post_force mlffd_post_force")


@dataclass(frozen=True)
class Answer:
    """What a student says of LAMMPS' atoms, in eV and Å."""

    forces: np.ndarray  # (n_local, 3) of the atoms this rank owns
    energy: float  # of all ranks
    virial: np.ndarray  # (6,) of all ranks: -sum r ⊗ dE/dr, xx yy zz xy xz yz
    atomic_energies: np.ndarray  # (n_local,)
    atomic_virials: np.ndarray | None  # (n_local, 6); where asked for


class AtomsOfLammps:
    """The atoms of a LAMMPS with ``pair_style zero R full``, and a student that is asked about them.

    Args:
        elements: chemical symbol of each atom type, or NULL for a type that the student does not see.

    Raises:
        ConfigError: too many or too few elements, other units than metal and real, or several ranks and no
            mpi4py that works with LAMMPS' MPI.
        UnknownElementError: the student does not know an element.
    """

    def __init__(self, instance: LammpsInstance, engine: Engine, elements: list[str]):
        self.instance, self.engine = instance, engine
        self.number_of_type = _numbers_of_types(elements, engine.species, instance.setting("ntypes"))
        if instance.units() not in ENERGY_UNITS:
            raise ConfigError(f"students work in units metal or real, not {instance.units()}")
        self.energy_unit = ENERGY_UNITS[instance.units()]
        self.communicator = _communicator(instance)
        self.exchange = GhostExchange(self.communicator)
        self.guard = Guard(engine.metadata, engine.species)
        self.has_warned = False

    def evaluate(self, with_atomic_virials: bool) -> Answer:
        """Ask the student about the atoms where they are now. Collective.

        Raises:
            ConfigError: the input has replaced ``pair_style zero``, or hides bonded atoms.
            NonFinitePositionsError, NonFiniteResultError.
            GuardError: the guard is to stop runs, and there is a reason.
        """
        n_local = self.instance.n_local
        self.exchange.update(self.instance.tags(), n_local)
        row = self.exchange.row_of_atom
        atomic_numbers = self.number_of_type[self.instance.types()]
        seen = atomic_numbers > 0
        i, j, rij = self._pairs(seen)
        # what is not seen may be any species: it has no neighbors, and its energy is dropped
        numbers = np.full(self.exchange.n_rows, self.engine.species[0])
        numbers[row[seen]] = atomic_numbers[seen]
        neighbor = row[j]  # and row[i] is i, an atom of this rank
        energies, gradient = self.engine.evaluate_pairs(numbers, i, neighbor, rij, n_local, self.exchange)
        energies[~(seen[:n_local] & self.instance.is_present())] = 0.0
        self.guard.check(self.instance, atomic_numbers, i, j, rij, gradient)
        return self._answer(energies, i, neighbor, rij, gradient, with_atomic_virials)

    def _answer(self, energies, i, j, rij, gradient, with_atomic_virials: bool) -> Answer:
        n_rows, n_local = self.exchange.n_rows, len(energies)
        forces, virial = sum_forces(n_rows, i, j, rij, gradient)
        self.exchange.reverse(forces)
        totals = self._sum_over_ranks(np.append(virial, energies.sum()))
        atomic_virials = None
        if with_atomic_virials:
            atomic_virials = sum_atomic_virials(n_rows, i, j, rij, gradient)
            self.exchange.reverse(atomic_virials)
            atomic_virials = atomic_virials[:n_local]
        return Answer(forces[:n_local], totals[6], totals[:6], energies, atomic_virials)

    def _sum_over_ranks(self, values: np.ndarray) -> np.ndarray:
        if self.communicator is None:
            return values
        total = np.empty_like(values)
        self.communicator.Allreduce(values, total)
        return total

    def _pairs(self, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pairs of atoms closer than the cutoff: i, sorted, and j (n_pairs,), rij (n_pairs, 3)."""
        positions = self.instance.positions()
        if not np.isfinite(positions).all():
            raise NonFinitePositionsError("an atom is at no finite place any more; did the run explode?")
        self._check_bonded_atoms_are_seen()
        neighbor_list = call(self.instance, "lammps_find_pair_neighlist", b"zero", 1, 0, 0)
        if neighbor_list < 0:
            raise ConfigError("the input has replaced the pair_style of the student: `unfix mlffd` as well")
        n_listed = call(self.instance, "lammps_neighlist_num_elements", neighbor_list)
        read = cpu.lammps_pairs if cpu.is_compiled() else _read_pairs
        address = ctypes.cast(self.instance.library.lammps_neighlist_element_neighbors, c_void_p)
        i, j, rij = read(
            address.value, self.instance.pointer, neighbor_list, n_listed, positions, self.engine.cutoff
        )
        if not seen.all():
            i, j, rij = (values[seen[i] & seen[j]] for values in (i, j, rij))
        if (np.diff(i) < 0).any():
            order = np.argsort(i, kind="stable")
            i, j, rij = i[order], j[order], rij[order]
        return i, j, rij

    def _check_bonded_atoms_are_seen(self) -> None:
        if self.instance.hides_bonded_atoms():
            raise ConfigError(
                "special_bonds hides bonded atoms from the student: give `special_bonds lj/coul 1 1 1`"
            )


def sum_forces(
    n_rows: int, i: np.ndarray, j: np.ndarray, rij: np.ndarray, gradient: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Forces (n_rows, 3) and virial (6,), in LAMMPS' order, of pairs sorted by ``i``.

    ``gradient`` (n_pairs, 3) is dE/drij.
    """
    if cpu.is_compiled():
        everything = np.array([0, n_rows])
        forces, virials = cpu.sum_forces(everything, first_edges(i, n_rows), j, rij, gradient)
        return forces, virials[0][VOIGT]
    forces = _sum_by_row(n_rows, i, gradient) - _sum_by_row(n_rows, j, gradient)
    return forces, -(rij.T @ gradient)[VOIGT]


def sum_atomic_virials(
    n_rows: int, i: np.ndarray, j: np.ndarray, rij: np.ndarray, gradient: np.ndarray
) -> np.ndarray:
    """Virials (n_rows, 6) of atoms, in LAMMPS' order: half of each pair's -r ⊗ dE/dr for either atom."""
    of_pairs = -0.5 * rij[:, VOIGT[0]] * gradient[:, VOIGT[1]]
    return _sum_by_row(n_rows, i, of_pairs) + _sum_by_row(n_rows, j, of_pairs)


def _sum_by_row(n_rows: int, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.stack([np.bincount(rows, column, n_rows) for column in values.T], axis=1)


def _read_pairs(function_address, pointer, neighbor_list, n_listed, positions, cutoff):
    """As ``cpu.lammps_pairs``, many times slower, where there is no compiled code."""
    types = FUNCTIONS["lammps_neighlist_element_neighbors"]
    read = ctypes.CFUNCTYPE(*types)(function_address)
    atom, n_neighbors, neighbors = ctypes.c_int(), ctypes.c_int(), ctypes.POINTER(ctypes.c_int)()
    i, j = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]
    for k in range(n_listed):
        read(pointer, neighbor_list, k, *map(ctypes.addressof, (atom, n_neighbors, neighbors)))
        if n_neighbors.value > 0:
            j.append(np.ctypeslib.as_array(neighbors, (n_neighbors.value,)) & NEIGHBOR_MASK)
            i.append(np.full(n_neighbors.value, atom.value, np.int32))
    i, j = np.concatenate(i), np.concatenate(j)
    rij = positions[j] - positions[i]
    close = ~((rij**2).sum(axis=1) >= cutoff**2)
    return i[close], j[close], rij[close]


def _external_callback(atoms: AtomsOfLammps):
    """What LAMMPS calls each step. An exception cannot pass through C, so it ends the run here."""
    instance, unit = atoms.instance, atoms.energy_unit

    def compute(_, step, n_local, tags, positions, forces) -> None:
        with EndsAllRanks("cannot compute forces", also_alone=True):
            if call(instance, "lammps_is_running") == MINIMIZES and _noted(instance, "eflag_atom") == step:
                _warn_of_atomic_energies(atoms)
            answer = _evaluate(atoms, _noted(instance, "vflag_atom") in (step, None))
            vectors(forces, n_local)[:] = answer.forces * unit
            _set(instance, "energy_global", answer.energy * unit)
            _set(instance, "virial_global", _values(answer.virial * unit))
            _set(instance, "energy_peratom", _values(answer.atomic_energies * unit))
            if answer.atomic_virials is not None:
                virials = np.ascontiguousarray(answer.atomic_virials * unit)
                rows = virials.ctypes.data + virials.strides[0] * np.arange(n_local + 1)
                _set(instance, "virial_peratom", _values(rows))

    return _CALLBACK(compute)


def _post_force(atoms: AtomsOfLammps) -> Callable:
    """What ``fix python/invoke`` calls each step."""

    def post_force(_lmp, _vflag) -> None:
        with EndsAllRanks("cannot compute forces"):
            answer = _evaluate(atoms, with_atomic_virials=False)
            forces = atoms.instance.forces()[: len(answer.forces)]
            forces += answer.forces * atoms.energy_unit

    return post_force


def _evaluate(atoms: AtomsOfLammps, with_atomic_virials: bool) -> Answer:
    try:
        return atoms.evaluate(with_atomic_virials)
    except BaseException:
        call(atoms.instance, "lammps_flush_buffers")  # the log shall tell how far it went
        raise


def _prepare(atoms: AtomsOfLammps, route: str, in_hybrid: bool = False) -> None:
    """Give LAMMPS the pair style that keeps a full neighbor list, and say which student it is."""
    instance, engine = atoms.instance, atoms.engine
    if in_hybrid:
        seen = np.flatnonzero(atoms.number_of_type)  # other types and their pairs are left to other styles
        for i, j in combinations_with_replacement(seen, 2):
            command(instance, f"pair_coeff {i} {j} zero {engine.cutoff!r}")
    else:
        command(instance, f"pair_style zero {engine.cutoff!r} full")
        command(instance, "pair_coeff * *")
    known = " ".join(chemical_symbols[number] for number in engine.species)
    name = engine.metadata.get("name", "student")
    facts = f"elements {known}, cutoff {engine.cutoff:g} A, {engine.device}, {engine.dtype}; {route}"
    _print(instance, f"mlffd: {name}: {facts}")
    verdict = verdict_to_say(engine)
    if verdict:
        _print(instance, f"mlffd: {verdict}")


def _print(instance: LammpsInstance, line: str) -> None:
    """To screen and log; on all ranks."""
    command(instance, 'print "{}"'.format(in_ascii(line).replace('"', "").replace("$", "")))


def _numbers_of_types(elements: list[str], species: tuple[int, ...], n_types: int) -> np.ndarray:
    """Atomic number of each type (n_types + 1,); 0 for NULL, and for type 0, which there is not."""
    if len(elements) != n_types:
        raise ConfigError(
            f"there are {n_types} atom types, and {len(elements)} elements ({' '.join(elements)}) for them"
        )
    numbers = [0 if element == "NULL" else atomic_numbers.get(element, -1) for element in elements]
    unknown = sorted({elements[k] for k, number in enumerate(numbers) if number and number not in species})
    if unknown:
        raise UnknownElementError(
            f"the elements of the atom types name {', '.join(unknown)}, but the student knows only "
            f"{', '.join(chemical_symbols[k] for k in species)}: correct them or use another student"
        )
    return np.array([0, *numbers])


def _communicator(instance: LammpsInstance):
    """mpi4py's communicator of LAMMPS' ranks; None where there is one rank."""
    if instance.n_ranks == 1:
        return None
    communicator = instance.communicator()
    if communicator is None or communicator.Get_size() != instance.n_ranks:
        raise ConfigError(
            f"LAMMPS runs on {instance.n_ranks} ranks, and mpi4py, which a student needs there, is not "
            "installed or works with another MPI: `pip install mpi4py` beside the MPI that LAMMPS uses"
        )
    return communicator


def _noted(instance: LammpsInstance, name: str) -> int | None:
    """The step at which LAMMPS last wanted virials or energies of atoms; None where it does not say."""
    noted = instance.global_values(name, np.int64)
    return int(noted[0]) if len(noted) else None


def _warn_of_atomic_energies(atoms: AtomsOfLammps) -> None:
    """Once. The flag that fix external looks at is set by runs only, and undefined before the first."""
    if not atoms.has_warned and rank_and_size()[0] == 0:
        print(f"\nmlffd: warning: {WHILE_MINIMIZING}", flush=True)
    atoms.has_warned = True


def _values(values: np.ndarray) -> c_void_p:
    """The address of contiguous values, which it keeps alive."""
    return values.ctypes.data_as(c_void_p)


def _set(instance: LammpsInstance, what: str, value) -> None:
    call(instance, f"lammps_fix_external_set_{what}", FIX.encode(), value)
