# SPDX-License-Identifier: MIT
"""Molecular dynamics of many replicas at once: one batched evaluation a step, cells fixed.

Langevin dynamics by the splitting BAOAB (Leimkuhler and Matthews, Appl. Math. Res. Express 2013, 34), or
velocity Verlet; with a second, slow force by r-RESPA (Tuckerman, Berne and Martyna, J. Chem. Phys. 97, 1990,
1992). A replica is the same whatever runs beside it and in however many calls, and goes on when another one
blows up and is cut.
"""

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
from ase import Atoms

from mlffd.errors import ConfigError, MlffdError
from mlffd.evaluation import Evaluate
from mlffd.replicas import Replicas, Snapshot, bare, overlap
from mlffd.units import BOLTZMANN, FEMTOSECOND

CHECK_STEPS = 10  # between two looks for atoms on top of each other; what passes is remembered
REMEMBERED = (0, 1, 2, 4, 8, 16, 32)  # looks before the last one, which a cut replica keeps: up to 0.2 ps
MAX_FORCE = 50.0  # eV/Å
NOISE_STEPS = 16  # random numbers are drawn for so many steps at once
# what evaluating a structure out of any order may raise; a set-up that is wrong shows before the first step
BLOW_UPS = (MlffdError, ValueError, ArithmeticError)


