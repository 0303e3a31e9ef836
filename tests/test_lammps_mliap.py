# SPDX-License-Identifier: MIT
"""The file LAMMPS loads and the object it talks to, without LAMMPS: a stand-in for its ``data``."""

import pickle
import pickletools
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from ase import Atoms

from mlffd.bundle import write_bundle
from mlffd.drivers import lammps_mliap, lammps_ranks
from mlffd.drivers.lammps_mliap import MliapStudent, export, load_mliap
from mlffd.drivers.lammps_ranks import EndsAllRanks, threads_per_rank
from mlffd.engine import Engine
from mlffd.errors import BundleError, ConfigError, MlffdError, NonFinitePositionsError, UnknownElementError
from mlffd.neighbors import neighbor_list
from mlffd.students import build_student

LOCAL = {"family": "local", "species": [1, 8], "cutoff": 4.0, "n_radial": 4, "channels": 8, "hidden": [8]}


class StandIn:
    """LAMMPS' ``data`` for one rank: like the real one it refuses to show arrays without elements."""

    def __init__(self, elems, pair_i=(), pair_j=(), rij=(), nlocal=None):
        self.nlocal = len(elems) if nlocal is None else nlocal
        self._iatoms = np.arange(self.nlocal, dtype=np.int32)
        self.nlistatoms, self.ntotal, self.npairs = len(self._iatoms), len(elems), len(pair_i)
        self.natomneigh = self.nlistatoms
        self._elems = np.array(elems, dtype=np.int32)
        self._pair_i, self._pair_j = np.array(pair_i, np.int32), np.array(pair_j, np.int32)
        self._rij = np.array(rij, dtype=np.float64)
        self.energy, self.eatoms = None, None
        self.f = np.zeros((len(elems), 3))

    def __getattr__(self, name):
        view = self.__dict__.get(f"_{'pair_j' if name == 'jatoms' else name}")
        if view is None:
            raise AttributeError(name)
        if len(view) == 0:
            raise ValueError("Invalid shape in axis 0: 0.")
        return view

    def update_pair_forces(self, fij):
        assert fij.dtype == np.float64
        assert fij.flags["C_CONTIGUOUS"]
        np.add.at(self.f, self._pair_i, fij)
        np.add.at(self.f, self._pair_j, -fij)


@pytest.fixture(scope="module")
def local_engine():
    torch.manual_seed(3)
    return Engine(build_student(LOCAL), dtype="float64")


@pytest.fixture
def local_bundle(tmp_path):
    torch.manual_seed(3)
    return write_bundle(tmp_path / "some.mlffd", build_student(LOCAL)) and tmp_path / "some.mlffd"


def molecule():
    return Atoms("OHHOH", [[0, 0, 0], [0.96, 0, 0.1], [-0.3, 0.9, 0], [2.7, 0.3, 0.2], [2.9, 1.2, 0.1]])


def stand_in_for(atoms, engine, elements=("H", "O")):
    (i, j), rij, _ = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, engine.cutoff)
    return StandIn([elements.index(symbol) for symbol in atoms.symbols], i, j, rij)


def test_pair_forces_and_energies_are_the_engines(local_engine):
    atoms = molecule()
    expected = local_engine.evaluate([atoms])[0]
    data = stand_in_for(atoms, local_engine)
    MliapStudent(local_engine).compute_forces(data)
    assert data.energy == pytest.approx(expected.energy, abs=1e-12)
    np.testing.assert_allclose(data.eatoms, expected.atomic_energies, atol=1e-12)
    np.testing.assert_allclose(data.f, expected.forces, atol=1e-12)


def test_pairs_in_any_order(local_engine):
    atoms = molecule()
    data = stand_in_for(atoms, local_engine)
    order = np.random.default_rng(0).permutation(data.npairs)
    data._pair_i, data._pair_j, data._rij = data._pair_i[order], data._pair_j[order], data._rij[order]
    MliapStudent(local_engine).compute_forces(data)
    np.testing.assert_allclose(data.f, local_engine.evaluate([atoms])[0].forces, atol=1e-12)


def test_atoms_left_out_of_the_list_have_no_energy(local_engine):
    """Under pair_style hybrid the list skips atoms; eatoms follow the list, not the atoms."""
    atoms = molecule()
    data = stand_in_for(atoms, local_engine)
    energies = local_engine.evaluate([atoms])[0].atomic_energies
    data._iatoms, data.nlistatoms = np.array([3, 1], dtype=np.int32), 2
    MliapStudent(local_engine).compute_forces(data)
    np.testing.assert_allclose(data.eatoms, energies[[3, 1]], atol=1e-12)
    assert data.energy == pytest.approx(energies[[3, 1]].sum())


