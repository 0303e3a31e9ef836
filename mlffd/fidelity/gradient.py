# SPDX-License-Identifier: MIT
"""Are a teacher's forces the gradient of its energy? A student's always are."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms

from mlffd.evaluation import Evaluate
from mlffd.fidelity.lines import line

# Å, of an atom: far enough that a float32 energy of some hundred atoms tells the difference to 1e-3 of the
# slope along a random direction, near enough that the stiffest bonds are still harmonic to as much
STEP = 0.007
LARGEST_SHARE = 0.01  # of the forces that may be no gradient; networks with forces of their own have more
CERTAIN = 3.0  # times the error of the finite differences


@dataclass(frozen=True)
class GradientTest:
    """relative: size of the part of the forces that is no gradient, over all; error: its standard error;
    numerical: what finite differences leave open; conservative: None where they leave too much open."""

    relative: float
    error: float
    numerical: float
    n_directions: int

    @property
    def conservative(self) -> bool | None:
        if self.relative <= LARGEST_SHARE:
            return True
        return False if self.relative > CERTAIN * self.numerical else None

    def line(self) -> dict:
        words = {
            True: "they are its gradient",
            False: "they are NOT its gradient: a conservative student of a non-conservative teacher",
            None: "not decided: the energy is too coarse for finite differences",
        }
        note = f"{words[self.conservative]}; {self.n_directions} directions, "
        note += f"finite differences to {self.numerical:.1g}"
        return line("teacher_gradient_error", self.relative, self.error, note)


def gradient_test(
    evaluate: Evaluate, structures: Sequence[Atoms], n_directions: int, seed: int
) -> GradientTest | None:
    """Slopes of the energy along random directions of all atoms beside those that the forces say.

    For a unit vector d at random in 3n dimensions the mean square of G d is G^2 / 3n, so that the mismatch
    over the RMS of a force component is the share |G| / |F| of the forces F that is no gradient. Two step
    lengths, of which one is half the other, tell how far the differences can be trusted. None where all
    forces vanish.
    """
    random = np.random.default_rng(seed)
    mismatches, doubts, sizes = [], [], []
    for k in range(n_directions):
        atoms = structures[k % len(structures)]
        direction = random.standard_normal((len(atoms), 3))
        direction /= np.linalg.norm(direction)
        forces = evaluate([atoms])[0].forces
        far, near = (
            slope(evaluate, atoms, direction, step * np.sqrt(len(atoms))) for step in (STEP, STEP / 2.0)
        )
        mismatches.append(near + (forces * direction).sum())
        doubts.append(far - near)
        sizes.append((forces**2).mean())
    scale = np.sqrt(np.mean(sizes))
    if not scale > 1e-6:
        return None
    relative, numerical = (
        float(np.sqrt(np.mean(np.square(values))) / scale) for values in (mismatches, doubts)
    )
    return GradientTest(relative, relative / np.sqrt(2.0 * n_directions), numerical, n_directions)


def slope(evaluate: Evaluate, atoms: Atoms, direction: np.ndarray, step: float) -> float:
    """Central difference of the energy along ``direction`` (n_atoms, 3), eV/Å."""
    energies = []
    for sign in (1.0, -1.0):
        moved = atoms.copy()
        moved.positions += sign * step * direction
        energies.append(evaluate([moved])[0].energy)
    return (energies[0] - energies[1]) / (2.0 * step)
