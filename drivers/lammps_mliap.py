# SPDX-License-Identifier: MIT
"""LAMMPS, through ``pair_style mliap unified``: the file it loads and the object it talks to.

``export`` writes a thin file: the bundle's bytes and the name of :func:`load_mliap`, which LAMMPS calls by
unpickling it. The name and the first argument, a format number, stay as they are for good, so that files
outlive versions of mlffd.

| variable      | flag of ``mlffd lammps export`` | meaning                                            |
|---------------|---------------------------------|----------------------------------------------------|
| MLFFD_DEVICE  | --device                        | cpu (default), cuda, cuda:1, ...                   |
| MLFFD_DTYPE   | --dtype                         | float32 (default) or float64                       |
| MLFFD_THREADS |                                 | threads of a rank; default OMP_NUM_THREADS, else 1 |

The variables are read by ``lmp`` when it loads the file and go before what the file says.

Students of one layer and students that pass messages run on any number of ranks with the pair style's flag 0;
see lammps_messages.py for what the latter take.
"""

import hashlib
import io
import os
import pickle
from pathlib import Path

import numpy as np
import torch
from ase.data import chemical_symbols

from mlffd.bundle import mlffd_version, read_bundle, read_bundle_bytes
from mlffd.drivers.lammps_guard import Guard
from mlffd.drivers.lammps_instance import LammpsInstance, instance_behind
from mlffd.drivers.lammps_kokkos import HostData
from mlffd.drivers.lammps_messages import Messages
from mlffd.drivers.lammps_ranks import EndsAllRanks, on_any_rank, rank_and_size, threads_per_rank
from mlffd.drivers.verdict import say_verdict
from mlffd.engine import DTYPES, Engine
from mlffd.errors import BundleError, ConfigError, NonFinitePositionsError, UnknownElementError
from mlffd.files import write_atomically

FORMAT = 1
MANY_NEIGHBORS = 8  # of an owned atom, on average


def export(
    bundle_path_or_name: str | Path, output_path: str | Path, device: str = "cpu", dtype: str = "float32"
) -> Path:
    """Write the file that ``pair_style mliap unified`` loads; whole or not at all.

    LAMMPS reads ``.pt`` and ``.pth`` with ``torch.load`` and everything else with ``pickle``.

    Raises:
        BundleError: the bundle is missing or damaged.
        ConfigError: an unknown dtype or an output that cannot be written.
    """
    bundle = read_bundle(bundle_path_or_name)
    exported = _Exported(bundle.to_bytes(), device, _known_dtype(dtype))
    output, content = Path(output_path), io.BytesIO()
    if output.suffix in (".pt", ".pth"):
        torch.save(exported, content, pickle_protocol=4)
    else:
        pickle.dump(exported, content, protocol=4)
    try:
        write_atomically(output, content.getvalue())
    except OSError as error:
        raise ConfigError(f"cannot write {output}: {error.strerror}") from error
    return output


class _Exported:
    """What is pickled: a call of ``load_mliap`` with plain bytes, strings and a number, nothing else."""

    def __init__(self, bundle_bytes: bytes, device: str, dtype: str):
        self.contents = (bundle_bytes, device, dtype, _checksum(bundle_bytes), mlffd_version())

    def __reduce__(self):
        return load_mliap, (FORMAT, *self.contents)


def load_mliap(format_number: int, *contents) -> "MliapStudent":
    """The object LAMMPS talks to, from what ``export`` wrote; LAMMPS calls this on every rank.

    ``contents`` of format 1 are the bundle's bytes, device, dtype, the bytes' checksum and the version of
    mlffd that wrote them, which comes last in any format. Environment variables (see above) go before
    device and dtype.

    Raises:
        MlffdError: the file cannot be used. On several ranks none returns: all end with one line of why.
    """
    with EndsAllRanks("cannot load the student"):
        if format_number != FORMAT:
            raise BundleError(
                f"the file has format {format_number}, this mlffd {mlffd_version()} reads format {FORMAT}: "
                f"install mlffd {contents[-1]} or newer, or export the bundle again with this one"
            )
        bundle_bytes, device, dtype, checksum, _ = contents
        if _checksum(bundle_bytes) != checksum:
            raise BundleError("the file is damaged: export the bundle again (mlffd lammps export)")
        torch.set_num_threads(threads_per_rank())
        return MliapStudent(
            Engine(
                read_bundle_bytes(bundle_bytes),
                device=os.environ.get("MLFFD_DEVICE", device),
                dtype=_known_dtype(os.environ.get("MLFFD_DTYPE", dtype)),
            )
        )


