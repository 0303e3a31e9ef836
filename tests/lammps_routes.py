# SPDX-License-Identifier: MIT
"""The ways a student gets into LAMMPS, alike for tests that go through all of them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from lammps_process import SCRIPTS, Finished, run_lammps, run_limited
from plugin_process import needs, run_plugin

from mlffd.bundle import write_bundle
from mlffd.drivers.lammps_mliap import export
from mlffd.kernels.block import weight_block
from mlffd.students.student import Student


@dataclass(frozen=True)
class Route:
    """How an input names a student, and what runs it; {name} is the student's, {precision} its dtype."""

    keyword: str  # of the pair style, as pair_style hybrid has it
    style: str
    coefficients: str  # of pair_coeff, before the elements
    write: Callable[[Path, str, Student, str], object]  # folder, name, student, precision
    run: Callable[..., Finished]

    def potential(self, name: str, precision: str, elements: str, others: str = "") -> str:
        """Input lines of the student; with ``others``, styles that overlay it, but for their coefficients."""
        style = self.style.format(name=name, precision=precision)
        coefficients = f"{self.coefficients.format(name=name)} {elements}"
        if others:
            return (
                f"pair_style hybrid/overlay {others} {style}\npair_coeff * * {self.keyword} {coefficients}\n"
            )
        return f"pair_style {style}\npair_coeff * * {coefficients}\n"


def write_mliap(folder: Path, name: str, student: Student, precision: str) -> None:
    write_bundle(folder / f"{name}.mlffd", student)
    export(folder / f"{name}.mlffd", folder / f"{name}.pt", dtype=precision)


def write_weights(folder: Path, name: str, student: Student, precision: str) -> None:
    needs(student.family)
    (folder / f"{name}.weights").write_bytes(weight_block(student))


def run_external(script: str, folder: Path, ranks: int = 1, time_limit: float = 120.0) -> Finished:
    """An input for pair_style mliap in a LAMMPS that is used as a library, through fix external."""
    (folder / "in.test").write_text(script)
    command = [SCRIPTS / "mpiexec", "-n", str(ranks), SCRIPTS / "mlffd", "lammps", "run", "in.test"]
    return run_limited([*command, "--fix", "external"], folder, time_limit)


MLIAP = Route("mliap", "mliap unified {name}.pt 0", "", write_mliap, run_lammps)
ROUTES = {
    "mliap": MLIAP,
    "plugin": Route("mlffd", "mlffd precision {precision}", "{name}.weights", write_weights, run_plugin),
    "external": replace(MLIAP, run=run_external),
}
