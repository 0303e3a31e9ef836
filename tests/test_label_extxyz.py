# SPDX-License-Identifier: MIT
"""Labels to extended XYZ and back, and labels of others: nothing lost, nothing believed unseen."""

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator

from mlffd.__main__ import main
from mlffd.dataset.describe import describe
from mlffd.dataset.extxyz import export_labels
from mlffd.dataset.import_labels import Origin, import_labels
from mlffd.dataset.store import LabelStore, frames_hash, read_labels
from mlffd.errors import ConfigError, LabelError
from mlffd.units import GPA

TEACHER = {"name": "lj", "version": "1", "licence": 'odd "one"\\', "settings": {"rc": 5.0, "files": ["a b"]}}
ANYBODY = Origin(name="anybody", licence="CC-BY-4.0")
AWKWARD_INFO = {
    "plain": 1.5, "count": 3, "yes": True, "word": "ambient", "two words": "a", "sentence": 'say "ä\\b" {x}',
    "like_a_number": "1e5", "like_a_truth": "T", "lines": "a\nb", "list": [1.0], "nine": [0.5] * 9,
    "empty": "", "deep": [[1], [2, 3]],
    "energy": -3.0, "stress": "none", "virial": 2, "pbc": "F", "huge": 10**30,
    "nothing": float("inf"), "_JSON": "_JSON {", "mlffd": 7, "tiny": 5e-324, "equal": "a=b",
}  # fmt: skip


def written(path, hessian=True):
    """A molecule, a skewed box with a stress that is not symmetric, an atom in a wire, a failed frame."""
    box = Atoms("H3", positions=np.arange(9).reshape(3, 3), cell=[[9, 0, 0], [1, 9, 0], [0, 2, 9]], pbc=True)
    box.info = dict(AWKWARD_INFO)
    wire = Atoms("He", positions=[[1, 2, 1 / 3]], cell=[0, 0, 4], pbc=[False, False, True])
    frames = [molecule("H2O"), box, molecule("CH4"), wire]
    store = LabelStore(path)
    store.begin({"teacher": TEACHER, "frames": frames_hash(frames), "n_frames": len(frames)})
    for number, atoms in enumerate(frames):
        rng = np.random.default_rng(number)
        stress = rng.normal(size=(3, 3)) if atoms.pbc.all() else np.full((3, 3), np.nan)
        forces = rng.normal(size=(len(atoms), 3))
        rows = ([2, 1][: number + 1], rng.normal(size=(number + 1, 3 * len(atoms)))) if number < 2 else None
        if number == 2:
            store.fail(2, "too hot\nand too dense")
        else:
            store.add(number, atoms, rng.normal(), forces, stress, rows if hessian else None)
    store.finish()
    return path


@pytest.mark.parametrize("hessian", [False, True])
def test_there_and_back_is_the_same_file(tmp_path, hessian):
    """Seen to catch 8 digits, one triangle of a stress, info that ASE reads otherwise."""
    path = written(tmp_path / "labels.h5", hessian)
    export_labels(path, tmp_path / "labels.xyz")
    assert import_labels(tmp_path / "labels.xyz", tmp_path / "again.h5", Origin()) == read_labels(path).hash
    assert (tmp_path / "again.h5").read_bytes() == path.read_bytes()


def test_other_programs_read_what_is_exported(tmp_path):
    path = written(tmp_path / "labels.h5")
    export_labels(path, tmp_path / "labels.xyz")
    labels = read_labels(path)
    for k, atoms in enumerate(ase.io.read(tmp_path / "labels.xyz", ":")):
        assert atoms.get_potential_energy() == labels.energies[k]
        np.testing.assert_array_equal(atoms.get_forces(), labels.forces[k])
        assert atoms == labels.structures[k]
    assert ase.io.read(tmp_path / "labels.xyz", 1).info["word"] == "ambient"


def test_some_of_the_frames_exported_become_labels_of_the_same_teacher(tmp_path, capsys):
    export_labels(written(tmp_path / "labels.h5"), tmp_path / "labels.xyz")
    text = (tmp_path / "labels.xyz").read_text().splitlines(keepends=True)
    (tmp_path / "rest.xyz").write_text("".join(text[5:]))  # without the molecule
    import_labels(tmp_path / "rest.xyz", tmp_path / "rest.h5", Origin())
    rest, labels = read_labels(tmp_path / "rest.h5"), read_labels(tmp_path / "labels.h5")
    assert "not all as it was exported" in capsys.readouterr().err
    assert rest.metadata["teacher"] == TEACHER
    np.testing.assert_array_equal(rest.energies, labels.energies[1:])
    np.testing.assert_array_equal(rest.hessian_rows[0][1], labels.hessian_rows[1][1])