class MliapStudent:
    """What ``pair_style mliap unified`` expects of a model, answered by an engine.

    ``interface`` is LAMMPS' to set. The cutoff is twice ``rcutfac``; Kokkos builds ask for ``cutoff``.
    """

    ndescriptors = 1
    nparams = 1

    def __init__(self, engine: Engine):
        self.engine = engine
        self.interface = None
        self.cutoff = engine.cutoff
        self.rcutfac = 0.5 * engine.cutoff
        self.n_known = len(engine.species)
        # LAMMPS refuses an element that is not in this list without naming it or the list. So it gets every
        # element, the student's first, and compute_forces refuses by name what the student does not know.
        known = [chemical_symbols[number] for number in engine.species]
        self.element_types = known + [symbol for symbol in chemical_symbols[1:] if symbol not in known]
        self.species = np.array(engine.species, dtype=np.int64)  # by LAMMPS' element index
        self.guard = Guard(engine.metadata, engine.species)
        self.messages = Messages(engine)
        self._before = ((0, 0), 0)  # owned and all atoms, pairs of the last call
        if rank_and_size()[0] == 0:
            print(f"mlffd: {self}", flush=True)
            say_verdict(engine)

    def __str__(self) -> str:
        known = " ".join(self.element_types[: self.n_known])
        engine = self.engine
        name = engine.metadata.get("name", "student")
        layers = f"{engine.n_layers} message layers, " if engine.n_layers > 1 else ""
        return (
            f"{name}: elements {known}, cutoff {engine.cutoff:g} Å, {layers}{engine.device}, {engine.dtype}"
        )

    def compute_descriptors(self, data) -> None:
        """Nothing: LAMMPS calls it before compute_forces, which does it all."""

    def compute_gradients(self, data) -> None:
        """Nothing: LAMMPS calls it before compute_forces, which does it all."""

    def compute_forces(self, data) -> None:
        """Set energy (eV), atomic energies and pair forces of the atoms this rank owns.

        ``data`` is LAMMPS' view of its own memory; an array of no elements must not be asked for. All ranks
        get here, and all go through it all: messages and the guard are collective.
        """
        with EndsAllRanks("cannot compute forces"):
            self._check_pairs_did_not_vanish(data)
            instance = instance_behind(data)
            frame = Frame(data)
            if instance is not None:
                _check_settings(instance, frame)
            atomic_numbers = self._atomic_numbers(frame.elems)
            atomic_energies, pair_gradient = self.messages.evaluate(frame, atomic_numbers, instance)
            pairs = frame.pair_i, frame.pair_j, frame.rij
            # of a Kokkos run the positions are on the device, and LAMMPS' library would give old ones
            seen_through = None if frame.kokkos_data is not None else instance
            elements = np.where(frame.elems < 0, 0, atomic_numbers)  # other styles' atoms have none
            self.guard.check(seen_through, elements, *pairs, pair_gradient)
            if seen_through is not None:
                atomic_energies = np.where(seen_through.is_present(), atomic_energies, 0.0)
            frame.hand_back(atomic_energies, pair_gradient)

    def _check_pairs_did_not_vanish(self, data) -> None:
        """Refuse coordinates that have become NaN, which LAMMPS only notices when it builds neighbor lists.

        Atoms that move make it do so, but atoms at NaN never have moved far, and when all are there none
        has. Nor is any distance below the cutoff then, and all atoms would pass for isolated ones. A gas
        comes apart too, but not from so many neighbors in one step.

        Raises:
            NonFinitePositionsError: all pairs are gone, where the same atoms had many a step ago.
        """
        atoms, pairs = (data.nlocal, data.ntotal), data.npairs
        (atoms_before, pairs_before), self._before = self._before, (atoms, pairs)
        if pairs == 0 and atoms == atoms_before and pairs_before >= MANY_NEIGHBORS * data.nlocal > 0:
            raise NonFinitePositionsError(
                f"all {pairs_before} pairs vanished in one step: coordinates are not numbers any more"
            )

    def _atomic_numbers(self, elems: np.ndarray) -> np.ndarray:
        """Atomic numbers (ntotal,) from LAMMPS' element indices.

        An atom type mapped to NULL has index -1: no pair and no list holds it, so any species will do.

        Raises:
            UnknownElementError: an element of pair_coeff is not among the student's.
        """
        if elems.max(initial=-1) >= self.n_known:
            unknown = sorted({self.element_types[k] for k in elems[elems >= self.n_known]})
            raise UnknownElementError(
                f"pair_coeff names {', '.join(unknown)}, but the student knows only "
                f"{', '.join(self.element_types[: self.n_known])}: correct pair_coeff or use another student"
            )
        return self.species[elems]


