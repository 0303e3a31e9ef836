# SPDX-License-Identifier: MIT
"""The guard: notices when a run leaves what its student was trained on, and does what the user wants then.

| variable           | meaning                                                                      |
|--------------------|------------------------------------------------------------------------------|
| MLFFD_GUARD        | ``warn`` (default), ``stop``, ``collect`` or ``off``                         |
| MLFFD_GUARD_FILE   | extxyz file to which ``stop`` and ``collect`` add frames; guard.extxyz       |
| MLFFD_GUARD_FRAMES | ``collect`` writes so many frames at most; 100                               |
| MLFFD_GUARD_EVERY  | look in every n-th evaluation; 10, which costs less than 2 % of a fast step  |

Flagged is a pair of atoms closer, a force along an edge larger, or an atom with fewer or more neighbors than
training ever saw, with the margins of mlffd/domain.py; where the bundle does not say what that was, a pair
force of 1000 eV/Å. ``warn`` says so the first, tenth, hundredth time and goes on; ``stop`` ends the run with
step, atom ids and value, and writes the frame; ``collect`` goes on and writes flagged frames for ``mlffd
label``. A line at the end counts. Energies and forces that are not finite end every run, whatever the guard's
policy (``Engine.evaluate_pairs``).

Collisions and collapses take tens of femtoseconds, so that every tenth evaluation at 0.5 fs comes in time.
The first evaluation is always looked at, and so is each that does not follow the step before it: the first of
a run, and frames of ``rerun`` that lie some steps apart. Neighbors, whose number changes slowly, are counted
then and in every tenth look after.
"""

import atexit
import os
from dataclasses import dataclass
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from mlffd.domain import limits
from mlffd.drivers.lammps_instance import LammpsInstance
from mlffd.drivers.lammps_ranks import on_any_rank, rank_and_size
from mlffd.errors import ConfigError, GuardError

LOOKS_PER_COUNT = 10
UNKNOWN = "by pair forces alone, as the bundle does not say what training saw: mlffd repair --labels"
POLICIES = ("warn", "stop", "collect", "off")


@dataclass(frozen=True)
class GuardSettings:
    """What the guard does when it flags an evaluation; the table above has the variables."""

    policy: str = "warn"
    file: Path = Path("guard.extxyz")
    n_frames: int = 100
    every: int = 10

    @classmethod
    def from_environment(cls) -> "GuardSettings":
        """Settings from MLFFD_GUARD and its kin.

        Raises:
            ConfigError: naming the variable.
        """
        policy = os.environ.get("MLFFD_GUARD", cls.policy)
        if policy not in POLICIES:
            raise ConfigError(f"MLFFD_GUARD is {policy!r}; choose {', '.join(POLICIES)}")
        return cls(
            policy,
            Path(os.environ.get("MLFFD_GUARD_FILE") or cls.file),
            _positive("MLFFD_GUARD_FRAMES", cls.n_frames),
            _positive("MLFFD_GUARD_EVERY", cls.every),
        )