def test_a_label_edited_in_an_exported_file_is_noticed(tmp_path, capsys):
    export_labels(written(tmp_path / "labels.h5"), tmp_path / "labels.xyz")
    text = (tmp_path / "labels.xyz").read_text()
    (tmp_path / "labels.xyz").write_text(text.replace("energy=0.", "energy=1.", 1))
    changed = import_labels(tmp_path / "labels.xyz", tmp_path / "changed.h5", Origin())
    assert changed != read_labels(tmp_path / "labels.h5").hash
    assert "not all as it was exported" in capsys.readouterr().err


def test_nothing_is_written_over(tmp_path):
    path = written(tmp_path / "labels.h5")
    (tmp_path / "taken.xyz").write_text("mine")
    with pytest.raises(LabelError, match="there already"):
        export_labels(path, tmp_path / "taken.xyz")
    with pytest.raises(LabelError, match="there already"):
        import_labels(tmp_path / "taken.xyz", path, ANYBODY)


def argon(n_frames=8):
    """Labelled crystals of several densities, as somebody else would keep them."""
    frames = []
    for number in range(n_frames):
        atoms = bulk("Ar", cubic=True, a=5.0 + 0.1 * number)
        atoms.rattle(0.05, seed=number)
        atoms.calc = LennardJones(epsilon=0.0104, sigma=3.4, rc=8.0)
        energy, forces, stress = (
            atoms.get_potential_energy(),
            atoms.get_forces(),
            atoms.get_stress(voigt=False),
        )
        atoms.calc = None
        frames.append((atoms, energy, forces, stress))
    return frames


def stranger(path, change=lambda number, label: label, n_frames=8):
    """A file with results as ASE writes them; `change` may spoil the dict of a frame, None leaves one out."""
    frames = []
    for number, (atoms, energy, forces, stress) in enumerate(argon(n_frames)):
        found = change(number, {"energy": energy, "forces": forces, "stress": stress})
        virial = found.pop("virial", None)
        if virial is not None:
            atoms.info["virial"] = virial
        kept = {key: value for key, value in found.items() if value is not None}
        atoms.calc = SinglePointCalculator(atoms, **kept)
        frames.append(atoms)
    ase.io.write(path, frames, format="extxyz")
    return path


def test_labels_of_others_are_taken_as_they_are(tmp_path):
    path = stranger(tmp_path / "theirs.xyz")
    import_labels(path, tmp_path / "theirs.h5", ANYBODY)
    labels = read_labels(tmp_path / "theirs.h5")
    teacher = {"name": "anybody", "version": "not stated", "licence": "CC-BY-4.0", "settings": {}}
    assert labels.metadata["teacher"] == teacher
    for k, (_, energy, forces, stress) in enumerate(argon()):
        assert labels.energies[k] == pytest.approx(energy, abs=1e-7)
        np.testing.assert_allclose(labels.forces[k], forces, atol=1e-7)
        np.testing.assert_allclose(labels.stresses[k], stress, atol=1e-7)


def test_names_of_their_own_are_found_when_told(tmp_path):
    frames = []
    for atoms, energy, forces, stress in argon():
        atoms.info |= {"E_dft": energy, "W": -stress * atoms.get_volume(), "source": "me"}
        atoms.new_array("F_dft", forces)
        frames.append(atoms)
    ase.io.write(tmp_path / "theirs.xyz", frames)
    with pytest.raises(LabelError, match=r"frame 0 \(and 7 more\): it has no energy; it has E_dft, F_dft, W"):
        import_labels(tmp_path / "theirs.xyz", tmp_path / "theirs.h5", ANYBODY)
    told = Origin(name="dft", licence="mine", energy="E_dft", forces="F_dft", virial="W")
    import_labels(tmp_path / "theirs.xyz", tmp_path / "theirs.h5", told)
    labels = read_labels(tmp_path / "theirs.h5")
    np.testing.assert_allclose(labels.stresses, [one[3] for one in argon()], atol=1e-6)
    assert labels.structures[0].info == {"source": "me"}


def test_who_made_them_must_be_said(tmp_path):
    path = stranger(tmp_path / "theirs.xyz")
    with pytest.raises(ConfigError, match="--teacher-name and --licence"):
        import_labels(path, tmp_path / "theirs.h5", Origin())


