# SPDX-License-Identifier: MIT
"""What goes wrong in ``lmp`` ends it on every rank: one clear line, non-zero exit, no hang."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from lammps_process import Finished, run_lammps
from plugin_process import add_bond

from mlffd.bundle import write_bundle
from mlffd.drivers.lammps_mliap import export
from mlffd.drivers.lammps_program import write_data_file
from mlffd.students import build_student

pytestmark = pytest.mark.slow

INPUTS = Path(__file__).parents[1] / "lammps_inputs"
TIME_LIMIT = 60.0
INPUT = """
units metal
atom_style atomic
newton on
processors {ranks} 1 1
read_data {data}
pair_style mliap unified {file} 0
pair_coeff * * {elements}
variable nan equal 1e200*1e200-1e200*1e200
{before}
fix motion all nve
run {steps}
"""
BOTH = pytest.mark.parametrize("ranks", [1, 2], ids=["1rank", "2ranks"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Student files good and bad, and two clusters of twelve atoms in a long box, one for each rank."""
    folder = tmp_path_factory.mktemp("failures")
    left = 1.2 * np.indices((2, 2, 3)).reshape(3, -1).T + [5.0, 3.0, 3.0]
    atoms = Atoms("OH" * 12, np.concatenate([left, left + [20.0, 0.0, 0.0]]), cell=[40, 10, 10], pbc=True)
    write_data_file(folder / "clusters.data", atoms, ("O", "H"))
    add_bond(folder / "clusters.data", folder / "bonded.data")
    text = (folder / "clusters.data").read_text()
    (folder / "nan.data").write_text(re.sub(r"^(24 \d+) \S+", r"\1 nan", text, flags=re.MULTILINE))
    student = build_student(
        {"family": "local", "species": [1, 8], "cutoff": 4.5, "channels": 8, "hidden": [8]}
    )
    write_bundle(folder / "good.mlffd", student)
    whole = export(folder / "good.mlffd", folder / "good.pt").read_bytes()
    middle = len(whole) // 2
    (folder / "cut.pt").write_bytes(whole[:middle])
    flipped = bytes([whole[middle] ^ 1])
    (folder / "flipped.pt").write_bytes(whole[:middle] + flipped + whole[middle + 1 :])
    return folder


HYBRID = """bond_style zero
bond_coeff *
pair_style hybrid/overlay mliap unified {file} 0 zero 5.0
pair_coeff * * zero"""


def fail(
    folder, ranks, data="clusters.data", file="good.pt", elements="O H", before="", steps=0, script=INPUT
) -> Finished:
    script = script.format(ranks=ranks, data=data, file=file, elements=elements, before=before, steps=steps)
    finished = run_lammps(script, folder, ranks, TIME_LIMIT)
    assert finished.status != 0, finished.output
    return finished


def reason(finished: Finished) -> str:
    """The one line in which mlffd says why; no traceback hides it."""
    assert "Traceback" not in finished.output
    (line,) = finished.lines("mlffd: cannot")
    return line


@BOTH
def test_element_the_student_does_not_know(folder, ranks):
    finished = fail(folder, ranks, elements="O Si")
    assert "pair_coeff names Si, but the student knows only H, O" in reason(finished)
    assert not finished.lines("   Step")  # it ends before step 0


@BOTH
@pytest.mark.parametrize(
    ("setting", "data", "before", "why"),
    [
        ("units real", "clusters.data", "", "takes students in units metal, not real"),
        (
            "atom_style bond",
            "bonded.data",
            "bond_style zero\nbond_coeff *",
            "give `special_bonds lj/coul 1 1 1`",
        ),
    ],
)
def test_settings_that_would_silently_be_wrong(folder, ranks, setting, data, before, why):
    """Seen to run on, without these checks: with eV taken for kcal/mol, and without one pair of neighbors."""
    style, _ = setting.split()
    script = re.sub(f"^{style} .*$", setting, INPUT, flags=re.MULTILINE)
    finished = fail(folder, ranks, data=data, before=before, script=script)
    assert why in reason(finished)
    assert not finished.lines("   Step")