def test_isolated_atoms_keep_their_energy(local_engine):
    expected = local_engine.evaluate([Atoms("O"), Atoms("H")])
    data = StandIn([1, 0])
    MliapStudent(local_engine).compute_forces(data)
    np.testing.assert_allclose(data.eatoms, [p.energy for p in expected], atol=1e-12)
    assert data.energy == pytest.approx(sum(p.energy for p in expected))


@pytest.mark.parametrize("n_ghosts", [0, 3])
def test_a_rank_without_atoms_has_no_energy(local_engine, n_ghosts):
    data = StandIn([0] * n_ghosts, nlocal=0)
    MliapStudent(local_engine).compute_forces(data)
    assert data.energy == 0.0


def test_coordinates_that_became_nan_are_noticed(local_engine):
    """LAMMPS then has no pair within the cutoff, and builds no neighbor list that would make it look."""
    student = MliapStudent(local_engine)
    random = np.random.default_rng(0)
    dense = Atoms("H12", 1.1 * np.indices((2, 2, 3)).reshape(3, -1).T + random.normal(0, 0.05, (12, 3)))
    student.compute_forces(stand_in_for(dense, local_engine))
    student.compute_forces(StandIn([0] * 5))  # other atoms: another run, or most were deleted
    student.compute_forces(stand_in_for(dense, local_engine))
    with pytest.raises(NonFinitePositionsError, match="132 pairs"):
        student.compute_forces(StandIn([0] * 12))


def test_a_molecule_may_fall_apart(local_engine):
    student = MliapStudent(local_engine)
    student.compute_forces(stand_in_for(molecule(), local_engine))
    student.compute_forces(StandIn([1, 0, 0, 1, 0]))


@pytest.fixture(scope="module")
def painn_engine():
    torch.manual_seed(4)
    return Engine(
        build_student({"family": "painn", "species": [1, 8], "cutoff": 4.0, "features": 8, "layers": 2}),
        dtype="float64",
    )


def test_messages_without_ghosts_need_no_lammps(painn_engine):
    atoms = molecule()
    data = stand_in_for(atoms, painn_engine)
    MliapStudent(painn_engine).compute_forces(data)
    np.testing.assert_allclose(data.f, painn_engine.evaluate([atoms])[0].forces, atol=1e-12)


@pytest.mark.parametrize(
    ("visible", "why"), [(True, "`python hand_over invoke`"), (False, "without a shared library")]
)
def test_messages_to_ghosts_need_lammps(painn_engine, monkeypatch, visible, why):
    """Refused before any number; the line says what to do."""
    monkeypatch.setattr("mlffd.drivers.lammps_messages.library_is_visible", lambda: visible)
    data = StandIn([0, 0, 1], [0, 1], [2, 2], [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], nlocal=2)
    with pytest.raises(ConfigError, match=f"2 layers.*{why}.*comm_modify cutoff 10"):
        MliapStudent(painn_engine).compute_forces(data)
    assert data.energy is None


def test_neighbors_of_ghosts_are_left_out_where_no_message_comes_from_them(local_engine):
    """Flag 1 of the pair style with a local student."""
    atoms = molecule()
    expected = local_engine.evaluate([atoms])[0]
    data = stand_in_for(atoms, local_engine)
    data.nlocal = data.nlistatoms = 3
    data._iatoms = data._iatoms[:3]
    data.natomneigh = 5
    MliapStudent(local_engine).compute_forces(data)
    np.testing.assert_allclose(data.eatoms, expected.atomic_energies[:3], atol=1e-12)


def test_an_unknown_element_is_named(local_engine):
    student = MliapStudent(local_engine)
    with pytest.raises(UnknownElementError, match=r"names Si, but the student knows only H, O"):
        student.compute_forces(StandIn([0, student.element_types.index("Si")]))


def test_lammps_sees_the_students_elements_first_and_the_cutoff(local_engine):
    student = MliapStudent(local_engine)
    assert student.element_types[:2] == ["H", "O"]
    assert len(set(student.element_types)) == len(student.element_types)
    assert 2.0 * student.rcutfac == local_engine.cutoff


@pytest.mark.parametrize("name", ["s.pt", "s.pth", "s.pkl"])
def test_the_file_names_the_loader_and_holds_plain_values(local_bundle, tmp_path, name):
    output = export(local_bundle, tmp_path / name)
    if name.endswith(("pt", "pth")):
        loaded = torch.load(output, weights_only=False)
        with zipfile.ZipFile(output) as archive:
            pickled = archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))
    else:
        pickled = output.read_bytes()
        loaded = pickle.loads(pickled)  # noqa: S301
    assert isinstance(loaded, MliapStudent)
    steps = [(opcode.name, value) for opcode, value, _ in pickletools.genops(pickled)]
    texts = [value for name, value in steps if name == "SHORT_BINUNICODE"]
    assert texts[:2] == ["mlffd.drivers.lammps_mliap", "load_mliap"]
    assert sum(name in ("STACK_GLOBAL", "GLOBAL", "INST") for name, _ in steps) == 1  # no other code is named
    assert len(list(tmp_path.iterdir())) == 2  # no temporary file stays


