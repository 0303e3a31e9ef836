# SPDX-License-Identifier: MIT
"""Many structures at once: molecules and boxes of water of different sizes in batched evaluations.

    python examples/batch.py [BUNDLE]

`calculate_many` takes structures of any sizes, with or without cells, and returns ASE's results for each. The
table compares it with the same structures one by one. Positions differ in every repetition.
"""

import argparse
import time

import numpy as np
from ase.build import molecule

from mlffd import Calculator

SPACING = 3.107  # Å; one molecule in a cube of this size is 0.997 g/cm3


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", nargs="?", default="water", help="student bundle, or name of a shipped one")
    parser.add_argument("--device", default="cpu", help="torch device, such as cuda")
    parser.add_argument("--dtype", default="float32", help="float32 or float64")
    parser.add_argument("--repeat", type=int, default=5, help="timed repetitions; the median is shown")
    options = parser.parse_args()
    calculator = Calculator(options.bundle, device=options.device, dtype=options.dtype)

    sets = {
        "32 molecules": [molecule("H2O") for _ in range(32)],
        "8 boxes of 24 atoms": [water_box(2) for _ in range(8)],
        "4 boxes of 81 atoms": [water_box(3) for _ in range(4)],
        "mixed": [water_box(2), *(molecule("H2O") for _ in range(6)), water_box(3), water_box(1)],
    }
    print(f"{'':20s} {'one by one':>14s} {'batched':>14s} {'largest force difference':>26s}")
    for name, structures in sets.items():
        alone, batched, difference = compare(calculator, structures, options.repeat)
        print(f"{name:20s} {alone:11.3f} ms {batched:11.3f} ms {difference:20.1e} eV/Å")
    print(f"times are for each structure, on {options.device} in {options.dtype}")


def water_box(n):
    """n x n x n molecules on a simple cubic lattice, periodic."""
    box = molecule("H2O", cell=[SPACING] * 3, pbc=True)
    return box.repeat(n)


def compare(calculator, structures, repeat):
    """Milliseconds a structure one by one and batched, and the largest difference of any force in eV/Å."""
    alone, batched, differences = [], [], []
    for seed in range(repeat + 1):
        for k, atoms in enumerate(structures):
            atoms.rattle(0.01, seed=1000 * seed + k)
        began = time.perf_counter()
        one_by_one = [calculator.calculate_many([atoms])[0] for atoms in structures]
        between = time.perf_counter()
        together = calculator.calculate_many(structures)
        alone.append(between - began)
        batched.append(time.perf_counter() - between)
        pairs = zip(one_by_one, together)
        differences.append(max(np.abs(a["forces"] - b["forces"]).max() for a, b in pairs))
    scale = 1e3 / len(structures)
    # the first repetition is the warm-up
    return scale * np.median(alone[1:]), scale * np.median(batched[1:]), max(differences)


if __name__ == "__main__":
    main()