class Trajectories:
    """Molecular dynamics of replicas, which may differ in everything.

    Args:
        structures: starts, which are copied; constraints are not kept. Momenta they carry are taken, others
            drawn from Maxwell and Boltzmann's distribution (zero at constant energy).
        evaluate: see ``Evaluate``; ``Engine.evaluate`` is one. It gets all structures that still run.
        time_step: fs.
        temperatures: K, of Langevin's thermostat, one or one a structure; None: constant energy.
        time_constant: fs, of the thermostat; the friction is its inverse.
        seed: of all random numbers; or one seed a structure, which then fixes them whatever runs beside it.
        slow: forces that really act, too dear for every step. ``evaluate`` is then the fast force at every
            step, and what ``slow`` differs from it acts as an impulse every ``slow_every`` steps: at most a
            quarter of the period of any vibration on which they differ.
        fixed_center: the center of mass does not move: right for forces that only atoms exert on each other.
        first_step: steps already done by the run that this one goes on with, from structures with momenta.
        max_force: eV/Å; a replica with an atom beyond it is cut.

    Attributes:
        structures: list of Atoms with momenta, changed in place; of a cut replica the last sane one.
        predictions, slow_predictions: what was last evaluated of each, None for a cut one;
            slow predictions are of the present positions whenever ``run`` returns.
        cut: for each replica why it was cut, or None.
        before_cut: for each cut replica sane structures from shortly before, info["step"] telling when,
            the latest last; empty for the others.
        n_steps: steps done.

    Raises:
        ConfigError: settings that cannot be meant.
        Whatever evaluating the starts raises.
    """

    def __init__(
        self,
        structures: Sequence[Atoms],
        evaluate: Evaluate,
        time_step: float,
        temperatures: float | Sequence[float] | None = None,
        time_constant: float = 100.0,
        seed: int | Sequence[int] = 0,
        slow: Evaluate | None = None,
        slow_every: int = 1,
        fixed_center: bool = True,
        first_step: int = 0,
        max_force: float = MAX_FORCE,
    ):
        self._dt, self.slow_every, self.n_steps = time_step * FEMTOSECOND, slow_every, first_step
        self.fixed_center, self.max_force = fixed_center, max_force
        self._evaluate, self._slow = evaluate, slow
        self.structures = [bare(atoms, number) for number, atoms in enumerate(structures)]
        n = len(self.structures)
        self._temperatures = _one_each(temperatures, n)
        _check_settings(n, time_step, self._temperatures, time_constant, slow_every, first_step)
        self._keep = np.exp(-time_step / time_constant)  # of the momenta, when heat is exchanged
        self._keys = _keys(seed, n)
        self.predictions, self.slow_predictions = [None] * n, [None] * n
        self.cut, self.before_cut = [None] * n, [[] for _ in range(n)]
        self.heat = np.zeros(n)  # eV, that the thermostat has given to each
        self._seen = deque(maxlen=REMEMBERED[-1] + 1)
        self._start(carry_on=first_step > 0)

    def _start(self, carry_on: bool) -> None:
        self._batch = batch = Replicas(self.structures, range(len(self.structures)))
        self._draw_momenta()
        if self.fixed_center and not carry_on:
            batch.remove_net(batch.momenta)
        self._noise = None
        started_at = self.temperatures_now if self._temperatures is None else self._temperatures
        # temperatures of few atoms fluctuate more
        self._hottest = (3.0 * started_at + 1000.0) * (1.0 + 5.0 / np.sqrt(batch.freedom(self.fixed_center)))
        self._take(self._evaluate(batch.atoms), self.predictions, batch.forces)
        if self._slow is not None:
            self._take(self._slow(batch.atoms), self.slow_predictions, batch.slow_forces)
        self._look()

    def _draw_momenta(self) -> None:
        for k, atoms in enumerate(self.structures):
            momenta = atoms.arrays["momenta"]  # a view of the batch's
            if self._temperatures is not None and not momenta.any():
                width = np.sqrt(BOLTZMANN * self._temperatures[k] * atoms.get_masses()[:, None])
                momenta += width * self._random(k, stream=1).standard_normal(momenta.shape)

    def run(self, n_steps: int) -> None:
        """Do so many steps, a multiple of ``slow_every``; replicas that blow up are cut on the way.

        Raises:
            ConfigError: no multiple.
        """
        if n_steps % self.slow_every:
            raise ConfigError(f"{n_steps} steps are no multiple of slow_every = {self.slow_every}")
        for _ in range(n_steps):
            if not self._batch.atoms:
                break
            self._step()

    def _step(self) -> None:
        """B A O A B, between impulses of the slow force where it is due."""
        batch = self._batch
        if self._slow is not None and self.n_steps % self.slow_every == 0:
            self._impulse()
        batch.momenta += 0.5 * self._dt * batch.forces
        batch.positions += 0.5 * self._dt * batch.momenta / batch.masses
        if self._temperatures is not None:
            self._exchange_heat()
        batch.positions += 0.5 * self._dt * batch.momenta / batch.masses
        self.n_steps += 1
        self._update_forces(self._evaluate, self.predictions, "forces")
        self._batch.momenta += 0.5 * self._dt * self._batch.forces
        if self._slow is not None and self.n_steps % self.slow_every == 0:
            self._update_forces(self._slow, self.slow_predictions, "slow_forces")
            self._impulse()
        self._cut_wild()
        if self.n_steps % CHECK_STEPS == 0:
            self._look()

    def _impulse(self) -> None:
        """Half of what the slow force adds to the fast one in a cycle."""
        batch = self._batch
        batch.momenta += 0.5 * self.slow_every * self._dt * (batch.slow_forces - batch.forces)

    def _exchange_heat(self) -> None:
        """The O of BAOAB: the exact solution of friction and noise alone."""
        batch = self._batch
        before = batch.kinetic_energies()
        thermal = BOLTZMANN * self._temperatures[batch.replica_of_atom, None] * batch.masses
        noise = np.sqrt((1.0 - self._keep**2) * thermal) * self._next_noise()
        if self.fixed_center:
            batch.remove_net(noise)
        batch.momenta *= self._keep
        batch.momenta += noise
        self.heat[batch.replicas] += batch.kinetic_energies() - before

    def _next_noise(self) -> np.ndarray:
        """Standard normal numbers (n_atoms, 3) that follow from seeds and step alone."""
        block, place = divmod(self.n_steps, NOISE_STEPS)
        if self._noise is None or self._noise[0] != block:
            draws = [
                self._random(k, block).standard_normal((NOISE_STEPS, len(self.structures[k]), 3))
                for k in self._batch.replicas
            ]
            self._noise = block, np.concatenate(draws, axis=1)
        return self._noise[1][place]

    def _random(self, replica: int, block: int = 0, stream: int = 0) -> np.random.Generator:
        philox = np.random.Philox(key=self._keys[replica], counter=[0, block, stream, 0])
        return np.random.Generator(philox)

    def _update_forces(self, evaluate: Evaluate, predictions: list, name: str) -> None:
        """Evaluate all that run; those with which it cannot be done are cut, the others go on."""
        finite = np.isfinite(self._batch.largest_norms(self._batch.positions))
        self._cut_where(~finite, lambda place: "positions are not finite")
        if not self._batch.atoms:
            return
        try:
            found = evaluate(self._batch.atoms)
        except BLOW_UPS as error:
            found, reasons = _whose_fault(error, evaluate, self._batch.atoms)
            self._cut_where(np.array([reason is not None for reason in reasons]), reasons.__getitem__)
        self._take(found, predictions, getattr(self._batch, name))

    def _take(self, found: Sequence, predictions: list, forces: np.ndarray) -> None:
        batch = self._batch
        for replica, prediction in zip(batch.replicas, found):
            predictions[replica] = prediction
        if batch.atoms:
            np.concatenate([prediction.forces for prediction in found], out=forces)
        if self.fixed_center:
            batch.remove_net(forces)

    def _cut_wild(self) -> None:
        """Cut those whose forces or velocities no sane structure has; cheap enough for every step."""
        batch = self._batch
        if not batch.atoms:
            return
        largest = batch.largest_norms(batch.forces)
        if self._slow is not None:
            largest = np.maximum(largest, batch.largest_norms(batch.slow_forces))
        self._cut_where(~(largest <= self.max_force), lambda k: f"largest force is {largest[k]:.3g} eV/Å")
        now = self.temperatures_now[self._batch.replicas]
        hottest = self._hottest[self._batch.replicas]
        self._cut_where(
            ~(now <= hottest),
            lambda k: f"temperature is {now[k]:.0f} K, where {hottest[k]:.0f} K are the most",
        )

    def check(self) -> None:
        """Look now, rather than at the next multiple of CHECK_STEPS, whether an atom is on top of another."""
        self._cut_wild()
        overlaps = [overlap(atoms) for atoms in self._batch.atoms]
        self._cut_where(np.array([found is not None for found in overlaps], bool), overlaps.__getitem__)

    def _look(self) -> None:
        """What passes is remembered."""
        self.check()
        self._seen.append(Snapshot(self.n_steps, self._batch))

    def _cut_where(self, guilty: np.ndarray, reason: Callable[[int], str]) -> None:
        """Cut replicas of the batch: ``guilty`` (n_running,) bool, and the reason by place in the batch."""
        if not guilty.any():
            return
        for place in np.flatnonzero(guilty):
            replica = self._batch.replicas[place]
            self.cut[replica] = reason(place)
            self.predictions[replica] = self.slow_predictions[replica] = None
            self._go_back(replica)
        self._batch = self._batch.only(self.structures, ~guilty)
        self._noise = None

    def _go_back(self, replica: int) -> None:
        atoms = self.structures[replica]
        for name in ("positions", "momenta"):
            atoms.arrays[name] = atoms.arrays[name].copy()
        looks = [look for look in self._seen if replica in look.replicas]
        for back in reversed(REMEMBERED):
            if back < len(looks):
                looks[-1 - back].restore(replica, atoms)
                frame = atoms.copy()
                frame.info["step"] = looks[-1 - back].step
                self.before_cut[replica].append(frame)

    @property
    def temperatures_now(self) -> np.ndarray:
        """Kinetic temperatures (n_structures,) in K; nan of a cut replica."""
        batch = self._batch
        kinetic = batch.kinetic_energies() / (0.5 * BOLTZMANN * batch.freedom(self.fixed_center))
        return self._of_all(kinetic)

    @property
    def conserved(self) -> np.ndarray:
        """What must not drift (n_structures,) in eV: total energy less the thermostat's heat; nan where cut.

        The effective energy of Bussi and Parrinello, Phys. Rev. E 75, 056707 (2007).
        """
        batch = self._batch
        predictions = self.predictions if self._slow is None else self.slow_predictions
        potential = np.array([predictions[k].energy for k in batch.replicas])
        return self._of_all(potential + batch.kinetic_energies() - self.heat[batch.replicas])

    def _of_all(self, values: np.ndarray) -> np.ndarray:
        everywhere = np.full(len(self.structures), np.nan)
        everywhere[self._batch.replicas] = values
        return everywhere


