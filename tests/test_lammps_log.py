# SPDX-License-Identifier: MIT
import numpy as np
import pytest

from mlffd.drivers.lammps_log import read_log, summarize
from mlffd.errors import MlffdError

HEAD = """LAMMPS (4 Jul 2026)
units           metal
pair_style      mliap unified ${student}.pt 0
pair_style      mliap unified folder/water.pt 0
  Time step     : 0.0005
"""
LOOP = "Loop time of 20.5 on {ranks} procs for {steps} steps with {atoms} atoms\n\n"
SPEED = "Performance: 8.640 ns/day, 2.778 hours/ns, 200.000 timesteps/s, 307.200 katom-step/s\n"
TABLE_HEAD = "Per MPI rank memory allocation (min/avg/max) = 5.0 | 5.0 | 5.0 Mbytes\n"


def log_of(tmp_path, temperatures, drift=0.0, atoms=10):
    """A log of one run with a row every 100 steps; ``drift`` in eV a row."""
    rows = "".join(f"{100 * k:10d} {t} {-5.0 + k * drift:.12g}\n" for k, t in enumerate(temperatures))
    steps = 100 * (len(temperatures) - 1)
    path = tmp_path / "log.lammps"
    path.write_text(
        HEAD + TABLE_HEAD + "   Step          Temp        Econserve\n" + rows
        + LOOP.format(ranks=2, steps=steps, atoms=atoms) + SPEED
    )  # fmt: skip
    return path


def test_one_line_with_the_facts(tmp_path):
    line = summarize(log_of(tmp_path, [0.0, 0.0, 290.0, 310.0]))
    assert "\n" not in line
    for fact in ("water:", "300 steps", "10 atoms", "2 ranks", "8.640 ns/day", "300.0 K"):
        assert fact in line


def test_drift_is_the_slope_of_the_conserved_energy(tmp_path):
    # 1e-5 eV over 10 atoms in 100 steps of 0.5 fs: 0.001 meV/atom in 0.05 ps
    assert "drift +0.02 meV/atom/ps" in summarize(log_of(tmp_path, [300.0] * 8, drift=1e-5))


def test_time_step_of_the_input(tmp_path):
    path = log_of(tmp_path, [300.0] * 8, drift=1e-5)
    command = "timestep        ${step}\ntimestep        0.00025   # ps\n"
    path.write_text(path.read_text().replace("  Time step     : 0.0005\n", command))
    assert "drift +0.04 meV/atom/ps" in summarize(path)


def test_the_last_run_counts(tmp_path):
    path = log_of(tmp_path, [100.0, 100.0])
    first = path.read_text()
    second = log_of(tmp_path, [200.0, 200.0, 200.0]).read_text().replace("folder/water", "ice")
    path.write_text(first + second)
    run = read_log(path)
    assert run.steps == 200
    assert run.student == "ice"
    np.testing.assert_array_equal(run.thermo["Temp"], 200.0)


def test_another_pair_style_has_no_student(tmp_path):
    path = log_of(tmp_path, [300.0, 300.0])
    path.write_text(path.read_text().replace(TABLE_HEAD, "pair_style lj/cut 5.0\n" + TABLE_HEAD))
    assert read_log(path).student == ""


def test_a_run_that_broke_down_is_an_error(tmp_path):
    with pytest.raises(MlffdError, match="not a number"):
        summarize(log_of(tmp_path, [300.0, 300.0, "-nan", "nan"]))


def test_missing_and_unfinished_logs_are_errors(tmp_path):
    with pytest.raises(MlffdError, match="cannot read"):
        summarize(tmp_path / "absent")
    (tmp_path / "log").write_text(HEAD + "ERROR: Lost atoms: original 10 current 9 (src/thermo.cpp:494)\n")
    with pytest.raises(MlffdError, match=r"no finished run.*Lost atoms"):
        summarize(tmp_path / "log")


def test_student_of_the_plugin(tmp_path):
    """Its file is named by pair_coeff; the line in which the pair style introduces it is easier to find."""
    path = log_of(tmp_path, [300.0, 300.0])
    plugin = "pair_style mlffd threads 2\nmlffd: folder/ice.weights: elements H O, cutoff 5 A\n"
    path.write_text(path.read_text().replace(TABLE_HEAD, plugin + TABLE_HEAD))
    assert read_log(path).student == "ice"
