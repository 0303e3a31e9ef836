# SPDX-License-Identifier: MIT
"""Adapters of packages that are not installed here, against stand-ins with the packages' signatures."""

import fake_packages
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from mlffd.errors import TeacherError
from mlffd.teachers import load_teacher

CELL = {"cell": [9.0] * 3, "pbc": True}


@pytest.fixture
def load(monkeypatch):
    """load_teacher with a package of fake_packages in place."""

    def loader(package, spec, adapter=None, **settings):
        modules = getattr(fake_packages, package)(**settings)
        fake_packages.install(monkeypatch, adapter or package, modules)
        return load_teacher(spec, device="cuda:1")

    return loader


def test_orb_of_the_older_kind(load):
    """Caught: an adapter handed to a calculator that has no such argument."""
    teacher = load("orb_older", "orb-v2", "orb")
    built = teacher.calculator.built
    assert built["device"] == built["loaded"]["device"] == "cuda:1"
    assert (built["loaded"]["precision"], built["loaded"]["compile"]) == ("float32-highest", False)
    assert teacher.version == "orb-models 9.9"
    assert teacher.facts.conservative is False


def test_orb_of_the_newer_kind(load):
    """Caught: the pair (model, adapter) taken for a model."""
    teacher = load("orb_newer", "orb-v2", "orb")
    assert teacher.calculator.built["adapter"] == "adapter"
    assert teacher.calculator.built["loaded"]["model"] == "orb_v2"


def test_orb_says_which_models_the_installed_one_has(load):
    with pytest.raises(TeacherError, match=r"installed here has orb-v2"):
        load("orb_newer", "orb-v3-direct-inf-omat", "orb")


def test_orb_omol_gets_charge_and_multiplicity(load):
    spec = {"name": "orb-v3-conservative-omol", "charge": -1}
    teacher = load("orb_older", spec, "orb")
    hydroxide = molecule("OH")
    hydroxide.calc = teacher.calculator
    assert hydroxide.get_potential_energy() == 2 - 1
    assert teacher.calculator.calculator.infos == [{"charge": -1, "spin": 1}]
    assert teacher.settings["charge"] == -1
    assert not teacher.stress


@pytest.mark.parametrize(
    ("name", "builder", "model"),
    [
        ("mace-mp-medium-mpa-0", "mace_mp", "medium-mpa-0"),
        ("mace-mp-matpes-r2scan-0", "mace_mp", "mace-matpes-r2scan-0"),
        ("mace-off-small", "mace_off", "small"),
        ("mace-omol", "mace_omol", "extra_large"),
    ],
)
def test_mace_models(load, capsys, name, builder, model):
    """Caught: what a package prints while it loads among the JSON of a command."""
    teacher = load("mace", name)
    calculator = getattr(teacher.calculator, "calculator", teacher.calculator)
    built = calculator.built
    assert (built["builder"], built["model"], built["device"]) == (builder, model, "cuda:1")
    assert built["default_dtype"] == teacher.settings["dtype"] == "float64"
    assert not capsys.readouterr().out


def test_mace_head_and_dispersion_reach_the_package(load):
    teacher = load("mace", {"name": "mace-mp-mh-1", "head": "omol", "dispersion": True})
    assert teacher.calculator.built["kwargs"] == {"head": "omol"}
    assert teacher.calculator.built["dispersion"] is True
    assert teacher.settings == {"dtype": "float64", "head": "omol", "dispersion": True}


def test_mace_licences_are_told_apart(load):
    assert load("mace", "mace-mp-small").licence == "MIT"
    assert "no commercial use" in load("mace", "mace-off-small").licence
    assert "no commercial use" in load("mace", "mace-mp-small-omat-0").licence


@pytest.mark.parametrize("name", ["7net-omni", "7net-omni-i8"])
def test_sevennet_omni_needs_one_of_its_heads(load, name):
    assert load("sevenn", {"name": name, "modal": "mpa"}, "sevennet").calculator.built["modal"] == "mpa"
    with pytest.raises(TeacherError, match="matpes_r2scan"):
        load("sevenn", name, "sevennet")


