# SPDX-License-Identifier: MIT
"""What a LAMMPS log says of its last run, in one line."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlffd.errors import MlffdError

_LOOP = re.compile(r"^Loop time of (\S+) on (\d+) procs for (\d+) steps with (\d+) atoms", re.MULTILINE)
_SPEED = re.compile(r"^Performance: (?:.*?, )??(\S+ (?:ns/day|timesteps/s))", re.MULTILINE)
_PAIR_STYLE = re.compile(r"^pair_style\s+(.*)", re.MULTILINE)
_STUDENT = re.compile(r"\bmliap\s+unified\s+(\S+)")
_NAMED_STUDENT = re.compile(
    r"^mlffd: (\S+): elements ", re.MULTILINE
)  # as pair_style mlffd and fixes have it
# older releases don't say which one they take: the input does
_TIME_STEP = re.compile(r"^(?:\s*Time step\s*:|timestep)\s+([\d.eE+-]+)", re.MULTILINE)
_UNITS = re.compile(r"^units\s+(\S+)", re.MULTILINE)
_PICOSECONDS = {"metal": 1.0, "real": 1e-3}  # LAMMPS' unit of time
_MEV = {"metal": 1e3, "real": 43.3641}  # LAMMPS' unit of energy


@dataclass(frozen=True)
class Run:
    """The last finished run of a log."""

    steps: int
    atoms: int
    ranks: int
    speed: str  # such as "1.043 ns/day"; empty where LAMMPS gives none
    student: str  # file of pair_style mliap or mlffd, without suffix, or name; empty where there is none
    units: str
    time_step: float  # in LAMMPS' units
    thermo: dict[str, np.ndarray]  # columns (n_rows,) by LAMMPS' names


def summarize(log_path: str | Path, expected_temperature: float | None = None) -> str:
    """Steps, atoms, ranks, ns/day, mean temperature of the second half, and energy drift where printed.

    The drift is that of ``econserve``, the energy including what thermostats and barostats took.

    Raises:
        MlffdError: no such log, no finished run in it, or its temperature is not a number or, where one is
            expected, off by more than 20 %.
    """
    run = read_log(log_path)
    facts = [f"{run.steps} steps", f"{run.atoms} atoms", f"{run.ranks} rank{'s' * (run.ranks != 1)}"]
    if run.speed:
        facts.append(run.speed)
    if "Temp" in run.thermo:
        temperature = mean_of_second_half(run.thermo["Temp"])
        if not math.isfinite(temperature):
            raise MlffdError(f"{log_path}: the temperature is not a number; the run broke down")
        if expected_temperature and abs(temperature / expected_temperature - 1.0) > 0.2:
            raise MlffdError(
                f"{log_path}: {temperature:.0f} K over the second half, not {expected_temperature:g} K: "
                "the student has lost its way"
            )
        facts.append(f"{temperature:.1f} K over the second half")
    drift = energy_drift(run)
    if drift is not None:
        facts.append(f"energy drift {drift:+.3g} meV/atom/ps")
    return f"mlffd: {run.student or 'LAMMPS'}: {', '.join(facts)}"


def read_log(log_path: str | Path) -> Run:
    """The last finished run of a log file.

    Raises:
        MlffdError: no such log, or no finished run in it.
    """
    try:
        text = Path(log_path).read_text(errors="replace")
    except OSError as error:
        raise MlffdError(f"cannot read the LAMMPS log {log_path}: {error.strerror}") from error
    loops = list(_LOOP.finditer(text))
    if not loops:
        said = re.findall(r"^ERROR.*", text, re.MULTILINE)
        raise MlffdError(f"{log_path}: no finished run{'; LAMMPS says: ' + said[-1] if said else ''}")
    loop = loops[-1]
    before, after = text[: loop.start()], text[loop.end() :]
    return Run(
        steps=int(loop[3]),
        atoms=int(loop[4]),
        ranks=int(loop[2]),
        speed=_last(_SPEED, after),
        student=_student(before),
        units=_last(_UNITS, before) or "lj",
        time_step=float(_last(_TIME_STEP, before) or "nan"),
        thermo=_thermo(before),
    )


def mean_of_second_half(values: np.ndarray) -> float:
    """Mean over the later half of the rows, at least the last one."""
    return float(np.mean(values[len(values) // 2 :]))


def energy_drift(run: Run) -> float | None:
    """Slope of the conserved energy in meV/atom/ps by least squares over the second half.

    None without the columns Step and Econserve, with fewer than three rows, or in units without a time in ps.
    """
    if run.units not in _PICOSECONDS or not {"Step", "Econserve"} <= run.thermo.keys():
        return None
    half = len(run.thermo["Step"]) // 2
    time = run.thermo["Step"][half:] * run.time_step * _PICOSECONDS[run.units]
    energy = run.thermo["Econserve"][half:] * _MEV[run.units] / run.atoms
    if len(time) < 3 or not np.isfinite(time).all() or np.ptp(time) == 0.0:
        return None
    return float(np.polyfit(time - time[0], energy - energy[0], 1)[0])


def _last(pattern: re.Pattern, text: str) -> str:
    found = pattern.findall(text)
    return found[-1] if found else ""


def _student(text: str) -> str:
    style = _last(_PAIR_STYLE, text)
    named = {"mlffd", "zero"} & set(style.split())
    file = _last(_NAMED_STUDENT, text) if named else _last(_STUDENT, style)
    return Path(file).stem


def _thermo(text: str) -> dict[str, np.ndarray]:
    """Columns of the last table of thermodynamic output in ``text``; empty if there is none in lines."""
    rows = []
    for line in reversed(text.splitlines()):
        words = line.split()
        if line.startswith("Per MPI rank memory"):  # comes right before the table: it has no column Step
            return {}
        if "Step" in words:
            rows = [row for row in rows if len(row) == len(words)]
            return dict(zip(words, np.array(rows[::-1], dtype=float).reshape(-1, len(words)).T))
        if words and all(map(_is_number, words)):
            rows.append(words)
    return {}


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
