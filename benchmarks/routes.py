# SPDX-License-Identifier: MIT
"""The same dynamics alone, through ASE, i-PI and LAMMPS: what it took and the first energy.

All are constant-energy runs of the same atoms with the same time step. ASE is timed here; i-PI and LAMMPS are
believed what they print of themselves.
"""

import os
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.io import write
from ase.io.lammpsdata import write_lammps_data
from ase.md.verlet import VelocityVerlet
from harness import BenchmarkError, last_line, program, repetition_means, run_program, time_steps

from mlffd import Calculator, Engine
from mlffd.drivers.lammps_mliap import export
from mlffd.drivers.lammps_plugin import build_plugin, export_weights
from mlffd.units import HARTREE

TEMPERATURE = 300.0  # K


@dataclass(frozen=True)
class Plan:
    """What each route is to do."""

    atoms: Atoms  # periodic, no calculator
    time_step: float  # fs
    steps: int  # a repetition
    repetitions: int
    warm_up: int  # steps

    @property
    def total_steps(self) -> int:
        return self.warm_up + self.repetitions * self.steps

    @property
    def series(self) -> tuple[int, int, int]:
        """As the harness takes it."""
        return self.steps, self.repetitions, self.warm_up


@dataclass(frozen=True)
class Outcome:
    """What a route has measured."""

    seconds_per_step: list[float]  # one mean a repetition
    first_energy: float  # eV, potential energy of plan.atoms
    timed_by: str
    cpu_seconds_per_step: list[float] | None = None  # where the route tells


def run_ase(plan: Plan, calculator) -> Outcome:
    """Velocity Verlet in this process, with any ASE calculator."""
    atoms = thermal(plan.atoms)
    atoms.calc = calculator
    first_energy = atoms.get_potential_energy()
    dynamics = VelocityVerlet(atoms, timestep=plan.time_step * units.fs)
    seconds, cpu_seconds = clocked(lambda: dynamics.run(1), atoms, plan)
    return Outcome(seconds, float(first_energy), "wall clock around each step", cpu_seconds)


def run_alone(plan: Plan, engine: Engine) -> Outcome:
    """The engine on the frames of a trajectory, neighbor lists included, without the dynamics."""
    frames = trajectory(plan.atoms, plan.total_steps + 1, plan.time_step)
    atoms, rest = plan.atoms.copy(), iter(frames[1:])

    def step() -> None:
        atoms.positions = next(rest)
        engine.evaluate(atoms)

    (first,) = engine.evaluate(plan.atoms)
    seconds, cpu_seconds = clocked(step, atoms, plan)
    return Outcome(seconds, first.energy, "wall clock around each evaluation", cpu_seconds)


def clocked(step: Callable[[], object], atoms: Atoms, plan: Plan) -> tuple[list[float], list[float]]:
    """Wall and CPU seconds a step, one mean for each repetition; ``step`` moves ``atoms``."""
    cpu_seconds = []

    def watched() -> None:
        began = time.process_time()
        step()
        cpu_seconds.append(time.process_time() - began)

    seconds = time_steps(watched, lambda: atoms.positions, *plan.series)
    return seconds, repetition_means(cpu_seconds, *plan.series)


def thermal(atoms: Atoms) -> Atoms:
    """A copy whose momenta are drawn for TEMPERATURE; always the same ones."""
    atoms = atoms.copy()
    spread = np.sqrt(units.kB * TEMPERATURE * atoms.get_masses())[:, None]
    atoms.set_momenta(spread * np.random.default_rng(1).normal(size=(len(atoms), 3)))
    return atoms


def trajectory(atoms: Atoms, n_frames: int, time_step: float, backend: str = "auto") -> np.ndarray:
    """Positions (n_frames, n_atoms, 3) in Å of the shipped student's dynamics, ``time_step`` fs apart."""
    atoms = thermal(atoms)
    atoms.calc = Calculator("water", backend=backend)
    frames = []
    dynamics = VelocityVerlet(atoms, timestep=time_step * units.fs)
    dynamics.attach(lambda: frames.append(atoms.positions.copy()))
    dynamics.run(n_frames - 1)
    return np.array(frames)