def test_weights_from_a_file(load, tmp_path, monkeypatch):
    """Caught: weights looked for only where one is, not beside the config; another file of the same name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.pth").write_bytes(b"weights")
    spec = {"name": "7net-omni", "modal": "mpa", "weights": "own.pth"}
    teacher = load("sevenn", spec, "sevennet")
    assert teacher.calculator.built["model"] == str(tmp_path / "own.pth")
    assert teacher.settings["weights"] == "own.pth"
    (tmp_path / "own.pth").write_bytes(b"other weights")
    assert load("sevenn", spec, "sevennet").settings["weights_sha256"] != teacher.settings["weights_sha256"]
    with pytest.raises(TeacherError, match="no weights file none"):
        load("sevenn", {**spec, "weights": "none.pth"}, "sevennet")


def test_uma_needs_a_task_and_computes_in_full_precision(load):
    teacher = load("fairchem", {"name": "uma-s-1p2p1", "task": "omat"})
    unit = teacher.calculator.built["predict_unit"]
    assert (unit["model_name"], unit["device"]) == ("uma-s-1p2p1", "cuda")
    assert unit["inference_settings"] == teacher.settings["inference"] == "high-precision"
    older = load("fairchem", {"name": "uma-s-1p1", "task": "omat"}, presets=("default", "turbo"))
    assert older.calculator.built["predict_unit"]["inference_settings"] == "default"
    with pytest.raises(TeacherError, match='"omol" \\(molecules\\)'):
        load("fairchem", "uma-s-1p2p1")


def test_uma_omol_gets_the_charge_of_each_frame(load):
    """Caught: the answer for the first frame given for the second, which only differs in its charge."""
    teacher = load("fairchem", {"name": "uma-s-1p2p1", "task": "omol"})
    ammonia = molecule("NH3")
    ammonia.calc = teacher.calculator
    assert ammonia.get_potential_energy() == 4
    ammonia.info.update(charge=1, spin=2)
    assert ammonia.get_potential_energy() == 5
    assert teacher.calculator.calculator.infos[-1] == {"charge": 1, "spin": 2}


@pytest.mark.parametrize(("charge", "spin"), [(0, 1), (1, 2), (1, 0), (-20, 1)])
def test_an_impossible_multiplicity_is_refused(load, charge, spin):
    """OH has 9 electrons, so it is a doublet, and its ions have no doublet."""
    teacher = load("fairchem", {"name": "uma-s-1p2p1", "task": "omol", "charge": charge, "spin": spin})
    radical = molecule("OH")
    radical.calc = teacher.calculator
    with pytest.raises(TeacherError, match="electrons"):
        radical.get_potential_energy()


def test_chgnet_takes_no_atom_without_neighbors(load):
    teacher = load("chgnet", {"name": "chgnet", "model": "r2scan"})
    assert teacher.calculator.built["model"] == "r2scan"
    assert teacher.calculator.built["on_isolated_atoms"] == "error"
    assert teacher.periodic == "required"
    with pytest.raises(TeacherError, match="r2SCAN"):
        load("chgnet", {"name": "chgnet", "model": "0.1"})


def test_mattersim_by_size(load):
    """Caught: arguments that its calculator would hand on to its network."""
    assert load("mattersim", "mattersim-5m").calculator.built["potential"] == "MatterSim-v1.0.0-5M.pth"


def test_pet_mad(load, tmp_path, monkeypatch):
    teacher = load("upet", {"name": "pet-mad", "model_version": "1.6.0"})
    assert (teacher.calculator.built["model"], teacher.calculator.built["version"]) == ("pet-mad-s", "1.6.0")
    assert teacher.settings == {"model_version": "1.6.0"}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pet-mad-s-v1.6.0.ckpt").write_bytes(b"")
    local = load("upet", {"name": "pet-mad", "weights": "pet-mad-s-v1.6.0.ckpt"})
    assert local.calculator.built["checkpoint_path"].endswith("pet-mad-s-v1.6.0.ckpt")


def test_aimnet2(load):
    teacher = load("aimnet", {"name": "aimnet2-nse", "spin": 2, "member": 3})
    built = teacher.calculator.calculator.built
    assert built["base_calc"]["model"] == "aimnet2-nse"
    assert (built["base_calc"]["ensemble_member"], built["base_calc"]["device"]) == (3, "cuda:1")
    assert (built["charge"], built["mult"]) == (0, 2)


def test_ani_in_double_precision_and_without_leftovers(load):
    """Caught: the stress of one frame given for the next, as torchani keeps its results."""
    teacher = load("torchani", "ani-1ccx", "ani")
    assert str(teacher.calculator.calculator.built["dtype"]) == "torch.float64"
    assert teacher.calculator.calculator.built["periodic_table_index"] is True
    for atoms in (Atoms("H2", [[0, 0, 0], [0, 0, 1]], **CELL), Atoms("H", **CELL)):
        atoms.calc = teacher.calculator
        atoms.get_forces()
        matrix = len(atoms) * np.arange(9.0).reshape(3, 3)
        np.testing.assert_array_equal(atoms.get_stress(), matrix.flat[[0, 4, 8, 5, 2, 1]])
    assert len(teacher.calculator.calculator.infos) == 2, "one evaluation a frame"
    isolated = molecule("H2")
    isolated.calc = teacher.calculator
    isolated.get_forces()
    assert "stress" not in teacher.calculator.results


def test_ani_2x_by_fennol_from_a_file(load, tmp_path, monkeypatch):
    """Caught: a pickled model handed to fennol, which would run it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ani2x.fnx").write_bytes(b"")
    teacher = load("fennol", {"name": "ani-2x", "weights": "ani2x.fnx"}, "ani")
    assert teacher.calculator.built["model"] == str(tmp_path / "ani2x.fnx")
    assert teacher.calculator.built["use_float64"] is True
    with pytest.raises(TeacherError, match=r"must be a \.fnx file"):
        load("fennol", {"name": "ani-2x", "weights": "ani2x.pkl"}, "ani")