class Guard:
    """Watches the evaluations of one student in one LAMMPS.

    Args:
        metadata: of the bundle (``Engine.metadata``).
        species: atomic numbers that the student knows (``Engine.species``).
        settings: by default those of the environment.

    Raises:
        ConfigError, BundleError: settings or metadata make no sense.
    """

    def __init__(self, metadata: dict, species: tuple[int, ...], settings: GuardSettings | None = None):
        self.settings = settings or GuardSettings.from_environment()
        self.limits = AtomicLimits(metadata, species)
        self.n_checked = self.n_flagged = self.n_written = 0
        self._n_gathered = 0  # as many on all ranks
        self._last_step, self._n_skipped, self._n_looks = None, 0, 0
        self._first = self._worst = Flag(0.0, "", "")
        self._has_joined, self._communicator, self._rank = False, None, 0
        if self.settings.policy != "off":
            atexit.register(self.summarize)

    def check(
        self,
        instance: LammpsInstance | None,
        atomic_numbers: np.ndarray,
        pair_i: np.ndarray,
        pair_j: np.ndarray,
        rij: np.ndarray,
        pair_gradient: np.ndarray,
        n_owned: int | None = None,
    ) -> None:
        """Look at an evaluation, if it is one to look at. COLLECTIVE where there is an instance: every rank
        calls it in every evaluation, also one without atoms or pairs.

        Call it after ``Engine.evaluate_pairs`` and before forces go to LAMMPS. Nothing is changed.

        Args:
            instance: LAMMPS, for step, ids, communicator and frames. Without it every rank looks and speaks
                for itself, atoms are numbered as on that rank, and no frame is written.
            atomic_numbers: (n_all,) of this rank's atoms as LAMMPS numbers them, ghosts last.
            pair_i, pair_j: (n_pairs,) indices of such atoms (not rows of an exchange).
            rij: (n_pairs, 3) float64 in Å.
            pair_gradient: (n_pairs, 3) float64 dE/drij in eV/Å.
            n_owned: atoms from this index on may lack neighbors here, and theirs are not counted; by default
                as many as the instance owns, and none without an instance.

        Raises:
            GuardError: the policy is ``stop`` and something was flagged; on all ranks alike.
        """
        if not self._has_joined:
            self._join(instance)
        step = None if instance is None else instance.step()
        if self.settings.policy == "off" or not self._is_due(step):
            return
        self.n_checked += 1
        if n_owned is None and instance is not None:
            n_owned = instance.n_local
        if n_owned is None or self._n_looks % LOOKS_PER_COUNT:
            n_owned = 0
        found = self.limits.worst(atomic_numbers, pair_i, pair_j, rij, pair_gradient, n_owned)
        if not on_any_rank(found is not None, self._communicator):
            return
        flag = None
        if found is not None:
            flag = self._describe(found, instance, atomic_numbers)
        self._act(_worst_anywhere(flag, self._communicator), instance, atomic_numbers)

    def summarize(self) -> None:
        """Print the line that counts, on one rank and once; called when Python ends at the latest."""
        if self.n_checked and self._rank == 0:
            print(f"mlffd: guard: {self}", flush=True)
        self.n_checked = 0

    def __str__(self) -> str:
        line = f"{self.n_flagged} of {self.n_checked} evaluations flagged"
        if not self.limits.known:
            line += f" ({UNKNOWN})"
        if self.n_flagged:
            line += f"; first at {self._first.where}; worst at {self._worst}"
        return line + (f"; {self.n_written} frames in {self.settings.file}" if self.n_written else "")

    def _join(self, instance: LammpsInstance | None) -> None:
        """Let all ranks do as the first one: others may lack the variables. COLLECTIVE."""
        self._has_joined = True
        self._communicator = None if instance is None else instance.communicator()
        if self._communicator is not None:
            self._rank = self._communicator.Get_rank()
            self.settings = self._communicator.bcast(self.settings)

    def _is_due(self, step: int | None) -> bool:
        """Whether to look; the same on all ranks."""
        goes_on = self._last_step is not None and step in (None, self._last_step + 1)
        self._last_step = -1 if step is None else step
        self._n_skipped += 1
        if goes_on and self._n_skipped < self.settings.every:
            return False
        self._n_skipped = 0
        self._n_looks = self._n_looks + 1 if goes_on else 0
        return True

    def _describe(self, found: "Found", instance, atomic_numbers) -> "Flag":
        tags = np.arange(len(atomic_numbers)) if instance is None else _tags(instance)
        names = [f"{chemical_symbols[atomic_numbers[k]]} {tags[k]}" for k in found.atoms]
        where = f"step {instance.step()}" if instance else f"evaluation on rank {rank_and_size()[0]}"
        return Flag(found.excess, where, found.sentence.format(*names))

    def _act(self, flag: "Flag", instance, atomic_numbers) -> None:
        """Count, say, write and stop as the policy wants; on all ranks."""
        self.n_flagged += 1
        if self.n_flagged == 1:
            self._first = flag
        self._worst = max(self._worst, flag, key=lambda one: one.excess)
        written = ""
        policy = self.settings.policy
        if policy == "stop" or (policy == "collect" and self._n_gathered < self.settings.n_frames):
            written = self._write(flag, instance, atomic_numbers)
        if policy == "stop":
            self.n_checked = 0  # the error says it all
            raise GuardError(f"{flag}: outside of what the student was trained on{written}")
        if self._rank == 0 and _is_round(self.n_flagged):
            print(f"mlffd: guard: {flag}{written} (flagged: {self.n_flagged})", flush=True)

    def _write(self, flag: "Flag", instance, atomic_numbers) -> str:
        """Add the frame to the file, and say so; COLLECTIVE."""
        if instance is None:
            return "; the frame cannot be written, as LAMMPS was not found from Python"
        frame = gather_frame(instance, atomic_numbers)
        self._n_gathered += 1
        if frame is None:
            return ""
        frame.info.update(step=instance.step(), guard=str(flag))
        try:
            # ASE would have all ranks take part
            ase.io.write(self.settings.file, frame, format="extxyz", append=True, parallel=False)
        except OSError as error:
            return f"; the frame cannot be written to {self.settings.file}: {error.strerror}"
        self.n_written += 1
        return f"; frame in {self.settings.file}"