def test_environment_goes_before_the_file(local_bundle, tmp_path, monkeypatch):
    output = export(local_bundle, tmp_path / "s.pt", dtype="float32")
    monkeypatch.setenv("MLFFD_DTYPE", "float64")
    assert torch.load(output, weights_only=False).engine.dtype == "float64"
    monkeypatch.setenv("MLFFD_DTYPE", "float16")
    with pytest.raises(ConfigError, match="float16"):
        torch.load(output, weights_only=False)
    monkeypatch.delenv("MLFFD_DTYPE")
    monkeypatch.setenv("MLFFD_DEVICE", "nonsense")
    with pytest.raises(ConfigError, match="nonsense"):
        torch.load(output, weights_only=False)


def test_threads(monkeypatch):
    monkeypatch.delenv("MLFFD_THREADS", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert threads_per_rank() == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "4,2")
    assert threads_per_rank() == 4
    monkeypatch.setenv("MLFFD_THREADS", "3")
    assert threads_per_rank() == 3
    monkeypatch.setenv("MLFFD_THREADS", "0")
    with pytest.raises(ConfigError, match="MLFFD_THREADS"):
        threads_per_rank()


def test_a_newer_format_says_what_it_needs():
    with pytest.raises(BundleError, match=r"install mlffd 7\.1 or newer"):
        load_mliap(99, "whatever", 3, "7.1")


def test_damage_is_found_when_loading(local_bundle, tmp_path):
    content = bytearray(local_bundle.read_bytes())
    content[len(content) // 2] ^= 1  # one bit of one weight, still a finite number
    whole = lammps_mliap._Exported(local_bundle.read_bytes(), "cpu", "float32").__reduce__()[1]
    load_mliap(*whole)
    with pytest.raises(BundleError, match="damaged"):
        load_mliap(whole[0], bytes(content), *whole[2:])
    with pytest.raises(BundleError):
        load_mliap(whole[0], whole[1][:-100], *whole[2:])


def test_what_cannot_be_exported(tmp_path, local_bundle):
    with pytest.raises(BundleError):
        export(tmp_path / "absent.mlffd", tmp_path / "s.pt")
    with pytest.raises(ConfigError, match="dtype"):
        export(local_bundle, tmp_path / "s.pt", dtype="half")
    with pytest.raises(ConfigError, match="cannot write"):
        export(local_bundle, tmp_path / "no" / "folder" / "s.pt")
    assert not (tmp_path / "s.pt").exists()


def test_one_rank_says_one_line_and_lets_lammps_stop(capsys, monkeypatch):
    monkeypatch.setattr("sys.excepthook", lambda *_: print("TRACEBACK"))
    with pytest.raises(MlffdError) as caught, EndsAllRanks("cannot do it"):
        raise MlffdError("because\nof that")
    assert capsys.readouterr().err == "mlffd: cannot do it: because of that\n"
    sys.excepthook(caught.type, caught.value, caught.tb)  # as LAMMPS does: quiet, and only this once
    assert capsys.readouterr().out == ""
    sys.excepthook(caught.type, caught.value, caught.tb)
    assert capsys.readouterr().out == "TRACEBACK\n"


def test_several_ranks_are_aborted(capsys, monkeypatch):
    class World:
        aborted = None

        def Get_rank(self):
            return 1

        def Get_size(self):
            return 2

        def Abort(self, status):
            self.aborted = status
            raise SystemExit(status)

    ranks = World()
    monkeypatch.setattr(lammps_ranks, "world", lambda: ranks)
    with pytest.raises(SystemExit), EndsAllRanks("cannot do it"):
        raise RuntimeError("of a bug")
    assert ranks.aborted == 1
    assert "mlffd: cannot do it (rank 1 of 2): RuntimeError: of a bug" in capsys.readouterr().err


def test_a_process_without_mpi_stays_without(local_bundle):
    """Importing mpi4py but not starting MPI would make ASE end the process at its next file."""
    code = (
        "import sys, ase.io, ase.build\n"
        "from mlffd.drivers.lammps_mliap import _Exported, load_mliap\n"
        f"content = open({str(local_bundle)!r}, 'rb').read()\n"
        "load_mliap(*_Exported(content, 'cpu', 'float32').__reduce__()[1])\n"
        "ase.io.write(sys.stdout, ase.build.molecule('H2O'), format='xyz')\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "mpi4py" not in run.stderr
