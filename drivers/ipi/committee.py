# SPDX-License-Identifier: MIT
"""Several students that answer together, and what i-PI is told of each of them.

The mean moves the atoms; the spread of the members says how far to trust it. i-PI's ``<ffcommittee>`` reads
the members from the extras of one driver where it says ``<parse_json>True</parse_json>``.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from ase import Atoms

from mlffd.drivers.ipi.evaluator import Evaluate
from mlffd.drivers.ipi.protocol import Answer
from mlffd.errors import ConfigError, MlffdError

DECIMALS = 12  # of forces and virials in extras; float32 gives 7 digits, and shorter numbers are read faster


@dataclass(frozen=True)
class CommitteePrediction:
    """What a committee says of one structure: the mean, and each member's own prediction."""

    energy: float  # eV
    forces: np.ndarray  # (n_atoms, 3) eV/Å
    virial: np.ndarray  # (3, 3) eV, -dE/dstrain
    members: list

    @classmethod
    def mean_of(cls, members: list) -> "CommitteePrediction":
        """From one prediction a member."""
        return cls(
            energy=float(np.mean([member.energy for member in members])),
            forces=np.mean([member.forces for member in members], axis=0),
            virial=np.mean([member.virial for member in members], axis=0),
            members=members,
        )


class Committee:
    """Students that answer together: an ``Evaluate`` made of others.

    Members may differ in everything but must all know the species of the structures. ``names`` are what
    errors call them.
    """

    def __init__(self, members: Sequence[Evaluate], names: Sequence[str] = ()):
        if not members:
            raise ConfigError("a committee needs a member: name one student or more")
        self.members = list(members)
        self.names = list(names) or [f"member {k}" for k in range(len(self.members))]

    def __call__(self, structures: list[Atoms]) -> list[CommitteePrediction]:
        """One prediction a structure. Raises what a member raises, with its name in front."""
        answers = []
        for member, name in zip(self.members, self.names):
            with errors_of(name):
                answers.append(member(structures))
        return [CommitteePrediction.mean_of(list(members)) for members in zip(*answers)]


@contextmanager
def errors_of(name: str) -> Iterator[None]:
    """Puts the name in front of what an error says."""
    try:
        yield
    except MlffdError as error:
        raise type(error)(f"{name}: {error}") from error


def committee_extras(prediction) -> str:
    """JSON of the members for i-PI: ``committee_pot`` (n_members), ``committee_force`` (n_members, 3 n_atoms)
    and ``committee_virial`` (n_members, 9), in Hartree and Bohr; a single student is a committee of one.

    Nested as i-PI's FFCommittee adds them to the lists of other drivers; flat lists hang it.
    """
    members = getattr(prediction, "members", [prediction])
    energies, forces, virials = Answer(
        energies=np.array([member.energy for member in members]),
        forces=np.array([member.forces for member in members]),
        virials=np.array([member.virial for member in members]),
    ).for_ipi()
    return (
        f'{{"committee_pot": {json.dumps(energies.tolist())}, '
        f'"committee_force": {rows_of_json(forces)}, "committee_virial": {rows_of_json(virials)}}}'
    )


def rows_of_json(numbers: np.ndarray) -> str:
    """Numbers (n_rows, ...) as JSON, (n_rows, n), with DECIMALS: four times as fast as ``json.dumps``."""
    rows, unit = numbers.reshape(len(numbers), -1), f"e-{DECIMALS}"
    if np.abs(rows).max() > 1e6:  # of a member gone mad: 64 bits end at 9.2e6
        return json.dumps(rows.tolist())
    integers = np.rint(rows * 10.0**DECIMALS).astype(np.int64).tolist()
    return "[" + ", ".join("[" + ",".join([f"{k}{unit}" for k in row]) + "]" for row in integers) + "]"
