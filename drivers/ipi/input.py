# SPDX-License-Identifier: MIT
"""A commented i-PI input, and the structure it starts from, for a student: ``mlffd ipi-input``."""

import re
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from shlex import quote
from xml.sax.saxutils import escape

import numpy as np
from ase import Atoms
from ase.io import write

from mlffd.drivers.ipi import PES_FILE
from mlffd.drivers.run_plan import Conditions, check_free, in_a_box, one_of, read_start
from mlffd.errors import ConfigError
from mlffd.files import write_atomically

ENSEMBLES = ("nvt", "pimd", "npt")
BEADS = 32  # what water takes at 300 K for its quantum kinetic energy to converge
TIME_STEP = 0.5  # fs, with hydrogen
PATH_INTEGRAL_TIME_STEP = 0.25  # fs, as is customary: beads reach stiffer parts of the potential
LATENCY_A_BEAD = 1.75e-4  # s; i-PI queues one bead after another, and a batch is what it finds in the queue
THERMOSTAT_TIME, BAROSTAT_TIME = 100.0, 500.0  # fs
LONGEST_ADDRESS = 90  # characters; a unix socket's path has at most 107


@dataclass(frozen=True)
class RunPlan(Conditions):
    """What the input is to do; its ensemble is one of ENSEMBLES, and "pimd" is "nvt" with several beads."""

    beads: int = 1
    address: str = "mlffd"  # of the socket
    in_process: bool = False  # i-PI evaluates the student itself, by the PES file, and there is no socket

    def __post_init__(self):
        one_of("ensemble", self.ensemble, ENSEMBLES)
        super().__post_init__()
        fewest = 2 if self.ensemble == "pimd" else 1
        if self.beads < fewest:
            raise ConfigError(f"beads must be at least {fewest} for {self.ensemble}, not {self.beads}")
        if not re.fullmatch(rf"[\w.-]{{1,{LONGEST_ADDRESS}}}", self.address):
            raise ConfigError(
                f"address is up to {LONGEST_ADDRESS} letters, digits, - and ., not {self.address!r}"
            )


def plan_run(
    student: str,
    ensemble: str = "nvt",
    beads: int | None = None,
    time_step: float | None = None,
    address: str | None = None,
    **others,
) -> RunPlan:
    """A plan in which what is None is as it should be for that ensemble and student."""
    beads = (BEADS if ensemble == "pimd" else 1) if beads is None else beads
    if time_step is None:
        time_step = PATH_INTEGRAL_TIME_STEP if beads > 1 else TIME_STEP
    address = address or "mlffd-" + re.sub(r"[^\w.-]", "-", Path(student).stem)
    return RunPlan(ensemble, beads=beads, time_step=time_step, address=address, **others)


@dataclass(frozen=True)
class Files:
    """Where everything is, by the names that i-PI and the user see."""

    input: Path
    structure: Path
    student: str

    def commands(self, plan: RunPlan) -> list[str]:
        """What to type to run the input, in the folder where it was written."""
        ipi = f"i-pi {quote(str(self.input))}"
        if plan.in_process:
            return [ipi]
        words = [self.student, "-t", str(self.structure), "-u", plan.address]
        return [f"{ipi} &", f"mlffd-driver {' '.join(map(quote, words))}"]

    @property
    def prefix(self) -> str:
        """What the names of i-PI's output files begin with."""
        return f"{Path(self.student).stem}-{self.input.stem}"


def write_input(
    structure: str | Path, student: str, output: str | Path, plan: RunPlan, overwrite: bool = False
) -> Files:
    """Write the input ``output`` and, beside it, the structure in the form that i-PI needs.

    The structure file has the suffix .xyz in place of the input's. None is written where ``structure`` is in
    that form already: i-PI then reads that file itself. Paths in the input are as given here, so that both
    commands run where this one does.

    Args:
        structure: any file that ASE reads; its last frame counts.
        student: a bundle's path, or the name of a shipped student.

    Raises:
        ConfigError: the structure cannot be read or has no cell that the ensemble needs, or a file is there
            already.
        BundleError, StructureError: no such student, or it does not know an element.
    """
    if Path(output).suffix == ".xyz":
        raise ConfigError(f"{output}: an input's name ends in .xml, as .xyz is for the structure beside it")
    atoms, _ = read_start(structure, student, plan.ensemble)
    text, structure, output = structure_text(atoms), Path(structure), Path(output)
    files = Files(output, structure, student)
    if not (structure.suffix == ".xyz" and structure.read_bytes() == text.encode()):
        files = Files(output, output.with_suffix(".xyz"), student)
        check_free(files.structure, structure, overwrite)
    check_free(output, structure, overwrite)
    content = input_text(atoms, files, plan)
    if files.structure != structure:
        write_atomically(files.structure, text)
    write_atomically(output, content)
    return files