@dataclass(frozen=True)
class Flag:
    """One flagged evaluation: by what factor it is outside, where, and what is said of it."""

    excess: float
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclass(frozen=True)
class Found:
    """What is farthest outside: factor, indices of atoms, words with a place for each of them."""

    excess: float
    atoms: tuple[int, ...]
    sentence: str


class AtomicLimits:
    """The limits of mlffd/domain.py in tables by atomic number."""

    def __init__(self, metadata: dict, species: tuple[int, ...]):
        known = limits(metadata, species)
        self.shortest = np.zeros((len(chemical_symbols), len(chemical_symbols)))
        self.shortest[np.ix_(species, species)] = known.shortest
        self.squared = self.shortest**2
        self.largest_squared = self.squared.max()
        self.known = bool(self.largest_squared)
        self.largest_pair_force = known.largest_pair_force
        self.species = species
        self.species_idx = np.zeros(len(chemical_symbols), dtype=np.int64)
        self.species_idx[list(species)] = np.arange(len(species))
        self.fewest, self.most = known.fewest, known.most

    def worst(self, atomic_numbers, pair_i, pair_j, rij, pair_gradient, n_owned: int) -> Found | None:
        """What is farthest outside on this rank, if anything is. Arguments as for ``Guard.check``."""
        if len(rij) == 0:
            return None
        found = [
            self._closest(atomic_numbers, pair_i, pair_j, np.asarray(rij)),
            self._strongest(pair_i, pair_j, np.asarray(pair_gradient)),
            self._loneliest(atomic_numbers, pair_i, pair_j, n_owned),
        ]
        return max((one for one in found if one), key=lambda one: one.excess, default=None)

    def _closest(self, atomic_numbers, pair_i, pair_j, rij) -> Found | None:
        squared = _squared_norms(rij)
        near = np.flatnonzero(squared < self.largest_squared)  # a few in a hundred pairs
        if len(near) == 0:
            return None
        elements = atomic_numbers[pair_i[near]], atomic_numbers[pair_j[near]]
        ratio = self.squared[elements] / np.maximum(squared[near], 1e-12)
        k = int(np.argmax(ratio))
        if ratio[k] <= 1.0:
            return None
        bound = self.shortest[elements][k]
        atoms = int(pair_i[near[k]]), int(pair_j[near[k]])
        distance = f"{squared[near[k]] ** 0.5:.3f}"
        return Found(ratio[k] ** 0.5, atoms, f"{{}} and {{}} are {distance} Å apart, less than {bound:.3f} Å")

    def _strongest(self, pair_i, pair_j, gradient) -> Found | None:
        bound = self.largest_pair_force
        # a force beyond the bound has a component beyond a third of it, nearly
        if max(gradient.max(), -gradient.min()) < bound / 3**0.5:
            return None
        size = np.sqrt(_squared_norms(gradient))
        k = int(np.argmax(size))
        if size[k] <= bound:
            return None
        words = f"the force between {{}} and {{}} is {size[k]:.4g} eV/Å, more than {bound:.4g} eV/Å"
        return Found(size[k] / bound, (int(pair_i[k]), int(pair_j[k])), words)

    def _loneliest(self, atomic_numbers, pair_i, pair_j, n_owned: int) -> Found | None:
        """Of too few neighbors, or too many. One without any is left out: it may not be the student's."""
        if n_owned == 0:
            return None
        n = len(self.species)
        species_idx = self.species_idx[atomic_numbers]
        counts = np.bincount(pair_i * n + species_idx[pair_j], minlength=n_owned * n)
        counts = counts[: n_owned * n].reshape(n_owned, n)
        own = species_idx[:n_owned]
        ratio = np.maximum(self.fewest[own] / np.maximum(counts, 0.5), counts / self.most[own])
        ratio[~counts.any(axis=1)] = 0.0
        atom, k = np.unravel_index(np.argmax(ratio), ratio.shape)
        if ratio[atom, k] <= 1.0:
            return None
        count, element = counts[atom, k], chemical_symbols[self.species[k]]
        fewest, most = self.fewest[own[atom], k], self.most[own[atom], k]
        bound = f"fewer than {fewest:.1f}" if count < fewest else f"more than {most:.1f}"
        return Found(ratio[atom, k], (int(atom),), f"{{}} has {count} neighbors {element}, {bound}")


