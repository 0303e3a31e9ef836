# SPDX-License-Identifier: MIT
"""The label file: what goes in comes out, in any order; damage is noticed and named."""

import h5py
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule

from mlffd.dataset.store import LabelStore, frames_hash, join_labels, read_labels
from mlffd.errors import LabelError

TEACHER = {"name": "lj", "version": "1", "licence": "none", "settings": {"rc": 5.0}}


def frames():
    """A molecule, a periodic box, a lone atom: ragged on purpose."""
    box = Atoms("H3", positions=np.arange(9).reshape(3, 3), cell=[[9, 0, 0], [1, 9, 0], [0, 2, 9]], pbc=True)
    box.info = {"temperature": np.float64(300.0), "stage": "ambient", "calculator": object()}
    return [molecule("H2O"), box, Atoms("He", positions=[[1, 2, 3]], pbc=[True, False, True])]


def label_of(number, atoms):
    rng = np.random.default_rng(number)
    stress = rng.normal(size=(3, 3)) if atoms.pbc.all() else np.full((3, 3), np.nan)
    return rng.normal(), rng.normal(size=(len(atoms), 3)), stress


def begun(path, teacher=TEACHER):
    store = LabelStore(path)
    store.begin({"teacher": teacher, "frames": frames_hash(frames()), "n_frames": len(frames())})
    return store


def written(path, order=(0, 1, 2)):
    store = begun(path)
    for number in order:
        store.add(number, frames()[number], *label_of(number, frames()[number]))
    store.finish()
    return path


def test_what_goes_in_comes_out(tmp_path):
    labels = read_labels(written(tmp_path / "labels.h5"))
    assert len(labels) == 3
    for number, (atoms, found) in enumerate(zip(frames(), labels.structures)):
        energy, forces, stress = label_of(number, atoms)
        assert labels.energies[number] == energy
        np.testing.assert_array_equal(labels.forces[number], forces)
        np.testing.assert_array_equal(labels.stresses[number], stress)
        assert found == atoms  # species, positions, cell, pbc
        assert found.calc is None
    assert labels.structures[1].info == {"temperature": 300.0, "stage": "ambient"}
    assert labels.metadata["teacher"] == TEACHER
    assert not (tmp_path / "labels.h5.parts").exists()


def test_the_order_of_labelling_leaves_no_trace(tmp_path):
    one, other = written(tmp_path / "1.h5"), written(tmp_path / "2.h5", order=(2, 0, 1))
    assert read_labels(one).hash == read_labels(other).hash
    assert one.read_bytes() == other.read_bytes()


def test_the_hash_tells_labels_apart(tmp_path):
    store = begun(tmp_path / "labels.h5")
    for number, atoms in enumerate(frames()):
        energy, forces, stress = label_of(number, atoms)
        store.add(number, atoms, energy + 1e-12 * (number == 1), forces, stress)
    assert store.finish() != read_labels(written(tmp_path / "other.h5")).hash


def test_failed_frames_are_kept_with_their_reason(tmp_path):
    store = begun(tmp_path / "labels.h5")
    for number in (0, 2):
        store.add(number, frames()[number], *label_of(number, frames()[number]))
    store.fail(1, "no parameters for H")
    store.finish()
    labels = read_labels(tmp_path / "labels.h5")
    assert labels.metadata["failed"] == {"1": "no parameters for H"}
    assert [len(a) for a in labels.structures] == [3, 1]


def test_nothing_labelled_is_an_error_that_tells_why(tmp_path):
    store = begun(tmp_path / "labels.h5")
    store.fail(0, "no parameters for H")
    with pytest.raises(LabelError, match="no parameters for H"):
        store.finish()


def test_half_a_part_left_by_a_kill_is_no_label(tmp_path):
    store = begun(tmp_path / "labels.h5")
    store.add(0, frames()[0], *label_of(0, frames()[0]))
    (store.parts / "0000001.tmp").write_bytes(b"half")
    assert begun(tmp_path / "labels.h5").done() == {0}


def test_a_damaged_part_is_removed_and_labelled_again(tmp_path):
    """A power failure may leave one."""
    store = begun(tmp_path / "labels.h5")
    for number, atoms in enumerate(frames()):
        store.add(number, atoms, *label_of(number, atoms))
    (store.parts / "0000001.npz").write_bytes(b"")
    with pytest.raises(LabelError, match=r"0000001\.npz was damaged .* run again"):
        store.finish()
    again = begun(tmp_path / "labels.h5")
    assert again.done() == {0, 2}
    again.add(1, frames()[1], *label_of(1, frames()[1]))
    assert again.finish() == read_labels(written(tmp_path / "other.h5")).hash


