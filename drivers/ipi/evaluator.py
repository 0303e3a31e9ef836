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
    """Turns requests into answers with one call of ``evaluate`` for all of them."""

    def __init__(self, template: Atoms, evaluate: Evaluate, tally: Tally | None = None):
        self.template = template
        self.evaluate = evaluate
        self.tally = tally or Tally()
        self._warm = set()

    def warm_up(self, n_structures: int) -> None:
        """Evaluates that many copies of the template in one batch, once for each number of them."""
        if n_structures not in self._warm:
            self.evaluate([self.template.copy() for _ in range(n_structures)])
            self._warm.add(n_structures)

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
            atoms = self.template.copy()
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
