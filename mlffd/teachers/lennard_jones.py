# SPDX-License-Identifier: MIT
"""Lennard-Jones as a teacher: analytic, instant, for tests and for checking a whole pipeline."""

import ase
from ase.calculators.lj import LennardJones

from mlffd.teachers.facts import TeacherFacts

LICENCE = "LGPL-2.1-or-later (ASE's LennardJones)"


def load(name, device="cpu", directory=".", epsilon=0.0104, sigma=3.40, rc=8.5):
    """Lennard-Jones with `epsilon` (eV), `sigma` (Å), energy shifted to zero at `rc` (Å); default argon."""
    calculator = LennardJones(epsilon=epsilon, sigma=sigma, rc=rc, smooth=False)
    return calculator, f"ase {ase.__version__}", {"epsilon": epsilon, "sigma": sigma, "rc": rc}


TEACHERS = {
    "lj": TeacherFacts(
        load,
        about="Lennard-Jones pairs, all elements alike",
        level="analytic",
        code_licence=LICENCE,
        weights_licence=LICENCE,
        install="nothing: it comes with mlffd",
        elements_note="any, all alike",
        settings={
            "epsilon": "depth of the well, eV (default: argon)",
            "sigma": "distance at which the energy is zero, Å",
            "rc": "cutoff, Å; the energy is shifted to zero there",
        },
    )
}