@BOTH
def test_bonds_of_the_student_within_hybrid(folder, ranks):
    """Every type is the student's, so the bonds are. Seen to run on, without one pair of neighbors."""
    script = INPUT.replace("atom_style atomic\n", "").replace(
        "units metal\n", "units metal\natom_style bond\n", 1
    )
    script = script.replace("pair_style mliap unified {file} 0", HYBRID).replace(
        "* * {elements}", "* * mliap {elements}"
    )
    finished = fail(folder, ranks, data="bonded.data", script=script)
    assert "give `special_bonds lj/coul 1 1 1`" in reason(finished)


@BOTH
def test_newton_off(folder, ranks):
    """LAMMPS refuses it itself."""
    finished = fail(folder, ranks, script=INPUT.replace("newton on", "newton off"))
    assert "newton pair on" in finished.lines("ERROR")[0]


def test_no_element_at_all(folder):
    """LAMMPS' own message; the student has said before what it knows."""
    finished = fail(folder, 2, elements="O Oxygen")
    assert finished.lines("ERROR: Incorrect args for pair coefficients")
    assert finished.lines("Last input line: pair_coeff * * O Oxygen")
    assert "elements H O" in finished.lines("mlffd: ")[0]


@BOTH
def test_damaged_file(folder, ranks):
    """One bit of one weight: torch.load and safetensors take it."""
    assert "the file is damaged: export the bundle again" in reason(fail(folder, ranks, file="flipped.pt"))


@BOTH
@pytest.mark.parametrize("file", ["absent.pt", "cut.pt"])
def test_file_that_lammps_cannot_open(folder, ranks, file):
    """Only LAMMPS speaks here: it unpickles the file itself, and prints the traceback of that."""
    finished = fail(folder, ranks, file=file)
    assert ("FileNotFoundError: " if file == "absent.pt" else "OSError: ") in finished.output
    if ranks == 1:  # of two, the one that is first ends the other, whatever that was about to say
        assert finished.lines("ERROR: Running mliappy unified module failure")
        assert finished.lines(f"Last input line: pair_style mliap unified {file} 0")


@BOTH
@pytest.mark.parametrize("bundle", ["absent.mlffd", "damaged.mlffd"])
def test_in_water_with_a_bad_bundle(folder, tmp_path, ranks, bundle):
    for name in ("in.water", "water512.data"):
        shutil.copy(INPUTS / name, tmp_path)
    (tmp_path / "damaged.mlffd").write_bytes((folder / "good.mlffd").read_bytes()[:-10])
    (tmp_path / "water.pt").write_bytes(
        (folder / "good.pt").read_bytes()
    )  # of an earlier run: not to be taken
    finished = run_lammps(tmp_path / "in.water", tmp_path, ranks, TIME_LIMIT, student=bundle)
    assert finished.status != 0
    (line,) = finished.lines("mlffd: ")
    assert bundle in line
    assert len(finished.lines("ERROR: no water.pt: the command mlffd above failed")) == 1
    assert "Traceback" not in finished.output


def test_coordinates_in_a_file_that_are_nan(folder):
    finished = fail(folder, 2, data="nan.data")
    assert "Expected floating point parameter instead of 'nan'" in finished.lines("ERROR")[0]


@BOTH
def test_one_atom_becomes_nan(folder, ranks):
    """The others stand still. Seen to run on to the end, without the pairs of that atom, and exit with 0."""
    finished = fail(folder, ranks, before="group last id 24\nvelocity last set v_nan 0 0", steps=50)
    assert "coordinates are not numbers any more" in reason(finished)


@BOTH
def test_all_atoms_become_nan(folder, ranks):
    """LAMMPS would go on to the end, and exit with 0."""
    finished = fail(folder, ranks, before="velocity all set v_nan 0 0", steps=50)
    assert "coordinates are not numbers any more" in reason(finished)


COINCIDE = "set atom 24 x 26.2 y 4.2 z 4.2"  # where atom 23 is


@BOTH
def test_result_that_is_not_finite(folder, ranks):
    """Only one of the ranks fails; the other would wait for it for ever."""
    line = reason(fail(folder, ranks, before=COINCIDE))
    assert "energies or forces are not finite" in line
    assert ("(rank 1 of 2)" in line) == (ranks == 2)


def test_one_rank_fails_without_mpi4py(folder, monkeypatch, tmp_path):
    (tmp_path / "mpi4py.py").write_text("raise ImportError('not installed')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "(rank 1 of 2)" in reason(fail(folder, 2, before=COINCIDE))
