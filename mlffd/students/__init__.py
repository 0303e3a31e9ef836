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
    if not isinstance(family, str) or family not in FAMILIES:
        raise BundleError(f"unknown student family {family!r}; this mlffd knows: {', '.join(FAMILIES)}")
    known = inspect.signature(FAMILIES[family].__init__).parameters
    unknown = sorted(set(sizes) - set(known) | {"self"} & set(sizes))
    if unknown:
        raise BundleError(f"a {family} student has no {', '.join(unknown)}")
    if "species" not in sizes:
        raise BundleError("the architecture names no species")
    check_sizes(sizes, family)
    return FAMILIES[family](**sizes).cast(torch.float64)


def check_sizes(sizes: dict, family: str) -> None:
    """Refuse sizes that no student can have, before memory is taken for it.

    Raises:
        BundleError: naming the first entry that is wrong.
    """
    for name, value in sizes.items():
        fits, what = SIZES[name]
        if not fits(value):
            raise BundleError(f"a {family} student cannot have {name} = {value!r}: it must be {what}")
    for name in ("epsilon", "sigma"):
        if name in sizes and len(sizes[name]) != len(sizes["species"]):
            raise BundleError(f"{name} must have one value for each species")


def is_count(value, largest: int = 4096) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= largest


def is_positive(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e3


def is_list_of(fits, value, shortest: int = 1) -> bool:
    return isinstance(value, list | tuple) and shortest <= len(value) <= 118 and all(map(fits, value))


COUNT = (is_count, "a whole number from 1 to 4096")
POSITIVE_LIST = (lambda value: is_list_of(is_positive, value), "a list of positive numbers")
# entry of an architecture -> what it may be, as a test and in words
SIZES = {
    "species": (
        lambda value: is_list_of(lambda z: is_count(z, 118), value) and len(set(value)) == len(value),
        "a list of different atomic numbers",
    ),
    "cutoff": (is_positive, "a positive number of Å"),
    "n_radial": (lambda value: is_count(value, 256), "a whole number from 1 to 256"),
    "channels": COUNT,
    "features": (lambda value: is_count(value) and value >= 2, "a whole number from 2 to 4096"),
    "layers": (lambda value: is_count(value, 16), "a whole number from 1 to 16"),
    "l_max": (lambda value: value == 0 or is_count(value, 3), "0, 1, 2 or 3"),
    "hidden": (
        lambda value: is_list_of(is_count, value, shortest=0) and len(value) <= 8,
        "a list of at most 8 whole numbers from 1 to 4096",
    ),
    "epsilon": POSITIVE_LIST,
    "sigma": POSITIVE_LIST,
}