def test_thousands_of_failures_fit_in(tmp_path):
    store = LabelStore(tmp_path / "labels.h5")
    store.begin({"teacher": TEACHER, "frames": "", "n_frames": 2000})
    store.add(0, frames()[0], *label_of(0, frames()[0]))
    for number in range(1, 2000):
        store.fail(number, "a reason as long as reasons of teachers usually are")
    store.finish()
    assert len(read_labels(tmp_path / "labels.h5").metadata["failed"]) == 1999


@pytest.mark.parametrize("at", ["parts", "file"])
def test_going_on_with_another_teacher_or_other_frames_is_refused(tmp_path, at):
    path = tmp_path / "labels.h5"
    if at == "parts":
        begun(path).add(0, frames()[0], *label_of(0, frames()[0]))
    else:
        written(path)
    with pytest.raises(LabelError, match="another teacher: version '1', now '2'"):
        begun(path, {**TEACHER, "version": "2"})
    moved = frames()
    moved[0].positions[0, 0] += 1e-8
    with pytest.raises(LabelError, match="other frames"):
        LabelStore(path).begin({"teacher": TEACHER, "frames": frames_hash(moved), "n_frames": 3})


@pytest.mark.parametrize("where", ["energy", "forces", "stress"])
def test_labels_that_are_not_finite_are_refused(tmp_path, where):
    energy, forces, stress = label_of(1, frames()[1])
    if where == "energy":
        energy = np.nan
    else:
        {"forces": forces, "stress": stress}[where][1, 2] = np.inf
    with pytest.raises(LabelError, match="not finite"):
        begun(tmp_path / "labels.h5").add(1, frames()[1], energy, forces, stress)


def test_shapes_are_checked(tmp_path):
    energy, forces, stress = label_of(1, frames()[1])
    with pytest.raises(LabelError, match="shape"):
        begun(tmp_path / "labels.h5").add(1, frames()[1], energy, forces[:2], stress)


def truncated(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def emptied(path):
    path.write_bytes(b"")


def text(path):
    path.write_text("3\nLattice=...\n")


def foreign(path):
    path.unlink()
    with h5py.File(path, "w") as file:
        file["energy"] = [1.0]


def one_number_changed(path):
    with h5py.File(path, "r+") as file:
        file["forces"][0, 0] += 1e-6


def nan_smuggled_in(path):
    with h5py.File(path, "r+") as file:
        file["energy"][1] = np.nan


def a_field_lost(path):
    with h5py.File(path, "r+") as file:
        del file["positions"]


def from_the_future(path):
    with h5py.File(path, "r+") as file:
        file.attrs["format_number"] = 99


@pytest.mark.parametrize(
    "damage",
    [truncated, emptied, text, foreign, one_number_changed, nan_smuggled_in, a_field_lost, from_the_future],
)
def test_damage_is_one_clear_line(tmp_path, damage):
    path = written(tmp_path / "labels.h5")
    damage(path)
    with pytest.raises(LabelError, match=r"labels\.h5") as caught:
        read_labels(path)
    assert "\n" not in str(caught.value)


def test_missing_and_unfinished_files_say_so(tmp_path):
    with pytest.raises(LabelError, match="no label file"):
        read_labels(tmp_path / "labels.h5")
    begun(tmp_path / "labels.h5")
    with pytest.raises(LabelError, match="not finished"):
        read_labels(tmp_path / "labels.h5")
    with pytest.raises(LabelError, match="a folder"):
        read_labels(tmp_path)


def test_another_charge_is_another_frame():
    """Labels of a frame whose charge was corrected are not those that are there."""
    neutral = frames()[0]
    charged, same = neutral.copy(), neutral.copy()
    charged.info["charge"], same.info["note"] = 1, "neutral"
    assert frames_hash([charged]) != frames_hash([neutral]) == frames_hash([same])


def test_sets_of_one_teacher_join(tmp_path):
    labels = read_labels(written(tmp_path / "labels.h5"))
    both = join_labels([labels, labels])
    assert len(both) == len(both.energies) == len(both.forces) == len(both.stresses) == 6
    assert both.hash != labels.hash
    assert both.hashes == [both.hash, labels.hash, labels.hash]
    changed = {**labels.metadata, "teacher": {**TEACHER, "name": "7net-0"}}
    other = type(labels)(labels.structures, labels.energies, labels.forces, labels.stresses, changed, "")
    with pytest.raises(LabelError, match="another teacher: name 'lj', now '7net-0'"):
        join_labels([labels, other])
