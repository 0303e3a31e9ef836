# SPDX-License-Identifier: MIT
"""From structures that i-PI sends to answers: checked, wrapped, evaluated in one batch, checked again.

Nothing that drivers/ipi/checks.py finds a fault with is ever sent: i-PI would carry on with it to the end of
the run.
"""

import io
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import write

from mlffd.drivers.ipi.checks import Fault, faults_of_answer, faults_of_structures
from mlffd.drivers.ipi.protocol import Answer, ProtocolError, Request
from mlffd.drivers.ipi.report import Tally
from mlffd.drivers.ipi.template import mistaken_order, mistaken_units
from mlffd.errors import GuardError, MlffdError

DUMP = "mlffd-driver-failed.xyz"  # and -2, -3, ... where it is there already

# Returns one object with .energy (eV), .forces (n_atoms, 3) (eV/Å) and .virial (3, 3) (eV) a structure, and
# may raise MlffdError. The structures are lent for the call.
Evaluate = Callable[[list[Atoms]], list]


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
        self._lent: dict[int, list[Atoms]] = {n_atoms: [] for n_atoms in self.templates}
        self._started: set[int] = set()  # numbers of atoms of systems that a structure has come for

    @property
    def atom_counts(self) -> set[int]:
        """The numbers of atoms that requests may have."""
        return set(self.templates)

    def warm_up(self) -> None:
        """Evaluates the templates, which shows what is wrong with them before anything is connected."""
        self.evaluate([template.copy() for template in self.templates.values()])

    def expect_another_server(self) -> None:
        """Its first structures will be compared with the templates, as those of the first server are."""
        self._started.clear()

    def __call__(self, requests: Sequence[Request]) -> list[Answer]:
        """One answer a request; of structures that are the same to the last bit, one is evaluated.

        Raises NoAnswer, after writing the structures to a file, where the student refuses them, or where
        something is wrong with them or with the results (drivers/ipi/checks.py). Structures and atoms are
        counted from 0, structures as they are evaluated: those of the first request come first. Raises
        ProtocolError where the first structure of a system shows that the template is not i-PI's.
        """
        distinct, places = without_repeats(requests)
        structures = self._structures(distinct)
        self._check_starts(requests)
        started = time.perf_counter()
        predictions = self._predict(structures)
        n_asked = sum(len(request.cells) for request in requests)
        self.tally.count(len(structures), n_asked, time.perf_counter() - started)
        answers = [answer_of(predictions, of_request) for of_request in places]
        self._check(answers, places, structures)
        if self.extras is None:
            return answers
        extras = [self.extras(prediction) for prediction in predictions]
        return [
            replace(answer, extras=[extras[k] for k in of_request])
            for answer, of_request in zip(answers, places)
        ]

    def _structures(self, requests: Sequence[Request]) -> list[Atoms]:
        """The structures of all requests, wrapped, in objects that the next call uses again."""
        structures, n_lent = [], dict.fromkeys(self._lent, 0)
        for request in requests:
            n_structures, n_atoms, _ = request.positions.shape
            template, first = self.templates[n_atoms], n_lent[n_atoms]
            faults = faults_of_structures(request.cells, request.positions, template) if n_structures else []
            if faults:
                named = [(len(structures) + k, what) for k, what in faults]
                raise no_answer(named, [as_received(request, k, template) for k, _ in faults])
            n_lent[n_atoms] += n_structures
            structures += self._filled(request, template, first)
        return structures

    def _check_starts(self, requests: Sequence[Request]) -> None:
        for request in requests:
            n_atoms = request.positions.shape[1]
            if n_atoms in self._started:
                continue
            self._started.add(n_atoms)
            template, cell, positions = self.templates[n_atoms], request.cells[0], request.positions[0]
            mistake = mistaken_units(template, cell, positions) or mistaken_order(template, positions)
            if mistake:
                raise ProtocolError(mistake)

    def _filled(self, request: Request, template: Atoms, first: int) -> list[Atoms]:
        """Lent objects from number ``first`` on, with the structures of the request."""
        lent, end = self._lent[len(template)], first + len(request.cells)
        lent += [template.copy() for _ in range(len(lent), end)]
        positions = request.positions
        if template.pbc.any():  # a molecule has no cell, whatever box i-PI puts around it
            positions = wrapped(positions, request.cells, template.pbc)
            for atoms, cell in zip(lent[first:end], request.cells):
                atoms.cell.array[:] = cell
        for atoms, of_atoms in zip(lent[first:end], positions):
            atoms.arrays["positions"][:] = of_atoms
        return lent[first:end]

    def _predict(self, structures: list[Atoms]) -> list:
        try:
            return self.evaluate(structures)
        except GuardError as error:
            raise NoAnswer(str(error)) from error  # it has written the frame
        except MlffdError as error:
            raise NoAnswer(f"{error}; {dump(structures, str(error))}") from error

    def _check(self, answers: list[Answer], places: list[list[int]], structures: list[Atoms]) -> None:
        """Raises NoAnswer where a result must not be sent."""
        faults = {}
        for answer, of_request in zip(answers, places):
            template = self.templates[answer.forces.shape[1]]
            faults.update((of_request[k], what) for k, what in faults_of_answer(answer, template))
        if faults:
            faults = sorted(faults.items())
            raise no_answer(faults, [structures[k] for k, _ in faults])


