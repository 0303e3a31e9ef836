# SPDX-License-Identifier: MIT
"""Lennard-Jones as a teacher: analytic, instant, for tests and for checking a whole pipeline."""

import ase
from ase.calculators.lj import LennardJones

LICENCE = "LGPL-2.1-or-later (ASE's LennardJones)"


def load(device="cpu", epsilon=0.0104, sigma=3.40, rc=8.5):
    """Lennard-Jones with `epsilon` (eV), `sigma` (Å), energy shifted to zero at `rc` (Å); default argon."""
    calculator = LennardJones(epsilon=epsilon, sigma=sigma, rc=rc, smooth=False)
    settings = {"epsilon": epsilon, "sigma": sigma, "rc": rc}
    return calculator, f"ase {ase.__version__}", LICENCE, settings