IPI_INPUT = """
<simulation verbosity="high">
  <total_steps>{total_steps}</total_steps>
  <prng><seed>20260704</seed></prng>
  <output prefix="run">
    <properties filename="out" stride="{total_steps}">[ step, potential ]</properties>
  </output>
  <ffsocket name="student" mode="unix" pbc="false">
    <address>student</address>
    <batch_size>{n_beads}</batch_size>
    <latency>{latency}</latency>
    <exit_on_disconnect>True</exit_on_disconnect>
  </ffsocket>
  <system>
    <initialize nbeads="{n_beads}">
      <file mode="ase">start.xyz</file>
      <velocities mode="thermal" units="kelvin">{temperature}</velocities>
    </initialize>
    <forces><force forcefield="student"/></forces>
    <ensemble><temperature units="kelvin">{temperature}</temperature></ensemble>
    <motion mode="dynamics">
      <dynamics mode="nve"><timestep units="femtosecond">{time_step}</timestep></dynamics>
    </motion>
  </system>
</simulation>
"""
IPI_STEP = re.compile(r"Average timings at MD step +\d+\. t/step: +(\S+)")


def run_ipi(plan: Plan, bundle: str, dtype: str, n_beads: int = 1) -> Outcome:
    """i-PI and one mlffd-driver over a unix socket; verbosity "high" prints the time of every step.

    Raises:
        BenchmarkError: i-PI is not installed, or one of the two fails.
    """
    ipi, driver = program("i-pi"), program("mlffd-driver")
    with tempfile.TemporaryDirectory(prefix="mlffd-") as name:
        folder = Path(name)
        write(folder / "start.xyz", plan.atoms, format="extxyz")
        text = IPI_INPUT.format(
            total_steps=plan.total_steps, n_beads=n_beads, temperature=TEMPERATURE, time_step=plan.time_step,
            latency=1e-3 if n_beads > 1 else 1e-4,  # long enough that all beads are there to form one batch
        )  # fmt: skip
        (folder / "input.xml").write_text(text)
        options = ["-t", "start.xyz", "-u", "student", "--socket-prefix", f"{folder}/", "--dtype", dtype]
        client = [driver, located(bundle), *options]
        printed = run_program([ipi, "-S", f"{folder}/", "input.xml"], folder, beside=client)
        seconds = [float(text) for text in IPI_STEP.findall(printed)]
        # in Hartree, as its own eV differs from ASE's in the seventh digit
        potential = HARTREE * np.loadtxt(folder / "run.out", ndmin=2)[0, 1]
    return Outcome(repetition_means(seconds, *plan.series), float(potential), "t/step of i-PI")


LAMMPS_INPUT = """
units           metal
atom_style      atomic
newton          on
read_data       start.data
{force_field}
neighbor        {skin:g} bin
neigh_modify    every 1 delay 0 check yes
velocity        all create {temperature} 20260704 mom yes rot no dist gaussian
timestep        {time_step_ps:.10g}
fix             motion all nve
thermo          {steps}
thermo_style    custom step temp pe
run             0
variable        first equal pe
print           "first energy $(v_first:%.12g)"
run             {warm_up}
"""
LAMMPS_LOOP = re.compile(r"^Loop time of (\S+) on \d+ procs for (\d+) steps", re.MULTILINE)
LAMMPS_CPU = re.compile(r"^(\S+)% CPU use with", re.MULTILINE)


def run_lammps(plan: Plan, bundle: str, dtype: str, ranks: int = 1) -> Outcome:
    """``lmp`` of this environment with pair_style mliap unified.

    Raises:
        BenchmarkError: there is no lmp in this environment, or it fails.
    """
    with tempfile.TemporaryDirectory(prefix="mlffd-") as name:
        export(bundle, Path(name) / "student.pt", dtype=dtype)
        force_field = "pair_style mliap unified student.pt 0\npair_coeff * * {elements}"
        return run_lmp(plan, Path(name), force_field, program("lmp"), ranks)