def without_repeats(requests: Sequence[Request]) -> tuple[list[Request], list[list[int]]]:
    """The requests without structures that came before, and for each structure the place, among all that are
    left, of the one that it is the same as."""
    seen, distinct, places = {}, [], []
    for request in requests:
        keys = [cell.tobytes() + x.tobytes() for cell, x in zip(request.cells, request.positions)]
        n_before = len(seen)
        places.append([seen.setdefault(key, len(seen)) for key in keys])
        if len(seen) - n_before < len(keys):
            new = [keys.index(key) for key in itertools.islice(seen, n_before, None)]
            request = Request(request.cells[new], request.positions[new])
        distinct.append(request)
    return distinct, places


def wrapped(positions: np.ndarray, cells: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """Positions (n_structures, n_atoms, 3) moved by whole lattice vectors into their cells (n_structures, 3,
    3); directions without pbc stay.

    i-PI lets atoms drift for ever, and far from the origin float32 would be too coarse.
    """
    moves = np.floor(positions @ np.linalg.inv(cells))
    moves[:, :, ~pbc] = 0.0
    return positions - moves @ cells


def answer_of(predictions: list, places: list[int]) -> Answer:
    """The predictions at these places as one answer."""
    found = [predictions[k] for k in places]
    return Answer(
        energies=np.array([prediction.energy for prediction in found], np.float64),
        forces=np.array([prediction.forces for prediction in found], np.float64),
        virials=np.array([prediction.virial for prediction in found], np.float64),
    )


def as_received(request: Request, k: int, template: Atoms) -> Atoms:
    """A structure as it is, not wrapped; a molecule without the box around it."""
    atoms = template.copy()
    atoms.positions = request.positions[k]
    if template.pbc.any():
        atoms.cell = request.cells[k]
    return atoms


def no_answer(faults: list[Fault], structures: list[Atoms]) -> NoAnswer:
    """The error for these structures, which are written to a file with what is wrong."""
    said = [f"structure {k} of the batch: {what}" for k, what in faults]
    more = f" (and {len(said) - 1} more)" if len(said) > 1 else ""
    return NoAnswer(f"{said[0]}{more}; {dump(structures, *said)}")


def dump(structures: list[Atoms], *said: str) -> str:
    """Writes the structures for a look at them, with what is said of each, or of all, as ``problem``; says
    where."""
    frames = [atoms.copy() for atoms in structures]
    for frame, problem in zip(frames, itertools.cycle(said)):
        frame.info["problem"] = problem
    text = io.StringIO()
    write(text, frames, format="extxyz")
    try:
        return f"see {write_new(Path(DUMP), text.getvalue()).resolve()}"
    except OSError as error:
        return f"the structures cannot be written to {DUMP}: {error.strerror}"


def write_new(path: Path, text: str) -> Path:
    """Writes to a new file: ``path``, or with -2, -3, ... in its name. OSError if none can be."""
    for number in itertools.count(1):
        free = path if number == 1 else path.with_stem(f"{path.stem}-{number}")
        try:
            with free.open("x") as file:
                file.write(text)
        except FileExistsError:
            continue
        return free
