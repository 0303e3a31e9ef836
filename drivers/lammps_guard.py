# SPDX-License-Identifier: MIT
"""The guard in LAMMPS: what drivers/guard.py says, on all ranks alike, with steps, atom ids and whole frames.

Looked at is every n-th evaluation, and each that does not follow the step before it: the first of a
run, and frames of ``rerun`` that lie some steps apart. Neighbors are counted then, and in every tenth look
after.
"""

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from mlffd.drivers.guard import LOOKS_PER_COUNT, Flag, Found, GuardSettings, Watch
from mlffd.drivers.lammps_instance import LammpsInstance
from mlffd.drivers.lammps_ranks import on_any_rank, rank_and_size
from mlffd.errors import ConfigError


class Guard(Watch):
    """Watches the evaluations of one student in one LAMMPS.

    Args, Raises: see ``Watch``.
    """

    def __init__(self, metadata: dict, species: tuple[int, ...], settings: GuardSettings | None = None):
        super().__init__(metadata, species, settings)
        self._last_step, self._n_skipped, self._n_looks = None, 0, 0
        self._has_joined, self._communicator, self._rank = False, None, 0

    @property
    def speaks(self) -> bool:
        """The first rank does."""
        return self._rank == 0

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
        worst = _worst_anywhere(flag, self._communicator)
        self.act(worst, lambda: self._write(worst, instance, atomic_numbers))

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

    def _describe(self, found: Found, instance, atomic_numbers) -> Flag:
        tags = np.arange(len(atomic_numbers)) if instance is None else _tags(instance)
        names = [f"{chemical_symbols[atomic_numbers[k]]} {tags[k]}" for k in found.atoms]
        where = f"step {instance.step()}" if instance else f"evaluation on rank {rank_and_size()[0]}"
        return Flag(found.excess, where, found.sentence.format(*names))

    def _write(self, flag: Flag, instance, atomic_numbers) -> str:
        """Add the frame to the file, and say so; COLLECTIVE."""
        if instance is None:
            return "; the frame cannot be written, as LAMMPS was not found from Python"
        frame = gather_frame(instance, atomic_numbers)
        if frame is not None:
            frame.info["step"] = instance.step()
        return self.add_frame(frame, flag)


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