def structure_text(atoms: Atoms) -> str:
    """An extxyz file of the structure as i-PI and the driver read it, with masses where it has its own."""
    atoms = in_ipi_orientation(in_a_box(atoms))
    text = StringIO()
    columns = ["symbols", "positions"] + ["masses"] * atoms.has("masses")
    write(text, atoms, format="extxyz", columns=columns)
    return text.getvalue()


def in_ipi_orientation(atoms: Atoms) -> Atoms:
    """Atoms, cell and masses, rotated: the first lattice vector along x, the second in the xy plane.

    i-PI never looks at the other half of a cell, and takes the volume of a left-handed one for negative: such
    a cell gets its third vector reversed, which spans the same lattice.
    """
    cell = atoms.cell.array.copy()
    cell[2] *= np.sign(np.linalg.det(cell))
    positions = atoms.positions
    if (np.triu(cell, 1) != 0).any() or (np.diag(cell) < 0).any():  # else to the last digit as it was
        standard, rotation = type(atoms.cell)(cell).standard_form()
        cell, positions = np.tril(standard.array), positions @ rotation.T
    masses = atoms.get_masses() if atoms.has("masses") else None
    return Atoms(atoms.numbers, positions, cell=cell, pbc=atoms.pbc, masses=masses)


def input_text(atoms: Atoms, files: Files, plan: RunPlan) -> str:
    """Text of the input."""
    stride = 10 if plan.steps >= 1000 else 1
    words = {
        **vars(plan),
        **ESTIMATORS[plan.beads > 1],
        "comment": comment(atoms, files, plan),
        "prefix": escape(files.prefix),
        "structure": escape(str(files.structure)),
        "stride": stride,
        "trajectories": trajectories(plan, stride),
        "checkpoint_stride": 100 * stride,
        "density": ", density{g/cm3}, volume{angstrom3}" if plan.ensemble == "npt" else "",
        "forcefield": forcefield(files, plan),
        "mode": "npt" if plan.ensemble == "npt" else "nvt",
        "target_pressure": TARGET_PRESSURE.format(**vars(plan)) if plan.ensemble == "npt" else "",
        "thermostat_time": THERMOSTAT_TIME,
        "barostat": BAROSTAT.format(time=BAROSTAT_TIME) if plan.ensemble == "npt" else "",
    }
    return INPUT.format(**words)


def comment(atoms: Atoms, files: Files, plan: RunPlan) -> str:
    """What stands at the top: what this is, how to run it, what it leaves, what to change."""
    pressure = f" and {plan.pressure:g} bar" if plan.ensemble == "npt" else ""
    prefix = without_double_hyphens(files.prefix)
    nuclei = f"quantum nuclei, {plan.beads} beads" if plan.beads > 1 else "classical nuclei"
    return COMMENT.format(
        title=f"{atoms.get_chemical_formula()} at {plan.temperature:g} K{pressure} with {nuclei}: "
        f"{plan.steps} steps of {plan.time_step:g} fs",
        commands="\n".join(f"  {without_double_hyphens(line)}" for line in files.commands(plan)),
        prefix=prefix,
        beads=PATH_INTEGRAL_COMMENT.format(prefix=prefix) if plan.beads > 1 else "",
        killed="" if plan.in_process else KILLED_COMMENT.format(address=plan.address.replace("--", "-?")),
    )


def without_double_hyphens(text: str) -> str:
    """The same words to a shell, in or out of quotes, for an XML comment, which must not have "--" in it."""
    return re.sub("-(?=-)", "-''", text)


def trajectories(plan: RunPlan, stride: int) -> str:
    """Elements that write positions: of the bead; or often of the centroids and rarely of all beads."""
    if plan.beads == 1:
        return POSITIONS.format(stride=10 * stride)
    return CENTROIDS.format(stride=10 * stride) + "\n" + POSITIONS.format(stride=100 * stride)


def forcefield(files: Files, plan: RunPlan) -> str:
    """The element that says where forces come from.

    Raises:
        ConfigError: a name that i-PI could not read within its braces.
    """
    batch = f"\n    <batch_size>{plan.beads}</batch_size>" if plan.beads > 1 else ""
    if not plan.in_process:
        return SOCKET.format(**vars(plan), batch=batch, latency=LATENCY_A_BEAD * plan.beads)
    names = {"student": files.student, "template": str(files.structure)}
    for what, name in names.items():
        if re.search("[,:;{}]", name):
            raise ConfigError(f"i-PI cannot read a {what} whose name has one of , : ; {{ }} in it: {name}")
    names = {what: escape(name) for what, name in names.items()}
    return DIRECT.format(**vars(plan), batch=batch, pes=escape(str(PES_FILE)), **names)


