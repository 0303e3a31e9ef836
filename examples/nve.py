# SPDX-License-Identifier: MIT
"""Molecular dynamics of 64 water molecules without a thermostat: is energy conserved?

    python examples/nve.py [BUNDLE]

The drift is the slope of the total energy. Its error is judged from the run itself, and with it how small a
drift a run of this length can tell from none.
"""

import argparse
from pathlib import Path

import numpy as np
from ase import units
from ase.io import read
from ase.md.verlet import VelocityVerlet

from mlffd import Calculator

WATER = Path(__file__).parents[1] / "ipi_inputs" / "water64.xyz"
BLOCKS = 8


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", nargs="?", default="water", help="student bundle, or name of a shipped one")
    parser.add_argument("--dtype", default="float32", help="float32 or float64")
    parser.add_argument("--steps", type=int, default=2000, help="at least 16")
    parser.add_argument("--time-step", type=float, default=0.5, help="fs; hydrogen moves freely")
    parser.add_argument("--temperature", type=float, default=300.0, help="K, at the start")
    options = parser.parse_args()
    if options.steps < 2 * BLOCKS:
        parser.error(f"--steps must be at least {2 * BLOCKS}")

    atoms = read(WATER)
    atoms.calc = Calculator(options.bundle, dtype=options.dtype)
    set_temperature(atoms, options.temperature)
    energies, temperatures = run(atoms, options.steps, options.time_step * units.fs)
    drift, error = slope(1e3 * energies / len(atoms), options.time_step * 1e-6)
    picoseconds = options.steps * options.time_step * 1e-3
    print(f"temperature {temperatures.mean():.1f} K on average, {temperatures[-1]:.1f} K at the end")
    print(f"total energy within {1e3 * np.ptp(energies) / len(atoms):.4f} meV/atom")
    print(f"drift {drift:+.3g} +- {error:.2g} meV/atom/ns ({options.dtype}, {options.time_step} fs)")
    print(
        f"from a run of {picoseconds:g} ps, which can tell a drift of {2 * error:.2g} meV/atom/ns from none"
    )


def set_temperature(atoms, temperature):
    """Momenta of Maxwell and Boltzmann's distribution, without drift of the whole box."""
    momenta = np.random.default_rng(1).normal(size=(len(atoms), 3))
    momenta *= np.sqrt(units.kB * temperature * atoms.get_masses())[:, None]
    atoms.set_momenta(momenta - momenta.mean(axis=0))


def run(atoms, steps, time_step):
    """Total energies (steps,) in eV and temperatures (steps,) in K."""
    dynamics = VelocityVerlet(atoms, timestep=time_step)
    energies, temperatures = [], []
    for step in range(1, steps + 1):
        dynamics.run(1)
        energies.append(atoms.get_total_energy())
        temperatures.append(atoms.get_temperature())
        if step % max(steps // 10, 1) == 0:
            print(f"step {step}: {temperatures[-1]:.1f} K, total energy {energies[-1]:.5f} eV", flush=True)
    return np.array(energies), np.array(temperatures)


def slope(values, interval):
    """Slope of a line through the means of blocks, and its standard error.

    Block means are used because energies of successive steps are correlated: as separate points they would
    promise an error far too small.
    """
    length = len(values) // BLOCKS
    means = values[-BLOCKS * length :].reshape(BLOCKS, length).mean(axis=1)
    times = length * interval * np.arange(BLOCKS)
    (found, _), covariance = np.polyfit(times, means - means[0], 1, cov=True)
    return found, np.sqrt(covariance[0, 0])


if __name__ == "__main__":
    main()
