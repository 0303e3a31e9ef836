# SPDX-License-Identifier: MIT
"""What an audit of frames finds, and what it must leave alone."""

from types import SimpleNamespace

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import add_adsorbate, bulk, fcc111, molecule
from ase.collections import g2
from ase.data.s22 import create_s22_system, s22
from ase.spacegroup import crystal

from mlffd.__main__ import main
from mlffd.dataset.audit import audit, check_structures
from mlffd.dataset.pack import packed_box
from mlffd.errors import AuditError
from mlffd.teachers import facts_of, load_teacher

CHGNET, XTB = facts_of("chgnet"), facts_of("gfn2-xtb")


def box(name, count, density, seed=0):
    return packed_box({name: count}, density, np.random.default_rng(seed))


def ice():
    """Cubic ice with ordered protons, a = 6.36 Å."""
    oxygens = bulk("O", "diamond", a=6.36, cubic=True)
    atoms = oxygens.copy()
    for k in range(len(oxygens)):
        distances = oxygens.get_all_distances(mic=True, vector=True)[k]
        bonds = [v for v in distances if 0 < np.linalg.norm(v) < 3]
        donors = bonds if k % 2 == 0 else []  # an ordered choice: half of the molecules give both protons
        for vector in (donors or bonds)[:2]:
            atoms += Atoms("H", [oxygens.positions[k] + 0.97 * vector / np.linalg.norm(vector)])
    return atoms


def adsorbed():
    slab = fcc111("Pt", (2, 2, 4), vacuum=8.0, periodic=True)
    add_adsorbate(slab, Atoms("CO", [[0, 0, 0], [0, 0, 1.15]]), 1.85, "ontop")
    return slab


def dry_ice():
    return crystal(["C", "O"], [(0, 0, 0), (0.1185,) * 3], spacegroup=205, cellpar=[5.62] * 3 + [90] * 3)


SOUND = {
    "rock salt": lambda: bulk("NaCl", "rocksalt", a=5.64, cubic=True),
    "cesium chloride": lambda: bulk("CsCl", "cesiumchloride", a=4.12),
    "metal": lambda: bulk("Cu"),
    "heaviest": lambda: bulk("Os"),
    "diamond": lambda: bulk("C", "diamond", a=3.57),
    "graphite": lambda: crystal(
        ["C", "C"],
        [(0, 0, 0.25), (1 / 3, 2 / 3, 0.25)],
        spacegroup=194,
        cellpar=[2.46, 2.46, 6.7, 90, 90, 120],
    ),
    "fullerene": lambda: molecule("C60"),
    "cyanogen radicals": lambda: box("CN", 4, 0.3),
    "dry ice": dry_ice,
    "ice": ice,
    "water": lambda: box("H2O", 64, 0.997),
    "hot water": lambda: rattled(box("H2O", 64, 0.997), 0.08),
    "ethanol": lambda: box("CH3CH2OH", 12, 0.7),
    "argon": lambda: box("Ar", 32, 1.4),
    "quartz": lambda: crystal(
        ["Si", "O"],
        [(0.4697, 0, 0), (0.4135, 0.2669, 0.1191)],
        spacegroup=152,
        cellpar=[4.916, 4.916, 5.405, 90, 90, 120],
    ),
    "zeolite": lambda: crystal(
        ["Si", "O"], [(0.25, 0.5, 0), (0.148, 0.148, 0.5)], spacegroup=229, cellpar=[8.83] * 3 + [90] * 3
    ),
    "calcite": lambda: crystal(
        ["Ca", "C", "O"],
        [(0, 0, 0), (0, 0, 0.25), (0.2568, 0, 0.25)],
        spacegroup=167,
        cellpar=[4.99, 4.99, 17.06, 90, 90, 120],
    ),
    "sodium hydroxide": lambda: crystal(
        ["Na", "O", "H"],
        [(0, 0.165, 0.25), (0, 0.37, 0.25), (0, 0.47, 0.25)],
        spacegroup=63,
        cellpar=[3.4, 11.4, 3.4, 90, 90, 90],
    ),
    "framework": lambda: framework(),
    "single atom": lambda: Atoms("Ar"),
}


def rattled(atoms, stdev):
    atoms.rattle(stdev, seed=1)
    return atoms


