# SPDX-License-Identifier: MIT
"""From structures that i-PI sends to answers: wrapped, evaluated in one batch, checked.

Nothing that is not finite is ever sent: i-PI would carry on with it to the end of the run.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import write

from mlffd.drivers.ipi.protocol import Answer, Request
from mlffd.drivers.ipi.report import Tally
from mlffd.errors import MlffdError

DUMP = "mlffd-driver-failed.xyz"

Evaluate = Callable[[list[Atoms]], list]  # returns one object with .energy .forces .virial a structure


class NoAnswer(MlffdError):
    """The student cannot answer, and i-PI must not get anything else."""

    exit_status = 3


class Evaluator:
    """Turns requests into answers with one call of ``evaluate`` for all of them.

    Args:
        templates: one structure, or several told apart by their numbers of atoms; they say which atoms there
            are and which directions are periodic.
        evaluate: see ``Evaluate``.
        tally: counts evaluations.
        extras: text that travels with a prediction; none by default.
    """

    def __init__(
        self,
        templates: Atoms | Sequence[Atoms],
        evaluate: Evaluate,
        tally: Tally | None = None,
        extras: Callable[[object], str] | None = None,
    ):
        templates = [templates] if isinstance(templates, Atoms) else templates
        self.templates = {len(template): template for template in templates}
        self.evaluate = evaluate
        self.tally = tally or Tally()
        self.extras = extras

    @property
    def atom_counts(self) -> set[int]:
        """The numbers of atoms that requests may have."""
        return set(self.templates)

    def warm_up(self) -> None:
        """Evaluates the templates, which shows what is wrong with them before anything is connected."""
        self.evaluate([template.copy() for template in self.templates.values()])

    def __call__(self, requests: Sequence[Request]) -> list[Answer]:
        """One answer a request; repeated structures at the end of a request are answered, not evaluated.

        Raises NoAnswer, after writing the structures to a file, where the student refuses them or its
        result is not finite.
        """
        structures = [atoms for request in requests for atoms in self._distinct(request)]
        started = time.perf_counter()
        predictions = self._predict(structures)
        n_asked = sum(len(request.cells) for request in requests)
        self.tally.count(len(structures), n_asked, time.perf_counter() - started)
        remaining = iter(predictions)
        return [
            answer_of([next(remaining) for _ in range(request.n_distinct())], len(request.cells))
            for request in requests
        ]

    def _distinct(self, request: Request) -> list[Atoms]:
        structures = []
        for cell, positions in zip(request.cells, request.positions[: request.n_distinct()]):
            atoms = self.templates[request.positions.shape[1]].copy()
            if atoms.pbc.any():  # a molecule has no cell, whatever box i-PI puts around it
                atoms.cell = cell
                positions = wrapped(positions, cell, atoms.pbc)
            atoms.positions = positions
            structures.append(atoms)
        return structures

    def _predict(self, structures: list[Atoms]) -> list:
        try:
            predictions = self.evaluate(structures)
        except MlffdError as error:
            raise NoAnswer(f"{error}; {dump(structures)}") from error
        wrong = [k for k, prediction in enumerate(predictions) if not is_finite(prediction)]
        if wrong:
            of_all = f"{len(wrong)} of {len(structures)}"
            raise NoAnswer(f"{of_all} results are not finite; {dump([structures[k] for k in wrong])}")
        return predictions


def is_finite(prediction) -> bool:
    """Whether energy, forces and virial are free of NaN and infinity."""
    return all(np.isfinite(x).all() for x in (prediction.energy, prediction.forces, prediction.virial))


def wrapped(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """Positions (n_atoms, 3) moved by whole lattice vectors into the cell; directions without pbc stay.

    i-PI lets atoms drift for ever, and far from the origin float32 would be too coarse.
    """
    if not np.linalg.det(cell):
        return positions  # the student refuses such a cell
    fractional = np.linalg.solve(cell.T, positions.T).T
    return positions - np.floor(fractional)[:, pbc] @ cell[pbc]


def answer_of(predictions: list, n_structures: int) -> Answer:
    """The predictions as one answer for ``n_structures``, the last prediction repeated at the end."""
    predictions = predictions + [predictions[-1]] * (n_structures - len(predictions))
    return Answer(
        energies=np.array([prediction.energy for prediction in predictions], np.float64),
        forces=np.array([prediction.forces for prediction in predictions], np.float64),
        virials=np.array([prediction.virial for prediction in predictions], np.float64),
    )


def dump(structures: list[Atoms]) -> str:
    """Writes the structures for a look at them; says where."""
    write(DUMP, structures, format="extxyz")
    return f"see {Path(DUMP).resolve()}"