def with_virial(factor):
    """The virial is right, the stress is in another unit or sign."""

    def change(number, label):
        volume = (5.0 + 0.1 * number) ** 3
        return {**label, "virial": -label["stress"] * volume, "stress": label["stress"] * factor}

    return change


@pytest.mark.parametrize(
    ("factor", "unit", "sign"),
    [(-1, "eV/A3", "compression"), (1 / GPA, "GPa", "tension"), (-10 / GPA, "kbar", "compression")],
)
def test_a_stress_that_contradicts_its_virial_is_refused_with_what_to_say(tmp_path, factor, unit, sign):
    """Seen to catch a check that compares sizes only."""
    path = stranger(tmp_path / "theirs.xyz", with_virial(factor))
    with pytest.raises(LabelError, match=f"say --stress-unit {unit} --stress-sign {sign}"):
        import_labels(path, tmp_path / "theirs.h5", ANYBODY)
    told = Origin(name="a", licence="b", stress_unit=unit, stress_sign=sign)
    import_labels(path, tmp_path / "theirs.h5", told)
    labels = read_labels(tmp_path / "theirs.h5")
    np.testing.assert_allclose(labels.stresses, [one[3] for one in argon()], atol=2e-7)


def test_a_stress_that_no_unit_reconciles_with_its_virial_is_refused(tmp_path):
    def turned(number, label):
        return {**label, "virial": label["stress"] * (number + 1)}

    with pytest.raises(LabelError, match="disagree in every unit and sign"):
        import_labels(stranger(tmp_path / "t.xyz", turned), tmp_path / "t.h5", ANYBODY)


def scaled(factor):
    return lambda number, label: {**label, "stress": label["stress"] * factor}


def test_pressure_that_grows_with_volume_is_refused(tmp_path):
    path = stranger(tmp_path / "theirs.xyz", scaled(-1))
    with pytest.raises(LabelError, match=r"pressure grows with the volume.*: say --stress-sign compression"):
        import_labels(path, tmp_path / "theirs.h5", ANYBODY)
    import_labels(path, tmp_path / "t.h5", Origin(name="a", licence="b", stress_sign="compression"))
    np.testing.assert_allclose(
        read_labels(tmp_path / "t.h5").stresses, [one[3] for one in argon()], atol=1e-7
    )


def test_stresses_in_gpa_are_refused(tmp_path):
    path = stranger(tmp_path / "theirs.xyz", scaled(1 / GPA))
    with pytest.raises(LabelError, match="say --stress-unit GPa"):
        import_labels(path, tmp_path / "theirs.h5", ANYBODY)
    import_labels(path, tmp_path / "t.h5", Origin(name="a", licence="b", stress_unit="GPa"))
    np.testing.assert_allclose(
        read_labels(tmp_path / "t.h5").stresses, [one[3] for one in argon()], atol=1e-7
    )


def hydrogen(path, factor):
    """Boxes of one volume, with springs for bonds; their stresses times `factor`."""
    frames = []
    for number in range(8):
        atoms = Atoms("H2", positions=[[0, 0, 0], [0.5, 0.4, 0.3]], cell=[4, 4, 4], pbc=True) * (2, 2, 1)
        atoms.rattle(0.05, seed=number)
        forces, virial = np.zeros((len(atoms), 3)), np.zeros((3, 3))
        for k in range(0, len(atoms), 2):
            bond = atoms.get_distance(k, k + 1, mic=True, vector=True)
            pull = 30 * (np.linalg.norm(bond) - 0.7) * bond / np.linalg.norm(bond)
            forces[k : k + 2] = pull, -pull
            virial -= np.outer(bond, pull)
        stress = -virial / atoms.get_volume() * factor
        atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=forces, stress=stress)
        frames.append(atoms)
    ase.io.write(path, frames)
    return path


@pytest.mark.parametrize(
    ("factor", "reason"), [(-1, "the stresses go against the forces"), (0.1 / GPA, "what the forces would")]
)
def test_forces_tell_the_sign_and_the_unit_of_stresses_at_one_volume(tmp_path, factor, reason):
    """Seen to catch a nearest neighbor looked for in the wrong direction."""
    import_labels(hydrogen(tmp_path / "right.xyz", 1), tmp_path / "right.h5", ANYBODY)
    with pytest.raises(LabelError, match=reason):
        import_labels(hydrogen(tmp_path / "wrong.xyz", factor), tmp_path / "wrong.h5", ANYBODY)


def without(what):
    return lambda number, label: {**label, what: None if number == 3 else label[what]}


