"""Students: functions from edge vectors to atomic energies, built from a plain description."""

import inspect

import torch

from mlffd.errors import BundleError
from mlffd.students.lennard_jones import LennardJonesStudent
from mlffd.students.local import LocalStudent
from mlffd.students.painn import PainnStudent
from mlffd.students.student import Student

FAMILIES = {student.family: student for student in (LocalStudent, PainnStudent, LennardJonesStudent)}


def build_student(architecture: dict) -> Student:
    """The student of this architecture with freshly initialized weights, in float64.

    ``architecture`` holds ``family``, ``species`` (atomic numbers), ``cutoff`` (Å) and the family's sizes.

    Raises:
        BundleError: unknown family, or sizes that do not belong to it.
    """
    sizes = dict(architecture)
    family = sizes.pop("family", None)
    if family not in FAMILIES:
        raise BundleError(f"unknown student family {family!r}; this mlffd knows: {', '.join(FAMILIES)}")
    known = inspect.signature(FAMILIES[family].__init__).parameters
    unknown = sorted(set(sizes) - set(known))
    missing = sorted({"species", "cutoff"} - set(sizes))
    if unknown or missing:
        wrong = [f"unknown: {', '.join(unknown)}"] * bool(unknown) + [
            f"missing: {', '.join(missing)}"
        ] * bool(missing)
        raise BundleError(f"architecture of a {family} student has entries {'; '.join(wrong)}")
    return FAMILIES[family](**sizes).cast(torch.float64)
