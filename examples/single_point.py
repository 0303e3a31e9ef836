# SPDX-License-Identifier: MIT
"""Energy, forces and stress of 64 water molecules, and the time one evaluation takes.

    python examples/single_point.py [BUNDLE]

Timed as in molecular dynamics: the atoms move before every evaluation, so that ASE's cache never answers;
neighbor lists are built again as often as the engine finds it necessary. The first ones are a warm-up and
don't count.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from ase.io import read
from ase.units import GPa

from mlffd import Calculator

WATER = Path(__file__).parents[1] / "ipi_inputs" / "water64.xyz"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", nargs="?", default="water", help="student bundle, or name of a shipped one")
    parser.add_argument("--device", default="cpu", help="torch device, such as cuda")
    parser.add_argument("--dtype", default="float32", help="float32 or float64")
    parser.add_argument("--steps", type=int, default=50, help="timed evaluations")
    options = parser.parse_args()

    atoms = read(WATER)
    atoms.calc = Calculator(options.bundle, device=options.device, dtype=options.dtype)
    print(f"{atoms.get_chemical_formula()}: {len(atoms)} atoms")
    print(f"energy         {atoms.get_potential_energy():.4f} eV")
    print(f"force (RMS)    {np.sqrt((atoms.get_forces() ** 2).mean()):.4f} eV/Å")
    print(f"pressure       {-atoms.get_stress()[:3].mean() / GPa:.4f} GPa, without the kinetic part")

    milliseconds = 1e3 * np.array(seconds_per_evaluation(atoms, options.steps))
    low, median, high = np.percentile(milliseconds, [10, 50, 90])
    print(
        f"one evaluation {median:.2f} ms (median of {options.steps}; 80 % within {low:.2f} to {high:.2f} ms)"
    )
    print(f"per atom       {1e3 * median / len(atoms):.2f} us, neighbor lists included")
    print(f"on             {options.device}, {options.dtype}, {torch.get_num_threads()} thread(s)")


def seconds_per_evaluation(atoms, steps, warm_up=3):
    """Wall time of each of `steps` evaluations of energy, forces and stress."""
    random = np.random.default_rng(0)
    start, seconds = atoms.positions.copy(), []
    for _ in range(warm_up + steps):
        atoms.positions = start + random.normal(0.0, 0.01, start.shape)  # Å
        began = time.perf_counter()
        atoms.get_forces()  # energy and stress come with it, and results are on the CPU: the device is done
        seconds.append(time.perf_counter() - began)
    return seconds[warm_up:]


if __name__ == "__main__":
    main()
