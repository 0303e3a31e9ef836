# SPDX-License-Identifier: MIT
"""Relax 64 water molecules with ASE's BFGS: liquid water becomes a glass.

    python examples/optimize.py [BUNDLE]

Writes the relaxed structure to optimized.xyz, or where --output says.
"""

import argparse
from pathlib import Path

import numpy as np
from ase.io import read, write
from ase.optimize import BFGS

from mlffd import Calculator

WATER = Path(__file__).parents[1] / "ipi_inputs" / "water64.xyz"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", nargs="?", default="water", help="student bundle, or name of a shipped one")
    parser.add_argument("--steps", type=int, default=200, help="at most so many")
    parser.add_argument("--fmax", type=float, default=0.1, help="eV/Å; stop when no force is larger")
    parser.add_argument("--output", default="optimized.xyz")
    options = parser.parse_args()

    atoms = read(WATER)
    # float64: near a minimum energies differ by less than float32 can tell
    atoms.calc = Calculator(options.bundle, dtype="float64")
    energy = atoms.get_potential_energy()
    describe("start", atoms)
    optimizer = BFGS(atoms, logfile=None, maxstep=0.1)
    for _ in optimizer.irun(fmax=options.fmax, steps=options.steps):
        if optimizer.nsteps and optimizer.nsteps % 10 == 0:
            describe(f"step {optimizer.nsteps}", atoms)
    describe("end", atoms)

    gained = 1e3 * (energy - atoms.get_potential_energy()) / (len(atoms) // 3)
    reached = "converged" if largest_force(atoms) <= options.fmax else "not converged yet"
    print(f"{reached} after {optimizer.nsteps} steps: {gained:.1f} meV per molecule lower")
    write(options.output, atoms)


def describe(when, atoms):
    """One line: energy, largest force, and what the molecules look like."""
    energy, force = atoms.get_potential_energy(), largest_force(atoms)
    bonds = [atoms.get_distance(k, k + h, mic=True) for k in range(0, len(atoms), 3) for h in (1, 2)]
    print(
        f"{when:8s} energy {energy:.4f} eV, largest force {force:.3f} eV/Å, O-H bonds {np.mean(bonds):.3f} Å",
        flush=True,
    )


def largest_force(atoms):
    """Of any atom, in eV/Å."""
    return np.linalg.norm(atoms.get_forces(), axis=1).max()


if __name__ == "__main__":
    main()