COMMENT = """\
{title}.
Where this was written:

{commands}

Leaves {prefix}.out and other files that begin so, and RESTART. `i-pi RESTART` goes on from there, and after a
crash `i-pi {prefix}.chk`, once total_steps in them is larger.
{beads}{killed}\
"""
PATH_INTEGRAL_COMMENT = """\

All beads of a step are one batch: let batch_size, beads under parameters, and nbeads be the same number.
Hydrogen takes about 32 at 300 K, more the colder it is; see whether kinetic_cv still grows with more.
Half the time step of classical nuclei is customary: beads reach stiffer parts of the potential.
latency: seconds between two looks at the queue; if too short, a step's beads come in several batches.
ASE reads {prefix}.xc.xyz without its cell, ipi.read_trajectory with it.
"""
KILLED_COMMENT = """\

If i-PI was killed and now refuses to start, remove /tmp/ipi_{address}, which it left behind.
"""
INPUT = """\
<!--
{comment}-->
<simulation verbosity="low" floatformat="%18.10e" safe_stride="{stride}">
  <total_steps>{steps}</total_steps>
  <prng><seed>{seed}</seed></prng>

  <output prefix="{prefix}">
    <properties filename="out" stride="{stride}">
      [ step, time{{picosecond}}, conserved{{electronvolt}}, temperature{{kelvin}}, {kinetic}{{electronvolt}},
        potential{{electronvolt}}, {pressure_estimator}{{bar}}{density} ]
    </properties>
{trajectories}
    <checkpoint filename="chk" stride="{checkpoint_stride}" overwrite="true"/>
  </output>

{forcefield}

  <system>
    <initialize nbeads="{beads}">
      <file mode="ase">{structure}</file>
      <velocities mode="thermal" units="kelvin">{temperature:g}</velocities>
    </initialize>
    <forces>
      <force forcefield="student"/>
    </forces>
    <ensemble>
      <temperature units="kelvin">{temperature:g}</temperature>{target_pressure}
    </ensemble>
    <motion mode="dynamics">
      <dynamics mode="{mode}">
        <timestep units="femtosecond">{time_step:g}</timestep>
        <thermostat mode="{thermostat}">
          <tau units="femtosecond">{thermostat_time:g}</tau>
        </thermostat>{barostat}
      </dynamics>
    </motion>
  </system>
</simulation>
"""
ESTIMATORS = {
    False: {"kinetic": "kinetic_md", "pressure_estimator": "pressure_md", "thermostat": "svr"},
    True: {"kinetic": "kinetic_cv", "pressure_estimator": "pressure_cv", "thermostat": "pile_g"},
}
POSITIONS = """\
    <trajectory filename="pos" stride="{stride}" format="ase">positions{{ase}}</trajectory>"""
# with format="ase" the centroids would be a column of their own, and all atoms of any reader at the origin
CENTROIDS = """\
    <trajectory filename="xc" stride="{stride}" format="xyz" cell_units="angstrom">
      x_centroid{{angstrom}}
    </trajectory>"""
SOCKET = """\
  <!-- exit_on_disconnect: without it i-PI waits for ever when the driver ends.
       parameters: from which the driver tells ns/day; change them with timestep and nbeads -->
  <ffsocket name="student" mode="unix" pbc="false">
    <address>{address}</address>{batch}
    <latency>{latency:g}</latency>
    <parameters>{{timestep: {time_step:g}, beads: {beads}}}</parameters>
    <exit_on_disconnect>true</exit_on_disconnect>
  </ffsocket>"""
DIRECT = """\
  <!-- threaded: without it i-PI waits for ever if the number of evaluations is no multiple of the batch -->
  <ffdirect name="student" pbc="false" threaded="true">
    <pes>custom</pes>
    <pes_path>{pes}</pes_path>{batch}
    <parameters>
      {{student: {student}, template: {template}, timestep: {time_step:g}, beads: {beads}}}
    </parameters>
  </ffdirect>"""
TARGET_PRESSURE = """
      <pressure units="bar">{pressure:g}</pressure>"""
BAROSTAT = """
        <barostat mode="isotropic">
          <tau units="femtosecond">{time:g}</tau>
          <thermostat mode="langevin">
            <tau units="femtosecond">{time:g}</tau>
          </thermostat>
        </barostat>"""