def _whose_fault(
    error: Exception, evaluate: Evaluate, structures: list[Atoms]
) -> tuple[list, list[str | None]]:
    """What can be evaluated, and for each structure why it cannot or None."""
    if len(structures) == 1:  # asked again, a calculator may answer with what it had found before the error
        return [], [f"{type(error).__name__}: {error}"]
    found, reasons = [], []
    for atoms in structures:
        try:
            found += evaluate([atoms])
            reasons.append(None)
        except BLOW_UPS as error:
            reasons.append(f"{type(error).__name__}: {error}")
    return found, reasons


def _one_each(temperatures: float | Sequence[float] | None, n: int) -> np.ndarray | None:
    """(n,) K, or None."""
    if temperatures is None:
        return None
    if np.ndim(temperatures) and len(temperatures) != n:
        raise ConfigError(f"{len(temperatures)} temperatures for {n} structures")
    return np.array(np.broadcast_to(temperatures, n), float)


def _keys(seed: int | Sequence[int], n: int) -> list[np.ndarray]:
    """A key of random numbers for each replica."""
    seeds = [(seed, k) for k in range(n)] if isinstance(seed, int | np.integer) else [(s,) for s in seed]
    if len(seeds) != n:
        raise ConfigError(f"{n} structures need as many seeds, not {len(seeds)}")
    if any(number < 0 for entropy in seeds for number in entropy):
        raise ConfigError("a seed must be 0 or more")
    return [np.random.SeedSequence(entropy).generate_state(2, np.uint64) for entropy in seeds]


def _check_settings(n, time_step, temperatures, time_constant, slow_every, first_step) -> None:
    wrong = None
    if n == 0:
        wrong = "there is no structure to run"
    elif not time_step > 0.0:
        wrong = f"the time step must be above zero fs, not {time_step}"
    elif temperatures is not None and not (temperatures > 0.0).all():
        wrong = "temperatures must be above zero K"
    elif not time_constant > 0.0:
        wrong = f"the thermostat's time constant must be above zero fs, not {time_constant}"
    elif slow_every < 1 or first_step % slow_every:
        wrong = "slow_every must be at least 1, and the first step a multiple of it"
    if wrong:
        raise ConfigError(wrong)
