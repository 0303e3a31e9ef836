# SPDX-License-Identifier: MIT
"""``mlffd lammps input``: what it writes runs as it stands, in the stock ``lmp`` and through ML-IAP."""

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.io import read, write
from lammps_process import run_lammps
from plugin_process import needs, run_plugin

from mlffd.__main__ import main
from mlffd.drivers.lammps_input import ENSEMBLES, RunPlan, write_input
from mlffd.drivers.lammps_log import read_log
from mlffd.engine import Engine
from mlffd.errors import BundleError, ConfigError, UnknownElementError

WATER = Path(__file__).parents[1] / "ipi_inputs" / "water64.xyz"


def written(folder: Path, structure=WATER, student: str = "water", name: str = "in.test", **plan) -> Path:
    output = folder / name
    write_input(structure, student, output, RunPlan(**{"steps": 20, **plan}), overwrite=True)
    return output


def first_potential_energy(folder: Path) -> float:
    return read_log(folder / "log.lammps").thermo["PotEng"][0]


@pytest.mark.slow
@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_runs_in_the_stock_lmp_with_the_engine_s_energy(ensemble, tmp_path):
    needs("local")
    finished = run_plugin(written(tmp_path, ensemble=ensemble), tmp_path)
    assert finished.status == 0, finished.output
    assert first_potential_energy(tmp_path) == pytest.approx(
        Engine("water").evaluate(read(WATER))[0].energy, rel=1e-6
    )
    frames = read(tmp_path / "dump.lammpstrj", ":")
    assert set(frames[0].symbols) == {"O", "H"}
    if ensemble == "minimize":
        assert (tmp_path / "minimized.data").exists()
    else:
        speed = read_log(tmp_path / "log.lammps").thermo["v_ns_per_day"]
        assert speed[-1] > 0.0


@pytest.mark.slow
def test_runs_through_mliap(lmp, tmp_path):
    finished = run_lammps(written(tmp_path, style="mliap"), tmp_path)
    assert finished.status == 0, finished.output
    assert first_potential_energy(tmp_path) == pytest.approx(
        Engine("water").evaluate(read(WATER))[0].energy, rel=1e-6
    )


@pytest.mark.slow
def test_molecule_and_skewed_cell_have_the_engine_s_energies(tmp_path):
    needs("local")
    skewed = Atoms("OH2", molecule("H2O").positions, cell=[[6, 0, 0], [1, 7, 0], [0.5, -1, 8]], pbc=True)
    wire = Atoms("OH2", molecule("H2O").positions, cell=[0, 0, 5.8], pbc=[False, False, True])
    for name, atoms in (("molecule", molecule("H2O")), ("skewed", skewed), ("wire", wire)):
        folder = tmp_path / name
        folder.mkdir()
        write(folder / "start.xyz", atoms, format="extxyz")
        script = written(folder, folder / "start.xyz", name=f"in {name}", ensemble="nve")
        finished = run_plugin(script, folder)
        assert finished.status == 0, finished.output
        expected = Engine("water").evaluate(atoms)[0].energy
        assert first_potential_energy(folder) == pytest.approx(expected, rel=1e-6)


def test_velocities_of_the_structure_are_kept(tmp_path):
    atoms = read(WATER)
    atoms.set_velocities(np.random.default_rng(0).normal(size=(len(atoms), 3)))
    write(tmp_path / "moving.xyz", atoms, format="extxyz", columns=["symbols", "positions", "momenta"])
    text = written(tmp_path, tmp_path / "moving.xyz").read_text()
    assert "velocity " not in text
    assert "Velocities" in (tmp_path / "in.test.data").read_text()
    assert "velocity " in written(tmp_path).read_text()


def test_conditions_are_in_the_input(tmp_path):
    text = written(
        tmp_path, ensemble="npt", temperature=350, pressure=-2.5, time_step=0.25, seed=7
    ).read_text()
    assert "temperature index 350" in text
    assert "iso -2.5 -2.5" in text
    assert "timestep        0.00025" in text
    assert "create ${temperature} 7 " in text


def test_a_bundle_beside_the_input_is_named_from_there(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "mine.mlffd").write_bytes((WATER.parents[1] / "mlffd/zoo/water.mlffd").read_bytes())
    write_input(WATER, str(tmp_path / "mine.mlffd"), tmp_path / "runs" / "in.test", RunPlan())
    assert "variable        student index ../mine.mlffd\n" in (tmp_path / "runs" / "in.test").read_text()


@pytest.mark.parametrize("wrong", [
    {"ensemble": "nph"}, {"style": "orb"}, {"temperature": 0.0}, {"time_step": float("nan")}, {"steps": 0},
    {"pressure": float("inf")}, {"seed": -1},
])  # fmt: skip
def test_wrong_plans_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong)).replace("_", ".")):
        RunPlan(**wrong)


def test_wrong_input_is_refused_and_nothing_is_written(tmp_path):
    write(tmp_path / "salt.xyz", Atoms("NaCl", [[0, 0, 0], [2.3, 0, 0]]))
    write(tmp_path / "molecule.xyz", molecule("H2O"))
    (tmp_path / "text.xyz").write_text("this is no structure\n")
    for error, structure, plan in [
        (UnknownElementError, "salt.xyz", {}),
        (ConfigError, "molecule.xyz", {"ensemble": "npt"}),
        (ConfigError, "text.xyz", {}),
        (ConfigError, "nowhere.xyz", {}),
    ]:
        with pytest.raises(error):
            written(tmp_path, tmp_path / structure, **plan)
    with pytest.raises(BundleError):
        written(tmp_path, student="nobody")
    assert list(tmp_path.glob("in.*")) == []


def test_command_line(tmp_path, capsys):
    output = tmp_path / "in.npt"
    words = ["lammps", "input", str(WATER), "--student", "water", "-o", str(output), "--ensemble", "npt"]
    assert main(words) == 0
    assert "in.npt.data" in capsys.readouterr().out
    assert main([*words, "--temperature", "-1"]) == 1
    assert capsys.readouterr().err == "mlffd: temperature must be greater than 0, not -1.0\n"
    mine = output.read_text() + "# changed by hand\n"
    output.write_text(mine)
    assert main([*words, "--time-step", "1"]) == 1
    assert "in.npt.data is there already: choose another name, or --force" in capsys.readouterr().err
    assert output.read_text() == mine
    assert main([*words, "--timestep", "1", "--force"]) == 0
    assert "timestep        0.001 " in output.read_text()
