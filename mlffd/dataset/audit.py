# SPDX-License-Identifier: MIT
"""Look at frames before a teacher is paid for them: what cannot be meant, and what may not be.

Errors are what is certainly wrong: the teacher cannot do the frame, or atoms sit in each other, or an
organic skeleton or water has lost its hydrogens. Everything else that looks odd is a warning.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols, covalent_radii
from ase.neighborlist import neighbor_list

from mlffd.dataset.hydrogens import missing_hydrogens
from mlffd.dataset.pack import density
from mlffd.errors import AuditError
from mlffd.teachers import Teacher
from mlffd.teachers.charge import charge_and_spin, impossible_spin
from mlffd.teachers.facts import TeacherFacts

# distances in sums of covalent radii; N2 is at 0.77, the shortest metal dimer, Cr2, at 0.60, and sampling
# cuts its runs at 0.5, before it may displace atoms
OVERLAP, CLOSE = 0.4, 0.58
VACUUM = 10.0  # Å without an atom along a lattice direction
DENSEST, THINNEST = 25.0, 0.02  # g/cm3; osmium has 22.6, liquid hydrogen 0.07
CRUSHED = 200.0  # g/cm3; more than in the center of the Sun
SAME = 1e-4  # Å; frames whose atoms differ less are one
SHOWN = 3  # findings in an error message


@dataclass(frozen=True)
class Finding:
    """Something wrong ("error") or odd ("warning") with a frame; frame is None for the whole file."""

    level: str
    frame: int | None
    text: str

    def __str__(self):
        where = "" if self.frame is None else f"frame {self.frame}: "
        return f"{self.level}: {where}{self.text}"


def audit(
    structures: Sequence[Atoms], teacher: Teacher | TeacherFacts | None = None, settings: dict | None = None
) -> list[Finding]:
    """Everything wrong or odd with the structures, for a teacher where one is given.

    ``settings`` are those of the teacher (charge, spin, task), by default its own. What holds for all
    frames of a composition is said once, of the first of them.
    """
    facts = teacher
    if isinstance(teacher, Teacher):
        facts = replace(teacher.facts, elements=teacher.elements)
        settings = teacher.settings if settings is None else settings
    if not structures:
        return [Finding("error", None, "no structures")]
    findings = [
        Finding(level, number, text)
        for number, atoms in enumerate(structures)
        for level, text in _frame_findings(atoms, facts, settings or {})
    ]
    wrong = {finding.frame for finding in findings if finding.level == "error"}
    findings += _composition_findings(structures, wrong) + _duplicates(structures)
    return sorted(findings, key=lambda finding: (finding.level, finding.frame or 0))


def check_structures(
    structures: Sequence[Atoms], teacher: Teacher | TeacherFacts | None = None, settings: dict | None = None
) -> list[Finding]:
    """The warnings of an audit.

    Raises:
        AuditError: there are errors; the first ones in a line.
    """
    findings = audit(structures, teacher, settings)
    errors = [finding for finding in findings if finding.level == "error"]
    if errors:
        more = f" and {len(errors) - SHOWN} more errors" if len(errors) > SHOWN else ""
        said = "; ".join(str(error).removeprefix("error: ") for error in errors[:SHOWN])
        raise AuditError(f"frames not to be labelled: {said}{more}")
    return findings


def _frame_findings(atoms, facts, settings):
    """(level, text) of one frame by itself."""
    unusable = _unusable(atoms)
    if unusable:
        return [("error", unusable)]
    found = _for_teacher(atoms, facts, settings) if facts else []
    found += _distances(atoms)
    if atoms.pbc.all():
        found += _emptiness(atoms)
    return found


def _unusable(atoms):
    if len(atoms) == 0:
        return "no atoms"
    if not np.isfinite(atoms.positions).all() or not np.isfinite(atoms.cell.array).all():
        return "a position or the cell is not finite"
    if (atoms.numbers < 1).any():
        return "an atom has no element (X)"
    vectors = atoms.cell.array[atoms.pbc]
    if len(vectors) and np.linalg.matrix_rank(vectors, tol=1e-6) < len(vectors):
        return "called periodic but has no cell: give one, or set pbc to false"
    if atoms.pbc.all() and density(atoms) > CRUSHED:
        return f"a density of {density(atoms):.3g} g/cm3: positions and cell are not in Å"
    return None


def _for_teacher(atoms, facts, settings):
    found = []
    unknown = set(atoms.get_chemical_symbols()) - (facts.elements or set(chemical_symbols))
    if unknown:
        found.append(("error", f"the teacher does not know {', '.join(sorted(unknown))}"))
    if facts.periodic == "required" and atoms.cell.rank < 3:
        found.append(("error", "no cell, and the teacher needs one"))
    elif facts.periodic == "required" and not atoms.pbc.all():
        found.append(("warning", "not periodic in all directions, which the teacher may take it to be"))
    if facts.periodic == "never" and atoms.pbc.any():
        found.append(("error", "periodic, and the teacher takes isolated molecules only"))
    if facts.charged and settings.get("task", "omol") == "omol":
        given = {key: settings[key] for key in ("charge", "spin") if key in settings}
        wrong = impossible_spin(atoms, *charge_and_spin(atoms, **given))
        found += [("error", wrong)] if wrong else []
    return found


def _distances(atoms):
    """The pair that is closest, in sums of covalent radii, if too close."""
    radii = CLOSE * covalent_radii[atoms.numbers]
    first, second, distance = neighbor_list("ijd", atoms, radii)
    if not len(first):
        return []
    ratio = distance / (covalent_radii[atoms.numbers[first]] + covalent_radii[atoms.numbers[second]])
    k = int(ratio.argmin())
    symbols = atoms.symbols[first[k]], atoms.symbols[second[k]]
    level, word = ("error", "overlap") if ratio[k] < OVERLAP else ("warning", "are very close")
    return [(level, f"{symbols[0]}{first[k]} and {symbols[1]}{second[k]} {word}: {distance[k]:.2f} Å")]


def _emptiness(atoms):
    """Vacuum along lattice directions, or a density that no matter has."""
    found = gaps(atoms)
    wide = np.flatnonzero(found > VACUUM)
    where = ", ".join(f"{found[k]:.0f} Å along {'abc'[k]}" for k in wide)
    if len(wide) == 3:
        return [("warning", f"vacuum on all sides ({where}): for an isolated molecule set pbc to false")]
    if len(wide):
        return [("warning", f"vacuum ({where}): its stress is not that of a bulk")]
    rho = density(atoms)
    if not THINNEST <= rho <= DENSEST:
        return [("warning", f"a density of {rho:.3g} g/cm3: is the cell in Å?")]
    return []


def gaps(atoms):
    """Widest slices without an atom along the three lattice directions, Å, as (3,)."""
    fractions = np.sort(atoms.get_scaled_positions(wrap=True), axis=0)
    steps = np.diff(np.vstack([fractions, fractions[:1] + 1]), axis=0)
    heights = 1 / np.linalg.norm(atoms.cell.reciprocal(), axis=1)  # distances of lattice planes
    return steps.max(axis=0) * heights


def _composition_findings(structures, wrong):
    """What all frames of a composition share, looked at in the first sound one."""
    first = {}
    for number, atoms in enumerate(structures):
        if number not in wrong:
            first.setdefault(atoms.get_chemical_formula(), number)
    found = [(number, missing_hydrogens(structures[number])) for number in first.values()]
    return [Finding(level, number, text) for number, (level, text) in filter(lambda f: f[1], found)]


def _duplicates(structures):
    seen, found = {}, []
    for number, atoms in enumerate(structures):
        earlier = seen.setdefault(_digest(atoms), number)
        if earlier != number and len(atoms):
            found.append(Finding("warning", number, f"the same as frame {earlier}"))
    return found


def _digest(atoms):
    """Of elements, cell and positions relative to the first atom, rounded."""
    digest = hashlib.sha256(atoms.numbers.tobytes() + atoms.pbc.tobytes())
    relative = atoms.positions - atoms.positions[:1]
    for lengths in (atoms.cell.array, relative):
        digest.update((np.round(lengths / SAME) + 0.0).tobytes())  # no negative zeros
    for key in ("charge", "spin"):
        digest.update(str(atoms.info.get(key)).encode())
    return digest.digest()