def _squared_norms(vectors: np.ndarray) -> np.ndarray:
    """Of vectors (n, 3); twice as fast as einsum."""
    squares = vectors * vectors
    norms = squares[:, 0] + squares[:, 1]
    norms += squares[:, 2]
    return norms


def gather_frame(instance: LammpsInstance, atomic_numbers: np.ndarray) -> Atoms | None:
    """All atoms in the order of their ids, on the first rank; None on the others. COLLECTIVE.

    The cell begins at the origin; ids are the array ``tag``.
    """
    own = slice(instance.n_local)
    part = _tags(instance)[own], np.asarray(atomic_numbers)[own], instance.positions()[own].copy()
    communicator = instance.communicator()
    parts = [part] if communicator is None else communicator.gather(part)
    if parts is None:
        return None
    tags, numbers, positions = map(np.concatenate, zip(*parts))
    order = np.argsort(tags, kind="stable")
    origin, cell, pbc = instance.box()
    frame = Atoms(numbers[order], positions=positions[order] - origin, cell=cell, pbc=pbc)
    frame.new_array("tag", tags[order])
    return frame


def _tags(instance: LammpsInstance) -> np.ndarray:
    """Atom ids (n_all,); zeros where the input has ``atom_modify id no``."""
    try:
        return instance.tags()
    except ConfigError:
        return np.zeros(instance.n_all, np.int64)


def _worst_anywhere(flag: Flag | None, communicator) -> Flag:
    """The worst flag of all ranks; COLLECTIVE."""
    flags = [flag] if communicator is None else communicator.allgather(flag)
    return max((one for one in flags if one), key=lambda one: one.excess)


def _is_round(n: int) -> bool:
    """1, 10, 100, ...: so often one wants to hear of the same thing."""
    return str(n).strip("0") == "1"


def _positive(variable: str, default: int) -> int:
    text = os.environ.get(variable, str(default))
    if not text.isdecimal() or int(text) == 0:
        raise ConfigError(f"{variable} is {text!r}; set it to a positive whole number or unset it")
    return int(text)
