# SPDX-License-Identifier: MIT
"""The config that a new distillation starts from, written for a structure and a teacher."""

import json
from collections.abc import Iterator
from pathlib import Path
from shlex import quote

import numpy as np
from ase import Atoms

from mlffd.dataset.audit import VACUUM, check_structures, gaps
from mlffd.dataset.frames import read_frames
from mlffd.dataset.pack import density
from mlffd.distill.config import read_plan
from mlffd.errors import ConfigError
from mlffd.files import write_atomically
from mlffd.teachers import load_teacher

CUTOFF = 5.5  # Å
MOST_NAMED = 4  # formulas
LIGHT, MIDDLE = 3.0, 20.0  # amu; hydrogen's vibrations want 0.5 fs, those of carbon or oxygen 1 fs
TEMPLATE = """\
# From {teacher} to a student for {formula}:
#   mlffd distill {file}
# Whatever stops it, the same command goes on where it was; with --status it says how far it is.
# A misspelt key is an error. What is left out has a default; those below are a start, not a recipe.
name = {name} # the student is {directory}/NAME.mlffd, its report lies beside it
directory = {directory_toml}
workers = 2 # processes that label, each on one thread

[teacher] # see `mlffd teachers`
{teacher_table}

[student]
family = "local" # the fast one; "painn" passes messages: more accurate, several times as slow
cutoff = {cutoff:g} # Å

[train] # of the final student
epochs = 40

[draft] # what changes in it for students that only look for frames
epochs = 10

# Round 0: the first frames, by the teacher's own dynamics. {cost}
[[rounds]]
seed = 0
calculator = {calculator}

[[rounds.stages]]
name = "start"
start = {structure}
temperatures = {temperatures} # K
{densities}time_step = {time_step} # fs
equilibration = 20
interval = 10
frames = 6
rattle_fraction = 0.5 # every other frame is displaced at random, so that stretched and bent bonds are seen
rattle_stdev = [0.02, 0.08] # Å

# Then students run, and the teacher labels what they meet that is new to them, until no run blows up and what
# is new is known to within the bar on forces, or the labels are spent.
[loop]
max_labels = 400 # in all, round 0 included
max_rounds = 12
start = {structure}
temperatures = {temperatures} # K; what the student shall stand, and hotter
{densities}replicas = 4
steps = 2000
interval = 50
time_step = {time_step} # fs
frames = 30 # labelled in a round

# Held-out frames: runs of their own by the final student, never trained on.
[test]
seed = 1
calculator = "student"

[[test.stages]]
name = "held out"
start = {structure}
temperatures = [{temperature:g}]
time_step = {time_step} # fs
equilibration = 1000
interval = 100
frames = 10
replicas = 3

# The report: teacher and student run at the same conditions.
[fidelity]
temperature = {temperature:g} # K
time_step = {time_step} # fs
replicas = 2
teacher_steps = 2000 # the teacher is evaluated at every fourth of them
student_steps = 20000

[bars] # written before training; the student is judged by these
force_mae = 30 # meV/Å on held-out frames
energy_mae = 1 # meV/atom
rdf_peak_position = 0.03 # Å, any pair of elements
rdf_peak_height = 0.1 # relative
energy_drift = 1 # meV/atom/ns
cut_trajectories = 0
cut_trajectories_hot = 0
"""


def write_config(path: Path, structure: Path, teacher: dict, temperature: float = 300.0) -> list[str]:
    """Write a commented config for ``mlffd distill``; returns what looks odd about the structures.

    Args:
        structure: any file ASE reads; its frames decide on time step and densities.
        teacher: table for ``load_teacher``.
        temperature: K.

    Raises:
        ConfigError: there is a file already, or the temperature cannot be meant.
        LabelError, TeacherError: no such structure or teacher.
        AuditError: structures that the teacher cannot do, or that are certainly wrong.
    """
    if path.exists():
        raise ConfigError(f"{path} is there already: name another file, or move it away")
    if not 0.0 < temperature < np.inf:
        raise ConfigError(f"--temperature must be above zero K, not {temperature:g}")
    loaded = load_teacher(teacher, directory=path.parent)
    frames = read_frames(structure)
    odd = [*map(str, check_structures(frames, loaded)), *small_cells(frames)]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, config_text(path, structure, frames, teacher, temperature))
    read_plan(path)
    return odd


def small_cells(frames: list[Atoms]) -> Iterator[str]:
    """A warning of cells in which an atom sees its own images."""
    for number, atoms in enumerate(frames):
        heights = 1.0 / np.linalg.norm(atoms.cell.reciprocal(), axis=1) if atoms.pbc.any() else np.zeros(3)
        if atoms.pbc.any() and heights[atoms.pbc].min() < 2.0 * CUTOFF:
            yield (
                f"warning: frame {number}: the cell is {heights[atoms.pbc].min():.1f} Å thick, so that atoms "
                f"see their own images: repeat it to {2.0 * CUTOFF:g} Å or more"
            )
            return


def config_text(path: Path, structure: Path, frames: list[Atoms], teacher: dict, temperature: float) -> str:
    """The template filled in."""
    beside = structure.resolve().is_relative_to(path.parent.resolve())
    start = structure.resolve().relative_to(path.parent.resolve()) if beside else structure.resolve()
    return TEMPLATE.format(
        file=quote(str(path)),
        name=toml(path.stem),
        teacher=teacher["name"],
        formula=formulas(frames),
        cutoff=CUTOFF,
        directory=f"{path.stem}-runs",
        directory_toml=toml(f"{path.stem}-runs"),
        teacher_table="\n".join(f"{key} = {toml(value)}" for key, value in teacher.items()),
        calculator=toml(teacher),
        structure=toml(str(start)),
        temperature=temperature,
        temperatures=toml([temperature, 1.5 * temperature]),
        densities=densities(frames),
        time_step=min(map(time_step, frames)),
        cost="Where that is too slow, let a cheaper calculator run: the teacher labels the frames.",
    )


def time_step(atoms: Atoms) -> float:
    """fs, by the lightest atom."""
    lightest = atoms.get_masses().min()
    return 0.5 if lightest < LIGHT else 1.0 if lightest < MIDDLE else 2.0


def densities(frames: list[Atoms]) -> str:
    """A line with densities around those of bulk structures; none where there is vacuum, which has none."""
    if not all(atoms.pbc.all() and max(gaps(atoms)) < VACUUM for atoms in frames):
        return ""
    found = [float(density(atoms)) for atoms in frames]
    around = [0.95 * min(found), float(np.mean(found)), 1.05 * max(found)]
    return f"densities = {toml([round(value, 4) for value in around])} # g/cm3\n"


def formulas(frames: list[Atoms]) -> str:
    """What the frames consist of, for people."""
    found = list(dict.fromkeys(atoms.get_chemical_formula(empirical=True) for atoms in frames))
    return ", ".join(found[:MOST_NAMED]) + (" and others" if len(found) > MOST_NAMED else "")


def toml(value) -> str:
    """A value as TOML; what fits into JSON, and tables on one line."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(entry)}" for key, entry in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)