def framework():
    """Zinc imidazolates' motif: benzene rings between zinc and oxygen in a wide cell, as in MOFs."""
    ring = molecule("C6H6")
    ring.set_cell([13.0] * 3)
    ring.pbc = True
    ring.positions += 6.5 - ring.positions.mean(0)
    corners = Atoms("Zn4O4", scaled_positions=[*CORNERS, *(c + [0.15, 0, 0] for c in CORNERS)], cell=[13] * 3)
    return ring + corners


CORNERS = np.array([[0, 0, 0], [0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5]])


@pytest.mark.parametrize("name", SOUND)
def test_no_false_alarm_on(name):
    assert audit([SOUND[name]()], facts_of("7net-0")) == []


def test_no_false_alarm_on_molecules():
    """162 small molecules and radicals, and 22 dimers with nucleobases, peptide bonds, aromatic rings."""
    molecules = [molecule(name) for name in g2.names] + [create_s22_system(name) for name in s22]
    assert [finding for atoms in molecules for finding in audit([atoms])] == []


def without_hydrogens(atoms):
    return atoms[atoms.numbers != 1]


LOST = {
    "water": lambda: box("H2O", 32, 0.997),
    "water dimer": lambda: create_s22_system("Water_dimer"),
    "ethanol": lambda: box("CH3CH2OH", 12, 0.7),
    "an alcohol": lambda: molecule("CH3CH2OH"),
    "an amine": lambda: molecule("C3H9N"),
    "phenol dimer": lambda: create_s22_system("Phenol_dimer"),
}


@pytest.mark.parametrize("name", LOST)
def test_missing_hydrogens_are_an_error(name):
    """Caught: carbons judged by their number of neighbors only, which a terminal CH3 shares with CO."""
    (finding,) = audit([without_hydrogens(LOST[name]())])
    assert finding.level == "error"
    assert "hydrogens" in finding.text


def test_half_of_the_hydrogens_and_bare_carbon_are_a_warning():
    """Both exist: radicals, and carbon with edges."""
    adenine = create_s22_system("Adenine-thymine_complex_stack")
    benzene = without_hydrogens(molecule("C6H6"))
    assert [f.level for f in audit([without_hydrogens(adenine), benzene])] == ["warning", "warning"]


def levels(*structures, teacher=None, settings=None):
    return [finding.level for finding in audit(structures, teacher, settings)]


def said(*structures, teacher=None, settings=None):
    return " ".join(map(str, audit(structures, teacher, settings)))


def test_a_frame_without_a_cell_for_a_periodic_teacher():
    alone = molecule("H2O")
    assert "frame 1: no cell, and the teacher needs one" in said(bulk("Cu"), alone, teacher=CHGNET)
    assert levels(alone, teacher=XTB) == []
    boxed = molecule("H2O", vacuum=2.0)
    assert levels(boxed, teacher=CHGNET) == ["warning"]


def test_a_periodic_frame_without_lattice_vectors():
    assert "called periodic but has no cell" in said(Atoms("Cu2", [[0, 0, 0], [0, 0, 2.5]], pbc=True))
    wire = Atoms("Cu", cell=[0, 0, 2.5], pbc=[False, False, True])
    assert levels(wire) == []


def test_an_element_that_the_teacher_does_not_know():
    """Caught: what a teacher knows taken from the frames' first one."""
    frames = [molecule("CH4"), molecule("SiH4"), molecule("NaCl")]
    text = said(*frames, teacher=facts_of("ani-2x"))
    assert "frame 1: the teacher does not know Si" in text
    assert "frame 2: the teacher does not know Na" in text
    assert levels(molecule("NaCl"), teacher=facts_of("orb-v2")) == [], "it is not known what Orb knows"


def test_a_loaded_teacher_may_know_more_exactly():
    """Caught: facts that leave it open preferred to what the loaded weights say."""
    teacher = load_teacher("lj")
    assert levels(molecule("SiH4"), teacher=teacher) == []
    teacher.calculator.z_table = SimpleNamespace(zs=[1, 6])  # as mace-torch says it
    assert teacher.elements == {"H", "C"}
    assert "does not know Si" in said(molecule("SiH4"), teacher=teacher)


def test_no_structures_and_no_atoms():
    assert levels() == ["error"]
    assert "no atoms" in said(Atoms())


def test_not_finite_positions_and_no_element():
    broken = molecule("H2O")
    broken.positions[1, 2] = np.nan
    assert "not finite" in said(broken)
    assert "no element" in said(Atoms("XH", [[0, 0, 0], [0, 0, 1]]))


