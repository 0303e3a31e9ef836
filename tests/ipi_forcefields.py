# SPDX-License-Identifier: MIT
"""i-PI inputs with any forcefields and outputs, around a small crystal of argon and students of it."""

from ase import Atoms
from ase.io import read, write
from ipi_evaluators import argon

from mlffd.bundle import write_bundle
from mlffd.drivers.ipi import PES_FILE
from mlffd.students import build_student

INPUT = """
<simulation verbosity="low" floatformat="%20.12e">
  <total_steps>{steps}</total_steps>
  <prng><seed>4</seed></prng>
  <output prefix="out">
    <trajectory filename="pos" stride="1" format="ase">positions{{ase}}</trajectory>
    {outputs}
  </output>
  {forcefields}
  <system>
    <initialize nbeads="{n_beads}">
      <file mode="ase">start.xyz</file>
      <velocities mode="thermal" units="kelvin">80</velocities>
    </initialize>
    <forces>{forces}</forces>
    <ensemble><temperature units="kelvin">80</temperature></ensemble>
    <motion mode="dynamics">
      <dynamics mode="nve"><timestep units="femtosecond">2</timestep></dynamics>
    </motion>
  </system>
</simulation>
"""


def start_argon(runs, forcefields: str, forces: str, outputs: str = "", steps: int = 10, n_beads: int = 1):
    """i-PI on start.xyz, with elements of an input given as text; the process."""
    write(runs.folder / "start.xyz", argon(), format="extxyz")
    return runs.ipi(
        INPUT.format(steps=steps, n_beads=n_beads, forcefields=forcefields, forces=forces, outputs=outputs)
    )


def ffdirect(
    name: str, student: str, batch_size: int = 1, threaded: bool = True, pes=PES_FILE, more: str = ""
) -> str:
    """The element for a student within i-PI's process; ``more`` parameters as ", name: value"."""
    parameters = f"student: {student}, template: start.xyz, dtype: float64, max_batch_atoms: 64{more}"
    return f"""
  <ffdirect name="{name}" threaded="{threaded}">
    <pes>custom</pes>
    <pes_path>{pes}</pes_path>
    <parameters>{{{parameters}}}</parameters>
    <batch_size>{batch_size}</batch_size>
  </ffdirect>"""


def ffsocket(name: str, address: str, batch_size: int = 1) -> str:
    """The element for a driver on a unix socket."""
    return f"""
  <ffsocket name="{name}" mode="unix" pbc="false">
    <address>{address}</address>
    <batch_size>{batch_size}</batch_size>
    <latency>1e-3</latency>
    <exit_on_disconnect>true</exit_on_disconnect>
  </ffsocket>"""


def write_student(path, epsilon: float = 0.0104, cutoff: float = 6.0, species: tuple[int, ...] = (18,)):
    """A bundle of a Lennard-Jones student (eV, Å), by default of argon; returns its path."""
    pairs = dict(epsilon=[epsilon] * len(species), sigma=[3.4] * len(species))
    architecture = dict(family="lennard_jones", species=list(species), cutoff=cutoff, **pairs)
    write_bundle(path, build_student(architecture), {})
    return path


def beads(runs, n_beads: int) -> list[list[Atoms]]:
    """All frames of every bead."""
    return [read(runs.folder / f"out.pos_{k}.extxyz", ":", format="extxyz") for k in range(n_beads)]