@pytest.mark.parametrize(("name", "method"), [("gfn1-xtb", "GFN1-xTB"), ("gfn2-xtb", "GFN2-xTB")])
def test_xtb(load, name, method):
    """Caught: the charges of the frame before as the first guess, which changes the last digits."""
    teacher = load("tblite", {"name": name, "accuracy": 0.1})
    inner = teacher.calculator.calculator
    assert (inner.told["method"], inner.told["accuracy"], inner.told["cache_api"]) == (method, 0.1, False)
    ion = molecule("OH")
    ion.info["charge"] = -1
    ion.calc = teacher.calculator
    ion.get_forces()
    assert (inner.told["charge"], inner.told["multiplicity"]) == (-1, 1)


def test_one_evaluation_gives_all_of_a_label(load):
    """Caught: forces and stress asked for one after the other, each for the price of both."""
    teacher = load("aimnet", "aimnet2")
    crystal = bulk("MgO", "rocksalt", a=4.2)
    crystal.calc = teacher.calculator
    crystal.get_forces(), crystal.get_potential_energy(), crystal.get_stress()
    assert len(teacher.calculator.calculator.infos) == 1


def test_a_download_that_fails_says_where_it_comes_from(monkeypatch):
    def refuse(**kwargs):
        raise RuntimeError("Model download failed\nand no local model found")

    modules = {"mace.calculators.foundations_models": {"mace_off": refuse}}
    fake_packages.install(monkeypatch, "mace", modules)
    with pytest.raises(TeacherError, match='GitHub, or give them by weights = "FILE"') as caught:
        load_teacher("mace-off-small")
    assert "\n" not in str(caught.value)
    with pytest.raises(TeacherError, match="known are mace-off-small, "):
        load_teacher("mace-off-smal")
