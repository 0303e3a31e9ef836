# SPDX-License-Identifier: MIT
"""Errors of a student on labelled frames: by element, by force, by temperature, and the worst."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from mlffd.dataset.store import LabelledSet
from mlffd.engine import Engine
from mlffd.fidelity.lines import line, table
from mlffd.fidelity.statistics import grouped_error
from mlffd.files import replacing
from mlffd.units import GPA

MEV = 1e-3
FORCE_QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)


@dataclass(frozen=True)
class FrameErrors:
    """Student minus teacher on labelled frames, and what the teacher says.

    numbers (n,), errors and teacher_forces (n, 3) eV/Å of all atoms, frame_of_atom (n,); energies
    (n_frames,) eV/atom; stresses (n_frames, 3, 3) eV/Å^3, nan where there is none; groups (n_frames,): frames
    of one group come from one trajectory.
    """

    numbers: np.ndarray
    errors: np.ndarray
    teacher_forces: np.ndarray
    frame_of_atom: np.ndarray
    energies: np.ndarray
    stresses: np.ndarray
    groups: list

    @property
    def force_mae_of_frames(self) -> np.ndarray:
        """(n_frames,) eV/Å."""
        sums = np.bincount(self.frame_of_atom, weights=np.abs(self.errors).mean(axis=1))
        return sums / np.bincount(self.frame_of_atom)


def frame_errors(engine: Engine, labels: LabelledSet) -> FrameErrors:
    """Evaluate the student on all frames. Raises what the engine raises."""
    predictions = engine.evaluate(labels.structures)
    sizes = np.array([len(atoms) for atoms in labels.structures])
    return FrameErrors(
        np.concatenate([atoms.numbers for atoms in labels.structures]),
        np.concatenate([p.forces - f for p, f in zip(predictions, labels.forces)]),
        np.concatenate(labels.forces),
        np.repeat(np.arange(len(sizes)), sizes),
        (np.array([p.energy for p in predictions]) - labels.energies) / sizes,
        np.array([p.stress for p in predictions]) - labels.stresses,
        groups_of(labels.structures),
    )


def groups_of(structures: Sequence[Atoms]) -> list[str]:
    """A name for each frame: that of its trajectory where it says which, else its own number."""
    return [str(atoms.info.get("trajectory", f"frame {k}")) for k, atoms in enumerate(structures)]


def error_lines(found: FrameErrors) -> list[dict]:
    """Forces, energies and stresses; errors of the means from groups of frames that belong together."""
    note = f"{len(found.energies)} frames of {len(set(found.groups))} trajectories"
    components, squares = np.abs(found.errors).ravel(), (found.errors**2).ravel()
    groups = np.repeat(np.array(found.groups)[found.frame_of_atom], 3)
    rmse = float(np.sqrt(squares.mean()))
    rmse_error = grouped_error(squares, groups) / (2.0 * rmse) if rmse else 0.0
    scale = float(np.sqrt((found.teacher_forces**2).mean()))
    lines = [
        line("force_mae", components.mean() / MEV, grouped_error(components, groups) / MEV,
             f"{note}; the teacher's forces: {scale / MEV:.0f} meV/Å RMS"),
        line("force_rmse", rmse / MEV, rmse_error / MEV, note),
        line("energy_mae", *_mean(np.abs(found.energies) / MEV, found.groups), energy_note(found)),
    ]  # fmt: skip
    known = np.isfinite(found.stresses).all(axis=(1, 2))
    if not known.any():
        return [*lines, line("stress_mae", None, None, "the teacher gives no stress for these frames")]
    stress = np.abs(found.stresses[known]).mean(axis=(1, 2)) / GPA
    groups = [group for group, is_known in zip(found.groups, known) if is_known]
    return [*lines, line("stress_mae", *_mean(stress, groups), f"{known.sum()} frames, all nine components")]


def _mean(values: np.ndarray, groups: list) -> tuple[float, float]:
    return float(values.mean()), grouped_error(values, groups)


def energy_note(found: FrameErrors) -> str:
    """A constant shift, which no simulation feels, is part of the error; how much."""
    shift = found.energies.mean()
    rest = np.abs(found.energies - shift).mean()
    return f"shift {shift / MEV:+.3g}, without it {rest / MEV:.3g} meV/atom"


def error_tables(found: FrameErrors, structures: Sequence[Atoms]) -> list[dict]:
    """Force errors by element, by size of the teacher's force, by temperature where frames say it."""
    sizes = np.linalg.norm(found.teacher_forces, axis=1)
    bounds = np.quantile(sizes, FORCE_QUANTILES)
    last = bounds[-1]
    columns = ["atoms", "teacher RMS, meV/Å", "MAE, meV/Å", "RMSE, meV/Å"]
    elements = [
        [chemical_symbols[z], *_force_row(found, found.numbers == z)]
        for z in np.unique(found.numbers).tolist()
    ]
    by_size = [
        [f"{low:.3g} to {high:.3g}", *_force_row(found, (sizes >= low) & ((sizes < high) | (high == last)))]
        for low, high in zip(bounds, bounds[1:])
        if high > low
    ]
    tables = [
        table("Force errors by element", ["element", *columns], elements),
        table("Force errors by the teacher's force on the atom", ["eV/Å", *columns], by_size),
    ]
    temperatures = np.array([atoms.info.get("temperature", np.nan) for atoms in structures], dtype=float)
    known = np.unique(temperatures[np.isfinite(temperatures)])
    if len(known) > 1:
        of_atom = temperatures[found.frame_of_atom]
        rows = [[f"{one:g}", *_force_row(found, of_atom == one)] for one in known]
        tables.append(table("Force errors by temperature", ["K", *columns], rows))
    return tables


def _force_row(found: FrameErrors, chosen: np.ndarray) -> list:
    errors, forces = found.errors[chosen] / MEV, found.teacher_forces[chosen] / MEV
    if not len(errors):
        return [0, None, None, None]
    rms = (float(np.sqrt((values**2).mean())) for values in (forces, errors))
    teacher, rmse = rms
    return [int(chosen.sum()), teacher, float(np.abs(errors).mean()), rmse]


def write_worst_frames(
    path: Path, engine: Engine, labels: LabelledSet, found: FrameErrors, n_frames: int
) -> list:
    """Those with the largest force errors as extxyz, worst first, with forces of both; rows of a table."""
    order = np.argsort(-found.force_mae_of_frames, kind="stable")[:n_frames].tolist()
    frames, rows = [], []
    for number in order:
        atoms = labels.structures[number].copy()
        said = engine.evaluate(atoms)[0]
        difference = np.linalg.norm(said.forces - labels.forces[number], axis=1)
        worst = int(np.argmax(difference))
        atoms.arrays["teacher_forces"], atoms.arrays["student_forces"] = labels.forces[number], said.forces
        atoms.info |= {
            "frame": number,
            "teacher_energy": float(labels.energies[number]),
            "student_energy": said.energy,
        }
        frames.append(atoms)
        mae = float(found.force_mae_of_frames[number]) / MEV
        rows.append([number, mae, f"{atoms.symbols[worst]} {worst}", float(difference[worst]) / MEV])
    with replacing(path) as part:
        ase.io.write(part, frames, format="extxyz")
    return rows
