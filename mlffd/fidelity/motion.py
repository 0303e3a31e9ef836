# SPDX-License-Identifier: MIT
"""How trajectories went: cuts, drift, temperatures."""

from collections.abc import Sequence

import numpy as np

from mlffd.fidelity.beside import NO_ERROR
from mlffd.fidelity.config import FidelityConfig
from mlffd.fidelity.lines import line, table
from mlffd.fidelity.runs import Runs
from mlffd.fidelity.statistics import mean_with_error, slope_with_error
from mlffd.fidelity.trajectories import Recording

GROUPS = 5  # of frames of one replica, which are taken for independent of each other
MEV = 1e-3


def cut_line(name: str, runs: Runs, replicas: Sequence[Recording], temperature: float, what: str) -> dict:
    """How many replicas blew up, those that did so while they equilibrated included."""
    lost = [replica for replica in runs.own_equilibration if replica.cut]
    cut = [*lost, *(replica for replica in replicas if replica.cut)]
    steps = {"student": runs.settings.student_steps, "hot": runs.settings.hot_steps}[what]
    length = 1e-3 * steps * runs.settings.time_step
    note = f"of {len(lost) + len(replicas)} replicas, {length:.3g} ps each at {temperature:g} K"
    if lost:
        note += f"; {len(lost)} while they equilibrated"
    return line(name, len(cut), None, note + (f"; first: {cut[0].cut}" if cut else ""))


def drift_line(replicas: Sequence[Recording], time_step: float) -> dict:
    """Drift of the total energy at constant energy: one slope through all replicas that came through.

    Those that did not leave the line in doubt: survivors say too much good of a student.
    """
    whole = [replica for replica in replicas if replica.cut is None and len(replica) > 2]
    if not whole:
        sane = any(replica.cut is None for replica in replicas)
        why = "less than three frames: more constant_energy_steps" if sane else "every replica blew up"
        return line("energy_drift", None, None, f"{why}, at constant energy")
    times = 1e-6 * time_step * whole[0].steps  # ns
    slope, error = slope_with_error(times, [r.conserved / len(r.start) / MEV for r in whole])
    spread = np.mean([(r.conserved / len(r.start)).std() for r in whole]) / MEV
    temperature = np.mean([r.temperatures.mean() for r in whole])
    note = f"{len(whole)} of {len(replicas)} replicas, {1e3 * times[-1]:.3g} ps each, {temperature:.0f} K, "
    note += f"float32; fluctuations {spread:.2g} meV/atom"
    if not abs(error) < 1.0:  # a run of some ps says little of a ns
        note += f"; too short for less than {abs(error):.2g} meV/atom/ns"
    doubt = "" if np.isfinite(error) else NO_ERROR
    n_cut = sum(replica.cut is not None for replica in replicas)
    if n_cut:
        doubt = f"{n_cut} blew up"
    return line("energy_drift", slope, error, note, doubt)


def trajectory_table(title: str, replicas: Sequence[Recording], settings: FidelityConfig) -> dict:
    """Length, temperature and drift of the conserved energy of each replica."""
    columns = ["replica", "atoms", "ps", "K", "±", "conserved energy, meV/atom/ps", "±", "cut"]
    rows = []
    for k, replica in enumerate(replicas):
        times = 1e-3 * settings.time_step * replica.steps
        temperature = mean_with_error([replica.temperatures]) if len(replica) else (None, None)
        drift = (
            slope_with_error(times, [replica.conserved / len(replica.start) / MEV])
            if len(replica) > 2
            else (None,) * 2
        )
        length = times[-1] if len(times) else 0.0
        rows.append([k, len(replica.start), length, *temperature, *drift, replica.cut or ""])
    return table(title, columns, rows)


def block_groups(replicas: Sequence[Recording]) -> list[str]:
    """A group for each frame of all replicas: those near in time belong together."""
    return [f"{n}.{GROUPS * k // len(r)}" for n, r in enumerate(replicas) for k in range(len(r))]