def run_plugin(plan: Plan, bundle: str, dtype: str, lmp: Path, ranks: int = 1) -> Outcome:
    """Any ``lmp`` that can load plugins, with pair_style mlffd, which is compiled for it.

    Raises:
        ConfigError: there is no compiler, or this LAMMPS cannot be compiled for.
        BenchmarkError: it fails.
    """
    with tempfile.TemporaryDirectory(prefix="mlffd-") as name:
        folder = Path(name)
        build_plugin(lmp, folder / "mlffdplugin.so")
        export_weights(bundle, folder / "student.weights")
        force_field = (
            f"plugin load ./mlffdplugin.so\npair_style mlffd precision {dtype}\n"
            "pair_coeff * * student.weights {elements}"
        )
        return run_lmp(plan, folder, force_field, lmp, ranks, skin=1.5)  # as in.water-plugin has it


def run_lmp(
    plan: Plan, folder: Path, force_field: str, lmp: Path, ranks: int = 1, skin: float = 1.0
) -> Outcome:
    """Any ``lmp`` with any force field; a `run` of its own for the warm-up and for each repetition.

    ``force_field``: the commands that set it up, with ``{elements}`` for those of the atom types; files that
    they name are in ``folder``.

    Raises:
        BenchmarkError: it fails.
    """
    command = [lmp, "-in", "in.bench", "-log", "none"]
    if ranks > 1:
        beside = lmp.with_name("mpiexec")  # of the MPI it was built with
        command = [beside if beside.exists() else program("mpiexec"), "-n", ranks, *command]
    elements = sorted(set(plan.atoms.symbols), reverse=True)
    write_lammps_data(
        folder / "start.data", plan.atoms, specorder=elements, masses=True, atom_style="atomic", units="metal"
    )
    text = LAMMPS_INPUT.format(
        force_field=force_field.format(elements=" ".join(elements)), temperature=TEMPERATURE,
        time_step_ps=1e-3 * plan.time_step, steps=plan.steps, warm_up=plan.warm_up, skin=skin,
    )  # fmt: skip
    (folder / "in.bench").write_text(text + plan.repetitions * f"run {plan.steps}\n")
    printed = run_program(command, folder)
    seconds = loop_times(printed, plan)
    percent = [float(text) for text in LAMMPS_CPU.findall(printed)][-plan.repetitions :]
    cpu_seconds = [wall * used / 100.0 for wall, used in zip(seconds, percent)]
    return Outcome(seconds, first_energy(printed), "Loop time of LAMMPS", cpu_seconds)


def loop_times(printed: str, plan: Plan) -> list[float]:
    """Seconds a step of the repetitions, which are the last runs.

    Raises:
        BenchmarkError: not all runs are there.
    """
    loops = [(float(seconds), int(steps)) for seconds, steps in LAMMPS_LOOP.findall(printed)]
    expected = [0, plan.warm_up] + plan.repetitions * [plan.steps]
    if [steps for _, steps in loops] != expected:
        raise BenchmarkError(f"LAMMPS ran {[steps for _, steps in loops]} steps instead of {expected}")
    return [seconds / steps for seconds, steps in loops[2:]]


def first_energy(printed: str) -> float:
    """Potential energy in eV that the input has LAMMPS print before the first step.

    Raises:
        BenchmarkError: it is not there.
    """
    found = re.search(r"^first energy (\S+)", printed, re.MULTILINE)
    if found is None:
        raise BenchmarkError(f"LAMMPS printed no energy: {last_line(printed)}")
    return float(found[1])


def located(bundle: str) -> str:
    """The bundle as a program in another folder must name it."""
    return os.path.abspath(bundle) if os.path.exists(bundle) else bundle