def _check_settings(instance: LammpsInstance, frame: "Frame") -> None:
    """Refuse what would silently be wrong; settings may change from one run to the next.

    Raises:
        ConfigError: energies would not be in eV, or bonded atoms not be neighbors.
        NonFinitePositionsError: an atom is at no finite place. LAMMPS leaves its pairs out, and goes on.
    """
    # of a Kokkos run the positions are on the device
    if frame.kokkos_data is None and not np.isfinite(instance.positions()).all():
        raise NonFinitePositionsError("coordinates are not numbers any more; did the run explode?")
    if instance.units() != "metal":
        raise ConfigError(f"pair_style mliap takes students in units metal, not {instance.units()}")
    if instance.hides_bonded_atoms() and not _has_other_atoms(instance, frame):
        raise ConfigError(
            "special_bonds hides bonded atoms from the student: give `special_bonds lj/coul 1 1 1`"
        )


def _has_other_atoms(instance: LammpsInstance, frame: "Frame") -> bool:
    """Whether the bonds may be those of atoms that are not the student's, as in pair_style hybrid; LAMMPS
    warns of them. COLLECTIVE."""
    return on_any_rank(bool((frame.elems < 0).any()), instance.communicator())


class Frame:
    """Atoms and pairs of a step as LAMMPS' ``data`` has them, as NumPy arrays, those without elements too.

    Attributes:
        elems: (ntotal,) int32, ghosts last.
        pair_i, pair_j: (npairs,) int32.
        rij: (npairs, 3) float64 in Å.
        centers_are_owned: whether no pair begins at a ghost (flag 0 of the pair style).
    """

    def __init__(self, data):
        self.kokkos_data = data if hasattr(data, "forward_exchange") else None
        self.data = HostData(data) if self.kokkos_data is not None else data
        self.n_local, self.n_all = data.nlocal, data.ntotal
        self.centers_are_owned = data.natomneigh <= data.nlistatoms
        self.elems = self.data.elems if data.ntotal else np.zeros(0, np.int32)
        if data.npairs:
            self.pair_i, self.pair_j, self.rij = self.data.pair_i, self.data.pair_j, self.data.rij
        else:
            self.pair_i = self.pair_j = np.zeros(0, np.int32)
            self.rij = np.zeros((0, 3))

    def hand_back(self, atomic_energies: np.ndarray, pair_gradient: np.ndarray) -> None:
        """Give LAMMPS the atomic energies (n_local,) in eV and dE/drij (npairs, 3) in eV/Å."""
        data = self.data
        # LAMMPS' list leaves some local atoms out under pair_style hybrid
        listed = atomic_energies[data.iatoms[: data.nlistatoms]] if data.nlistatoms else np.zeros(0)
        if self.kokkos_data is not None:
            data.set_energies(listed, listed.sum())
        else:
            data.energy = listed.sum()
            if data.nlistatoms:
                data.eatoms = listed
        if data.npairs:
            data.update_pair_forces(np.ascontiguousarray(pair_gradient, dtype=np.float64))


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _known_dtype(dtype: str) -> str:
    if dtype not in DTYPES:
        raise ConfigError(f"dtype is {dtype!r}; choose {' or '.join(DTYPES)}")
    return dtype