def spoiled(what):
    def change(number, label):
        if number == 3:
            label[what] = np.array(label[what])
            label[what].flat[0] = np.nan
        return label

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without("energy"), "it has no energy"),
        (without("forces"), "it has no forces"),
        (spoiled("energy"), "not finite"),
        (spoiled("forces"), "not finite"),
        (spoiled("stress"), "its stress is not finite"),
    ],
)
def test_bad_frames_are_named_and_recorded_only_when_told(tmp_path, change, reason):
    path = stranger(tmp_path / "theirs.xyz", change)
    with pytest.raises(LabelError, match=f"frame 3: .*{reason}.*--skip-bad") as caught:
        import_labels(path, tmp_path / "theirs.h5", ANYBODY)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "theirs.h5").exists()
    import_labels(path, tmp_path / "theirs.h5", Origin(name="a", licence="b", skip_bad=True))
    labels = read_labels(tmp_path / "theirs.h5")
    assert len(labels) == 7
    assert reason in labels.metadata["failed"]["3"]


def test_a_stress_without_a_cell_is_named(tmp_path):
    lines = [
        "1",
        'Properties=species:S:1:pos:R:3:forces:R:3 energy=1 stress="1 0 0 0 1 0 0 0 1"',
        "H 0 0 0 0 0 0",
    ]
    (tmp_path / "t.xyz").write_text("\n".join(lines) + "\n")
    with pytest.raises(LabelError, match="it has a stress, but no cell"):
        import_labels(tmp_path / "t.xyz", tmp_path / "t.h5", ANYBODY)


@pytest.mark.parametrize(
    ("content", "reason"),
    [("", "is empty"), ("1\n\nXx 0 0 0\n", "no element is called 'Xx'"), ("2\n\nH 0 0 0\n", "cannot read")],
)
def test_files_that_hold_no_structures_are_one_clear_line(tmp_path, content, reason):
    (tmp_path / "t.xyz").write_text(content)
    with pytest.raises(LabelError, match=reason) as caught:
        import_labels(tmp_path / "t.xyz", tmp_path / "t.h5", ANYBODY)
    assert "\n" not in str(caught.value)


def test_where_energy_and_free_energy_differ_the_one_whose_gradient_the_forces_are_is_taken(tmp_path):
    atoms = bulk("Ar", cubic=True)
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0, free_energy=-1.5, forces=np.zeros((4, 3)))
    ase.io.write(tmp_path / "t.xyz", atoms)
    import_labels(tmp_path / "t.xyz", tmp_path / "t.h5", ANYBODY)
    assert read_labels(tmp_path / "t.h5").energies == [-1.5]


def test_the_command_line_does_the_same(tmp_path, capsys):
    path, exported = str(written(tmp_path / "labels.h5")), str(tmp_path / "labels.xyz")
    assert main(["labels", "export", path, "-o", exported]) == 0
    assert main(["labels", "import", exported, "-o", str(tmp_path / "again.h5")]) == 0
    assert main(["labels", "show", str(tmp_path / "again.h5")]) == 0
    assert capsys.readouterr().out.count(read_labels(path).hash) == 2
    theirs = str(stranger(tmp_path / "theirs.xyz", scaled(-1 / GPA)))
    importing = ["labels", "import", theirs, "-o", str(tmp_path / "theirs.h5"), "--teacher-name", "dft"]
    assert main(importing) == 1
    assert "--licence" in capsys.readouterr().err
    importing += ["--licence", "CC0", "--set", "functional=PBE", "--stress-unit", "GPa"]
    assert main([*importing, "--stress-sign", "compression"]) == 0
    labels = read_labels(tmp_path / "theirs.h5")
    assert labels.metadata["teacher"]["settings"] == {"functional": "PBE"}
    np.testing.assert_allclose(labels.stresses, [one[3] for one in argon()], atol=1e-7)


def test_show_says_what_is_inside(tmp_path):
    text = "\n".join(describe(written(tmp_path / "labels.h5")))
    assert "3 labelled frames" in text
    assert "lj, 1, licence: odd" in text
    assert "failed: 1 of 4 frames\n  frame 2: too hot" in text
    assert "Hessian rows: 3" in text
    assert read_labels(tmp_path / "labels.h5").hash in text


def test_show_says_how_far_an_unfinished_file_is(tmp_path):
    store = LabelStore(tmp_path / "labels.h5")
    store.begin({"teacher": TEACHER, "frames": "", "n_frames": 3})
    store.add(0, Atoms("H"), 1.0, np.zeros((1, 3)), np.full((3, 3), np.nan))
    store.fail(1, "no")
    assert "1 frames labelled, 1 failed so far" in describe(store.path)[0]
