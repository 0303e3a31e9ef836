# SPDX-License-Identifier: MIT
"""What a teacher says of one structure: energy, forces, stress, rows of the Hessian."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlffd.dataset.store import frames_hash
from mlffd.errors import MlffdError
from mlffd.evaluation import CALCULATOR_FAILURES, evaluate_atoms, raw_forces
from mlffd.teachers import load_teacher

# what a stranger's calculator raises for a frame it cannot do; the frame is recorded as failed
FRAME_FAILURES = (MlffdError, OSError, *CALCULATOR_FAILURES)
THREAD_COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# Å; for ethanol and 7net-mf-0 in float32 rows are then right to 1e-4 of their size; nearly all of that is
# truncation (0.01 Å: four times as much), less than a tenth is rounding
DISPLACEMENT = 0.005


@dataclass(frozen=True)
class Recipe:
    """How a process labels: the teacher to load (see load_teacher) and the Hessian rows wanted of a frame."""

    teacher: dict | str
    device: str = "cpu"
    directory: Path | str = "."
    n_hessian_rows: int = 0

    def load(self):
        """The teacher's calculator, on one thread."""
        os.environ.update(dict.fromkeys(THREAD_COUNTS, "1"))  # libraries read these when they are loaded
        calculator = load_teacher(self.teacher, device=self.device, directory=self.directory).calculator
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)
        return calculator

    def label(self, calculator, atoms):
        """(label, None) or (None, reason); a label is energy, forces, stress and Hessian rows or None."""
        try:
            if len(atoms) == 0:
                return None, "it has no atoms"
            if not (np.isfinite(atoms.positions).all() and np.isfinite(atoms.cell.array).all()):
                return None, "its positions or cell are not finite"
            _forget(calculator)
            said = evaluate_atoms(calculator, atoms)
            rows = hessian_rows(calculator, atoms, self.n_hessian_rows) if self.n_hessian_rows else None
        except FRAME_FAILURES as error:
            return None, " ".join(f"{type(error).__name__}: {error}".split())
        return (said.energy, said.forces, said.stress, rows), None


def _forget(calculator):
    """Neighbor lists and wave functions of the frame before must not be seen in the label of this one."""
    if hasattr(calculator, "reset"):
        calculator.reset()


def hessian_rows(calculator, atoms, n_rows):
    """`n_rows` random rows of the Hessian d2E/dx2 by central differences of the forces.

    Returns the components (k,), numbered 3 * atom + direction, ascending, and the rows (k, 3 n_atoms) in
    eV/Å^2; k is at most 3 n_atoms. Which rows follows from the structure alone. Amin et al. (2025) distil
    foundation models by such rows.
    """
    atoms = atoms.copy()
    atoms.calc = calculator
    components = random_components(atoms, n_rows)
    return components, np.stack([_hessian_row(atoms, component) for component in components])


def random_components(atoms, n_rows):
    """At most `n_rows` different components (k,), ascending, drawn by a seed that is the structure's hash."""
    n_components = 3 * len(atoms)
    rng = np.random.default_rng(int(frames_hash([atoms])[:16], 16))
    return np.sort(rng.choice(n_components, min(n_rows, n_components), replace=False))


def _hessian_row(atoms, component):
    """dE/dx_i dx = -dF/dx_i, (3 n_atoms,)."""
    positions = atoms.get_positions()
    sides = []
    for step in (DISPLACEMENT, -DISPLACEMENT):
        moved = positions.copy()
        moved.flat[component] += step
        atoms.set_positions(moved, apply_constraint=False)
        sides.append(raw_forces(atoms).ravel())
    atoms.set_positions(positions, apply_constraint=False)
    return -(sides[0] - sides[1]) / (2 * DISPLACEMENT)
