# SPDX-License-Identifier: MIT
"""The water student beside its teacher: how close are its forces, and how much faster is it?

    pip install "mlffd[sevenn]"
    python examples/teacher_beside_student.py [BUNDLE]

The teacher is SevenNet's 7net-mf-0 with its r2SCAN head; it takes about 3 s for 64 molecules on one CPU core.
The frames come from a short run of the student, so it has not been trained on them.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from ase import units
from ase.io import read
from ase.md.verlet import VelocityVerlet

from mlffd import Calculator
from mlffd.errors import TeacherError
from mlffd.teachers import load_teacher

WATER = Path(__file__).parents[1] / "ipi_inputs" / "water64.xyz"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", nargs="?", default="water", help="student bundle, or name of a shipped one")
    parser.add_argument("--structure", default=WATER, help="any file that ASE reads; 64 H2O if not given")
    parser.add_argument("--frames", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100, help="steps of dynamics between two frames")
    options = parser.parse_args()

    try:
        teacher = load_teacher({"name": "7net-mf-0", "modal": "R2SCAN"}).calculator
    except TeacherError as error:
        sys.exit(str(error))
    student = Calculator(options.bundle)
    frames = sample(read(options.structure), student, options.frames, options.steps)
    taught, teacher_time = evaluate(teacher, frames)
    learned, student_time = evaluate(student, frames)

    print(f"{len(frames)} frames of {frames[0].get_chemical_formula()}, {torch.get_num_threads()} thread(s)")
    print(f"teacher's forces {1e3 * np.sqrt((taught**2).mean()):8.1f} meV/Å (RMS)")
    print(f"student's error  {1e3 * np.abs(learned - taught).mean():8.1f} meV/Å (mean absolute)")
    print(f"teacher          {teacher_time:10.3f} ms an evaluation")
    print(f"student          {student_time:10.3f} ms an evaluation")
    print(f"the student is {teacher_time / student_time:.0f} times faster")


def sample(atoms, calculator, n_frames, steps):
    """The structure itself and `n_frames` more from dynamics, `steps` steps of 0.5 fs apart."""
    atoms.calc = calculator
    spread = np.sqrt(units.kB * 300 * atoms.get_masses())[:, None]
    atoms.set_momenta(spread * np.random.default_rng(3).normal(size=(len(atoms), 3)))
    dynamics = VelocityVerlet(atoms, timestep=0.5 * units.fs)
    frames = [atoms.copy()]
    for _ in range(n_frames):
        dynamics.run(steps)
        frames.append(atoms.copy())
    return frames


def evaluate(calculator, frames):
    """Forces (n_frames, n_atoms, 3) in eV/Å, and the median time of all evaluations but the first, in ms."""
    forces, milliseconds = [], []
    for atoms in frames:
        began = time.perf_counter()
        forces.append(calculator.get_forces(atoms))
        milliseconds.append(1e3 * (time.perf_counter() - began))
    return np.array(forces), np.median(milliseconds[1:])


if __name__ == "__main__":
    main()
