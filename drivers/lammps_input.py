# SPDX-License-Identifier: MIT
"""A commented LAMMPS input and data file from a structure and a student: ``mlffd lammps input``."""

import os
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from ase import Atoms
from ase.io.lammpsdata import write_lammps_data

from mlffd.drivers.run_plan import Conditions, check_free, in_a_box, one_of, read_start
from mlffd.files import write_atomically
from mlffd.students.student import Student

ENSEMBLES = ("nve", "nvt", "npt", "minimize")
STYLES = ("mlffd", "mliap")
THERMOSTAT_TIME, BAROSTAT_TIME = 0.1, 1.0  # ps


@dataclass(frozen=True)
class RunPlan(Conditions):
    """What the input is to do; its ensemble is one of ENSEMBLES."""

    style: str = "mlffd"  # one of STYLES: the plugin, or ML-IAP

    def __post_init__(self):
        one_of("ensemble", self.ensemble, ENSEMBLES)
        one_of("style", self.style, STYLES)
        super().__post_init__()


def write_input(
    structure: str | Path, student: str, output: str | Path, plan: RunPlan, overwrite: bool = False
) -> Path:
    """Write the input ``output`` and, beside it, the data file ``output``.data; returns the latter's path.

    Args:
        structure: any file that ASE reads; its last frame counts.
        student: a bundle's path, or the name of a shipped student.
        overwrite: write over files that are there, but never over the structure.

    Raises:
        ConfigError: the structure cannot be read, or has no cell that the ensemble needs; a file is there.
        BundleError, StructureError: no such student, or it does not know an element.
    """
    atoms, bundle = read_start(structure, student, plan.ensemble)
    output = Path(output)
    data = output.with_name(output.name + ".data")
    for path in (data, output):
        check_free(path, Path(structure), overwrite)
    atoms = in_a_box(atoms)
    write_atomically(data, data_file(atoms))
    where = os.path.relpath(student, output.parent) if Path(student).is_file() else student
    text = input_text(atoms, bundle.student, where, Path(structure).name, data.name, plan)
    write_atomically(output, text)
    return data


def elements_of(atoms: Atoms) -> list[str]:
    """Chemical symbols in the order of atom types: that of their first atoms."""
    return list(dict.fromkeys(atoms.symbols))


def data_file(atoms: Atoms) -> str:
    """Text of the LAMMPS data file; atom types are those of ``elements_of``."""
    text = StringIO()
    write_lammps_data(
        text, atoms, specorder=elements_of(atoms), masses=True, units="metal", atom_style="atomic",
        velocities=bool(atoms.get_velocities().any()),
    )  # fmt: skip
    return text.getvalue()


def input_text(
    atoms: Atoms, student: Student, student_name: str, structure: str, data: str, plan: RunPlan
) -> str:
    """Text of the input."""
    elements = " ".join(elements_of(atoms))
    files, commands, pair = PAIR_STYLES[plan.style]
    conditions = TITLES[plan.ensemble].format(**vars(plan))
    return HEAD.format(
        title=f"{atoms.get_chemical_formula()} from {structure}: {conditions}",
        student=student_name,
        files=files,
        commands=commands,
        boundary=" ".join("p" if periodic else "m" for periodic in atoms.pbc),
        data=f'"{data}"' if " " in data else data,
        types=", ".join(f"{k} is {symbol}" for k, symbol in enumerate(elements_of(atoms), 1)),
        pair=pair.format(elements=elements),
        cutoff=student.cutoff,
    ) + motion(atoms, plan, elements)


def motion(atoms: Atoms, plan: RunPlan, elements: str) -> str:
    """The part of the input that moves atoms."""
    if plan.ensemble == "minimize":
        return DUMP.format(elements=elements) + MINIMIZE
    times = dict(thermostat=THERMOSTAT_TIME, barostat=BAROSTAT_TIME)
    return DUMP.format(elements=elements) + DYNAMICS.format(
        **vars(plan),
        time_step_ps=1e-3 * plan.time_step,
        velocities=velocities(atoms, plan),
        fix=FIXES[plan.ensemble].format(**vars(plan), **times),
    )


def velocities(atoms: Atoms, plan: RunPlan) -> str:
    """The command that draws velocities, or a comment where the structure has its own."""
    if atoms.get_velocities().any():
        return "# velocities are those of the structure"
    return f"velocity        all create ${{temperature}} {plan.seed} mom yes rot no dist gaussian"


TITLES = {
    "nve": "constant energy, from {temperature:g} K",
    "nvt": "{temperature:g} K",
    "npt": "{temperature:g} K and {pressure:g} bar",
    "minimize": "to the nearest minimum",
}
PAIR_STYLES = {
    "mlffd": (
        "student.weights mlffdplugin.so",
        "shell           mlffd lammps export ${student} -o student.weights\n"
        "shell           mlffd lammps plugin -o mlffdplugin.so",
        "plugin          load ./mlffdplugin.so\n"
        "pair_style      mlffd               # precision float64, threads 4 may follow\n"
        "pair_coeff      * * student.weights {elements}",
    ),
    "mliap": (
        "student.pt",
        "shell           mlffd lammps export ${student} -o student.pt",
        "pair_style      mliap unified student.pt 0\npair_coeff      * * {elements}",
    ),
}
HEAD = """\
# {title}
#
#   lmp -in THIS_FILE                    one rank
#   mpiexec -n 4 lmp -in THIS_FILE       four
#   mlffd lammps summary log.lammps      the run in one line, afterwards

variable        student index {student}

# what the pair style below reads
shell           rm -f {files}
{commands}

units           metal               # eV, Angstrom, ps, bar
atom_style      atomic
boundary        {boundary}
newton          on
read_data       {data}    # type {types}

{pair}

neighbor        1.0 bin             # a skin of 1 Angstrom on the cutoff of {cutoff:g}
neigh_modify    every 1 delay 0 check yes
"""
DUMP = """
# ase.io.read("dump.lammpstrj", ":") reads it, elements, cell and forces included
dump            trajectory all custom 100 dump.lammpstrj id element x y z fx fy fz
dump_modify     trajectory element {elements} sort id
"""
MINIMIZE = """
min_style       cg
thermo          10
thermo_style    custom step pe fmax press
minimize        0.0 1.0e-3 1000 10000    # until no force exceeds 1 meV/Angstrom, at most 1000 times
write_data      minimized.data nocoeff
"""
DYNAMICS = """
variable        temperature index {temperature:g}
variable        steps index {steps}
{velocities}
timestep        {time_step_ps:g}              # ps
fix             motion all {fix}

variable        ns_per_day equal spcpu*dt*86.4    # from steps a second, the time step in ps
thermo          100
thermo_style    custom step time temp pe etotal econserve press density v_ns_per_day

run             ${{steps}}
write_restart   final.restart
"""
FIXES = {
    "nve": "nve",
    "nvt": "nvt temp ${{temperature}} ${{temperature}} {thermostat:g}",
    "npt": "npt temp ${{temperature}} ${{temperature}} {thermostat:g} &\n"
    "                iso {pressure:g} {pressure:g} {barostat:g}",
}