def test_overlapping_atoms_and_images():
    """Caught: periodic images left out."""
    text = said(Atoms("OH", [[0, 0, 0], [0, 0, 0.3]]))
    assert "O0 and H1 overlap: 0.30 Å" in text
    assert levels(Atoms("OH", [[0, 0, 0], [0, 0, 0.55]])) == ["warning"]
    assert "Cu0 and Cu0 overlap" in said(Atoms("Cu", cell=[1, 4, 4], pbc=True))
    across = Atoms("O2", [[0.1, 2, 2], [3.9, 2, 2]], cell=[4] * 3, pbc=True)
    assert levels(across) == ["error"]


def test_nanometers_taken_for_angstrom():
    water = box("H2O", 32, 0.997)
    small = Atoms(water.numbers, water.positions / 10, cell=water.cell / 10, pbc=True)
    assert "not in Å" in said(small)
    assert levels(small) == ["error"]


def test_vacuum_in_a_box_called_periodic_is_a_warning():
    lonely = molecule("H2O", vacuum=8.0)
    assert levels(lonely) == [], "not called periodic"
    lonely.pbc = True
    assert "set pbc to false" in said(lonely)
    for slab in (fcc111("Al", (2, 2, 4), vacuum=8.0, periodic=True), adsorbed()):
        (finding,) = audit([slab])
        assert finding.level == "warning"
        assert "along c" in finding.text


def test_vacuum_is_measured_between_lattice_planes():
    """A leaning vector is longer than the room it spans: 12 Å along it are 6 Å between the atoms."""
    leaning = Atoms("Cu", cell=[[2.5, 0, 0], [0, 2.5, 0], [10.4, 0, 6.0]], pbc=True)
    assert levels(leaning) == []


def test_duplicates_are_a_warning():
    """Caught: frames that differ in elements, cell or charge taken for one."""
    frame = box("H2O", 4, 0.9)
    moved, shifted, stretched, charged = (frame.copy() for _ in range(4))
    moved.positions[0] += 0.01
    shifted.positions += 0.5
    stretched.set_cell(frame.cell * 1.01)
    charged.info["charge"] = 1
    text = said(frame, moved, frame.copy(), stretched, charged, shifted)
    assert "frame 2: the same as frame 0" in text
    assert "frame 5: the same as frame 0" in text
    assert text.count("the same as") == 2


def test_charge_and_multiplicity_that_do_not_go_together():
    radical = molecule("OH")
    assert levels(radical, teacher=XTB) == ["error"]
    assert levels(radical, teacher=XTB, settings={"spin": 2}) == []
    radical.info["charge"] = -1
    assert levels(radical, teacher=XTB) == []
    assert levels(molecule("OH"), teacher=facts_of("uma-s-1p2p1"), settings={"task": "omat"}) == []


def test_what_frames_share_is_said_once():
    skeleton = without_hydrogens(box("CH3CH2OH", 4, 0.5))
    frames = [skeleton, *(rattled(skeleton.copy(), 0.01 * k) for k in (1, 2))]
    assert len(audit(frames)) == 1


def test_check_stops_on_errors_and_returns_warnings():
    slab = fcc111("Al", (2, 2, 4), vacuum=8.0, periodic=True)
    teacher = load_teacher("lj")
    assert [finding.level for finding in check_structures([slab], teacher)] == ["warning"]
    with pytest.raises(AuditError, match=r"frame 0: no atoms; .* and 2 more errors") as caught:
        check_structures([Atoms()] * 5, teacher)
    assert "\n" not in str(caught.value)


def test_the_command_lists_everything_and_fails_on_errors(tmp_path, capsys):
    ase.io.write(tmp_path / "frames.xyz", [molecule("OH"), molecule("H2O"), molecule("H2O")])
    command = ["audit", str(tmp_path / "frames.xyz")]
    assert main(command) == 0
    assert "3 frames: 0 errors, 1 warnings" in capsys.readouterr().out
    assert main([*command, "--teacher", "gfn2-xtb"]) == 1
    told = capsys.readouterr().out
    assert "error: frame 0: 9 electrons" in told
    assert "warning: frame 2: the same as frame 1" in told
    assert main([*command, "--teacher", "gfn2-xtb", "--set", "charge=1"]) == 1
    (tmp_path / "empty.xyz").write_text("")
    assert main(["audit", str(tmp_path / "empty.xyz")]) == 1
    assert "empty.xyz" in capsys.readouterr().err
