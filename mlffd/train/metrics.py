"""Errors of a student on labelled structures, in the units the field quotes."""

from collections.abc import Iterable

import numpy as np
import torch
from ase.data import chemical_symbols

from mlffd.graph import Graph
from mlffd.graph import batch as batch_graphs
from mlffd.predict import array, predict
from mlffd.students.student import Student
from mlffd.train.config import TrainConfig
from mlffd.train.loss import Target, batch_targets, loss
from mlffd.units import GPA

MEV = 1e-3


def evaluate(student: Student, frames: list[tuple[Graph, Target]], config: TrainConfig | None = None) -> dict:
    """Errors of energy (meV/atom), forces (meV/Å, whole and by element) and stress (GPa).

    With ``config`` also ``loss``, the mean of ``mlffd.train.loss.loss`` over the frames.
    """
    energy, forces, stress, numbers, losses = [], [], [], [], []
    for graphs, targets in groups(frames):
        graph, target = batch_graphs(graphs), batch_targets(targets)
        prediction = predict(student, graph)
        n_atoms = torch.bincount(graph.system_idx, minlength=graph.n_systems)
        energy.append(array((prediction.energy - target.energy) / n_atoms))
        forces.append(array(prediction.forces - target.forces).astype(np.float64))
        stress.append(array(prediction.stress - target.stress))
        numbers.append(array(graph.atomic_numbers))
        if config:
            losses.append(array(loss(prediction, target, graph, config)))
    reference = np.concatenate([array(target.forces) for _, target in frames])
    errors = summary(*map(np.concatenate, (energy, forces, stress, numbers)), reference)
    return {**errors, "loss": float(np.concatenate(losses).mean())} if config else errors


def summary(
    energy: np.ndarray, forces: np.ndarray, stress: np.ndarray, numbers: np.ndarray, reference: np.ndarray
) -> dict:
    """A table of errors.

    ``energy`` (n_frames,) eV/atom, ``forces`` (n, 3) eV/Å and ``stress`` (n_frames, 3, 3) eV/Å^3 are errors;
    ``reference`` (n, 3) are the teacher's forces, whose RMS is the scale to judge by.
    """
    errors = {
        "n_frames": len(energy),
        "energy_mae_mev_per_atom": mae(energy) / MEV,
        "energy_rmse_mev_per_atom": rms(energy) / MEV,
        "force_mae_mev_per_angstrom": mae(forces) / MEV,
        "force_rmse_mev_per_angstrom": rms(forces) / MEV,
        "teacher_force_rms_mev_per_angstrom": rms(reference) / MEV,
        "force_mae_by_element": {
            chemical_symbols[z]: mae(forces[numbers == z]) / MEV for z in np.unique(numbers)
        },
    }
    known = np.isfinite(stress).all(axis=(1, 2))
    if known.any():
        errors["stress_mae_gpa"] = mae(stress[known]) / GPA
    return errors


def groups(frames: list, size: int = 4) -> Iterable[tuple[list[Graph], list[Target]]]:
    """Consecutive groups of ``size`` frames, graphs and targets apart."""
    for first in range(0, len(frames), size):
        graphs, targets = zip(*frames[first : first + size])
        yield list(graphs), list(targets)


def mae(errors: np.ndarray) -> float:
    return float(np.abs(errors).mean())


def rms(values: np.ndarray) -> float:
    return float(np.sqrt((values**2).mean()))
