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
place, atoms and value, and writes the frame; ``collect`` goes on and writes flagged frames for ``mlffd
label``. A line at the end counts. Energies and forces that are not finite end every run, whatever the guard's
policy (``Engine``).

Collisions and collapses take tens of femtoseconds, so that every tenth evaluation at 0.5 fs comes in time.
The first evaluation is always looked at. Neighbors, whose number changes slowly, are counted then and in
every tenth look after.

``guarded`` is for drivers that hand structures to an engine; LAMMPS has its own ranks, steps and frames, and
drivers/lammps_guard.py.
"""

import atexit
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from mlffd.domain import limits
from mlffd.engine import EdgeGradients, Engine
from mlffd.errors import ConfigError, GuardError
from mlffd.predict import StructurePrediction

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
    def from_environment(cls, policy: str | None = None) -> "GuardSettings":
        """Settings from MLFFD_GUARD and its kin; a ``policy`` goes before the variable.

        Raises:
            ConfigError: naming the variable.
        """
        given = "the guard's policy"
        if policy is None:
            given, policy = "MLFFD_GUARD", os.environ.get("MLFFD_GUARD", cls.policy)
        if policy not in POLICIES:
            raise ConfigError(f"{given} is {policy!r}; choose {', '.join(POLICIES)}")
        return cls(
            policy,
            Path(os.environ.get("MLFFD_GUARD_FILE") or cls.file),
            _positive("MLFFD_GUARD_FRAMES", cls.n_frames),
            _positive("MLFFD_GUARD_EVERY", cls.every),
        )


def print_line(line: str) -> None:
    """To standard output, whoever is running."""
    print(f"mlffd: guard: {line}", flush=True)


class Watch:
    """What all guards have in common: settings, limits, counts, and what becomes of a flag.

    Args:
        metadata: of the bundle (``Engine.metadata``).
        species: atomic numbers that the student knows (``Engine.species``).
        settings: by default those of the environment.
        say: takes each line for the user.

    Raises:
        ConfigError, BundleError: settings or metadata make no sense.
    """

    def __init__(
        self,
        metadata: dict,
        species: tuple[int, ...],
        settings: GuardSettings | None = None,
        say: Callable[[str], None] = print_line,
    ):
        self.settings = settings or GuardSettings.from_environment()
        self.limits = AtomicLimits(metadata, species)
        self.say = say
        self.n_checked = self.n_flagged = self.n_written = 0
        self._n_frames = 0  # that were to be written; as many on all ranks
        self._first = self._worst = Flag(0.0, "", "")
        if self.settings.policy != "off":
            atexit.register(self.summarize)

    @property
    def speaks(self) -> bool:
        """Whether it is this process that says and writes things."""
        return True

    def summarize(self) -> None:
        """Say the line that counts, once; called when Python ends at the latest."""
        if self.n_checked and self.speaks:
            self.say(str(self))
        self.n_checked = 0

    def __str__(self) -> str:
        line = f"{self.n_flagged} of {self.n_checked} evaluations flagged"
        if not self.limits.known:
            line += f" ({UNKNOWN})"
        if self.n_flagged:
            line += f"; first at {self._first.where}; worst at {self._worst}"
        return line + (f"; {self.n_written} frames in {self.settings.file}" if self.n_written else "")

    def act(self, flag: "Flag", write: Callable[[], str]) -> None:
        """Count, say, write and stop as the policy wants.

        ``write`` adds the frame to the file and returns words that say so.

        Raises:
            GuardError: the policy is ``stop``.
        """
        self.n_flagged += 1
        if self.n_flagged == 1:
            self._first = flag
        self._worst = max(self._worst, flag, key=lambda one: one.excess)
        written = ""
        policy = self.settings.policy
        if policy == "stop" or (policy == "collect" and self._n_frames < self.settings.n_frames):
            written = write()
        if policy == "stop":
            self.n_checked = 0  # the error says it all
            raise GuardError(f"{flag}: outside of what the student was trained on{written}")
        if self.speaks and _is_round(self.n_flagged):
            self.say(f"{flag}{written} (flagged: {self.n_flagged})")

    def add_frame(self, frame: Atoms | None, flag: "Flag") -> str:
        """Add a frame to the file, and say so; None where another rank does."""
        self._n_frames += 1
        if frame is None:
            return ""
        frame.info["guard"] = str(flag)
        try:
            # ASE would have all ranks take part
            ase.io.write(self.settings.file, frame, format="extxyz", append=True, parallel=False)
        except OSError as error:
            return f"; the frame cannot be written to {self.settings.file}: {error.strerror}"
        self.n_written += 1
        return f"; frame in {self.settings.file}"


def guarded(
    engine: Engine, policy: str | None = None, say: Callable[[str], None] = print_line
) -> "GuardedEngine":
    """The engine's ``evaluate`` with a guard that has settings from the environment; ``policy`` goes before
    MLFFD_GUARD. Raises ConfigError, BundleError."""
    return GuardedEngine(engine, GuardSettings.from_environment(policy), say)


class GuardedEngine(Watch):
    """Evaluates structures, and looks at every n-th evaluation in the mean, and at the first two.

    The first may be a warm-up with a structure that is not of the run. The gaps are random, with a fixed
    seed: where the beads of a step come in several batches, a fixed gap would meet the same beads for ever.
    """

    def __init__(self, engine: Engine, settings: GuardSettings, say: Callable[[str], None] = print_line):
        super().__init__(engine.metadata, engine.species, settings, say)
        self.engine = engine
        self.n_evaluations = 0
        self._gap, self._gaps, self._n_looks = 0, random.Random(0), 0

    def __call__(self, structures: list[Atoms]) -> list[StructurePrediction]:
        """Predictions; see ``Engine.evaluate``.

        Raises:
            GuardError: the policy is ``stop`` and something was flagged.
            What the engine raises.
        """
        if not self._is_due():
            return self.engine.evaluate(structures)
        found = []
        predictions = self.engine.evaluate(structures, watch=lambda edges: found.append(self._look(edges)))
        self.n_checked += 1
        self._n_looks += 1
        place, worst = max((one for one in found if one), key=lambda one: one[1].excess, default=(0, None))
        if worst is not None:
            flag = self._flag(place, worst, structures)
            self.act(flag, lambda: self.add_frame(self._frame(structures[place], place), flag))
        return predictions

    def _frame(self, atoms: Atoms, place: int) -> Atoms:
        frame = atoms.copy()
        frame.info.update(evaluation=self.n_evaluations, structure=place)
        return frame

    def _is_due(self) -> bool:
        if self.settings.policy == "off":
            return False
        self.n_evaluations += 1
        if self._gap > 0:
            self._gap -= 1
            return False
        if self.n_evaluations > 1:
            self._gap = self._gaps.randint(0, 2 * self.settings.every - 2)
        return True

    def _look(self, edges: EdgeGradients) -> tuple[int, "Found"] | None:
        """What is worst among some structures: the number of the structure, and atoms as it has them."""
        pairs = edges.center, edges.neighbor, edges.vectors, edges.gradient
        n_counted = 0 if self._n_looks % LOOKS_PER_COUNT else len(edges.atomic_numbers)
        found = self.limits.worst(edges.atomic_numbers, *pairs, n_counted, cutoff=self.engine.cutoff)
        if found is None:
            return None
        k = int(np.searchsorted(edges.first_atom, found.atoms[0], side="right")) - 1
        atoms = tuple(atom - int(edges.first_atom[k]) for atom in found.atoms)
        return edges.first_structure + k, Found(found.excess, atoms, found.sentence)

    def _flag(self, place: int, found: "Found", structures: list[Atoms]) -> "Flag":
        names = [f"{structures[place].symbols[atom]} {atom}" for atom in found.atoms]
        of_several = f", structure {place}" if len(structures) > 1 else ""
        return Flag(
            found.excess, f"evaluation {self.n_evaluations}{of_several}", found.sentence.format(*names)
        )


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

    def worst(
        self,
        atomic_numbers: np.ndarray,
        pair_i: np.ndarray,
        pair_j: np.ndarray,
        rij: np.ndarray,
        pair_gradient: np.ndarray,
        n_owned: int,
        cutoff: float | None = None,
    ) -> Found | None:
        """What is farthest outside, if anything is.

        Args:
            atomic_numbers: (n_atoms,).
            pair_i, pair_j: (n_pairs,) indices of such atoms; every pair in both directions.
            rij: (n_pairs, 3) float64 in Å.
            pair_gradient: (n_pairs, 3) float64 dE/drij in eV/Å.
            n_owned: of the first so many atoms neighbors are counted.
            cutoff: pairs at this distance (Å) or beyond are no neighbors; by default there are none.
        """
        if len(rij) == 0:
            return None
        found = [
            self._closest(atomic_numbers, pair_i, pair_j, np.asarray(rij)),
            self._strongest(pair_i, pair_j, np.asarray(pair_gradient)),
            self._loneliest(atomic_numbers, pair_i, pair_j, n_owned, rij, cutoff),
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

    def _loneliest(self, atomic_numbers, pair_i, pair_j, n_owned: int, rij, cutoff) -> Found | None:
        """Of too few neighbors, or too many. One without any is left out: it may not be the student's."""
        if n_owned == 0:
            return None
        if cutoff is not None:
            near = _squared_norms(rij) < cutoff**2
            pair_i, pair_j = pair_i[near], pair_j[near]
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


def _is_round(n: int) -> bool:
    """1, 10, 100, ...: so often one wants to hear of the same thing."""
    return str(n).strip("0") == "1"


def _positive(variable: str, default: int) -> int:
    text = os.environ.get(variable, str(default))
    if not text.isdecimal() or int(text) == 0:
        raise ConfigError(f"{variable} is {text!r}; set it to a positive whole number or unset it")
    return int(text)
