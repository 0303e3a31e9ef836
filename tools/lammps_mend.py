# SPDX-License-Identifier: MIT
"""What is changed in LAMMPS' source before it is built. Standard library only."""

import re
from pathlib import Path

from lammps_source import SourceError


def mend(tree: Path, say=print):
    """Mends two upstream faults in ``tree``, where it has them. Raises SourceError on surprises."""
    if mend_firstneigh(tree / "src" / "ML-IAP" / "mliap_data.cpp"):
        say("LAMMPS: mended the lmp_firstneigh memory fault of ML-IAP")
    mend_libpython(tree / "python" / "lammps" / "mliap" / "__init__.py")


# how the array is grown in the faulty sources: centers x all pairs
FAULT = re.compile(r"^\s*memory->grow\(lmp_firstneigh, natomneigh, nneigh(_max)?,", re.MULTILINE)
USES = re.compile(
    r"^(\s*(?:memory->grow\(lmp_firstneigh,|lmp_firstneigh\[ii\]\[ninside\] =|bytes \+=.*// lmp_firstneigh))",
    re.MULTILINE,
)


def mend_firstneigh(file: Path) -> bool:
    """Comments out ML-IAP's ``lmp_firstneigh``; returns whether it had to.

    Upstream grows the array to (centers, all pairs) integers, 58 GB for 16 384 atoms, and writes past it when
    the number of atoms on a rank changes. Only the ACE descriptor reads it, and that one is not built here.
    """
    if not file.is_file():
        raise SourceError(f"{file} is missing: this LAMMPS source has no ML-IAP package")
    text = file.read_text()
    if not FAULT.search(text):
        return False
    mended, count = USES.subn(r"//\1", text)
    if FAULT.search(mended) or count != 4:
        raise SourceError(f"{file.name} uses lmp_firstneigh in a way not known here ({count} lines, not 4)")
    file.write_text(mended)
    return True


def mend_libpython(file: Path):
    """Lets ``lammps.mliap`` ask the running Python whether it is initialized.

    Upstream asks whichever libpython the loader finds by name: another Python's, or none.
    """
    if file.is_file():
        file.write_text(file.read_text().replace("ctypes.CDLL(library)", "ctypes.CDLL(None)"))


def leave_python_open(tree: Path):
    """Links liblammps.so without libpython, whose symbols the program then brings. For static Pythons."""
    file = tree / "cmake" / "Modules" / "Packages" / "PYTHON.cmake"
    text = file.read_text()
    if "Python::Python" not in text:
        raise SourceError(f"{file.name} links Python in a way not known here")
    file.write_text(text.replace("Python::Python", "Python::Module"))
