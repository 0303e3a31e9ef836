# SPDX-License-Identifier: MIT
"""What ``mlffd lammps run`` makes of an input before LAMMPS sees it, and sums over pairs without kernels."""

import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mlffd.bundle import write_bundle
from mlffd.drivers import lammps_fix, lammps_run
from mlffd.drivers.lammps_mliap import export
from mlffd.drivers.lammps_run import (
    InputRun,
    Wanted,
    check_lines,
    exported,
    fixes_after_forces,
    read_exported,
    read_lines,
)
from mlffd.errors import BundleError, ConfigError
from mlffd.kernels import cpu
from mlffd.students import build_student

ARGON = {"family": "lennard_jones", "species": [18], "cutoff": 7.0, "epsilon": [0.01], "sigma": [3.4]}


def lines_of(text, tmp_path):
    path = tmp_path / "in.test"
    path.write_text(text)
    return path, list(read_lines(path))


def test_lines_are_those_that_lammps_reads(tmp_path):
    text = 'units metal # real & not\npair_coeff * * &\n  "file # 1" O H # two\n\nprint """a\nb"""\nrun 0'
    _, lines = lines_of(text, tmp_path)
    assert "".join(line.text for line in lines) == text
    assert [line.number for line in lines] == [1, 2, 4, 5, 7]
    assert lines[0].words == ["units", "metal"]
    assert lines[1].words == ["pair_coeff", "*", "*", "file # 1", "O", "H"]
    assert lines[3].words == ["print", "a\nb"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("units metal\nrun 0", "has no pair_style: it must be in this file"),
        ('pair_style none\nif "1" then "pair_style mlffd"', "line 2: pair_style must be a line of its own"),
        ("pair_style mlffd\nrun_style respa 2 2", "line 2: fix external has no forces for run_style respa"),
        ("pair_style mlffd\npair_write 1 1 9 r 1 2 x y", "line 2: pair_write asks the pair style"),
        ("pair_style mlffd\ncompute c all group/group all", "line 2: group/group asks the pair style"),
        (
            'label a\npair_style mlffd\npair_coeff * * x O\nif "1" then "jump SELF a"',
            "line 4: the jump to a leads across",
        ),
        ("pair_style mlffd\njump SELF b\npair_coeff * * x O\nlabel b", "line 2: the jump to b leads across"),
    ],
)
def test_inputs_that_are_refused(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        check_lines(*lines_of(text, tmp_path))


def test_inputs_that_are_taken(tmp_path):
    text = "# pair_style mlffd\npair_style mlffd # pair_style mliap unified\nlabel a\nrun 1\njump SELF a"
    check_lines(*lines_of(text, tmp_path))


def parse(style):
    return Wanted.parse(["pair_style", *style.split()])


def test_pair_styles():
    wanted = parse("mlffd precision float64 threads 2 guard stop")
    assert (wanted.style, wanted.in_hybrid) == ("mlffd", False)
    assert wanted.options == {"precision": "float64", "threads": "2", "guard": "stop"}
    wanted = parse("mliap unified a.pt 1")
    assert (wanted.style, wanted.file) == ("mliap", "a.pt")
    wanted = parse("hybrid/overlay zbl 1 2 mliap unified a.pt 0 lj/cut 5")
    assert wanted.in_hybrid
    assert " ".join(wanted.replaced) == "pair_style hybrid/overlay zbl 1 2 zero 1.0 full lj/cut 5"
    assert parse("lj/cut 5.0") is None
    assert parse("") is None


@pytest.mark.parametrize(
    "style",
    [
        "mlffd precision float64 colour red",
        "mliap unified a.pt 0 more",
        "hybrid/scaled 0.5 mlffd 0.5 zbl 1 2",
        "hybrid mlffd mlffd",
    ],
)
def test_pair_styles_that_are_refused(style):
    with pytest.raises(ConfigError, match="--fix external"):
        Wanted.parse(["pair_style", *style.split()])


def test_fixes_that_deal_with_forces(tmp_path):
    text = "fix a all setforce 0 0 0\nclear\nfix b all nve\nfix c all shake 1 2\nfix d all freeze\nunfix d"
    _, lines = lines_of(text, tmp_path)
    assert [fix.words[1] for fix in fixes_after_forces(lines)] == ["c"]


def test_words_of_an_export():
    assert exported(["water", "-o", "water.pt"]) == ("water", "water.pt", "cpu", "float32")
    words = ["--dtype", "float64", "--output", "a.pt", "w.mlffd", "--device", "cuda"]
    assert exported(words) == ("w.mlffd", "a.pt", "cuda", "float64")


@pytest.mark.parametrize("suffix", ["pt", "pkl"])
def test_bundle_of_an_exported_file(tmp_path, suffix):
    """Seen to fail: with the suffix of pickle, read as an archive."""
    write_bundle(tmp_path / "a.mlffd", build_student(ARGON), {"name": "argon"})
    file = export(tmp_path / "a.mlffd", tmp_path / f"a.{suffix}", device="cuda", dtype="float64")
    bundle, device, dtype = read_exported(file)
    assert (bundle.metadata["name"], device, dtype) == ("argon", "cuda", "float64")


def test_the_shipped_student_of_an_exported_file(tmp_path):
    """Large enough to be pickled in several frames. Seen to fail: their lengths taken for constants."""
    bundle, device, dtype = read_exported(export("water", tmp_path / "water.pt", dtype="float64"))
    assert (bundle.metadata["name"], device, dtype) == ("water", "cpu", "float64")


class Trap:
    def __reduce__(self):
        return pytest.fail, ("executed",)


def test_nothing_in_a_file_is_executed(tmp_path):
    torch.save(Trap(), tmp_path / "trap.pt")
    (tmp_path / "trap.pkl").write_bytes(pickle.dumps(("load_mliap", 1, Trap())))
    (tmp_path / "other.pkl").write_bytes(pickle.dumps({"a": 1}))
    (tmp_path / "junk.pt").write_bytes(b"junk")
    for file in tmp_path.iterdir():
        with pytest.raises(BundleError, match="was not written by mlffd lammps export; say --student"):
            read_exported(file)
    with pytest.raises(BundleError, match="cannot read"):
        read_exported(tmp_path / "missing.pt")


class OtherRanks:
    """A LAMMPS that was built without MPI."""

    __version__ = 0

    def lammps(self, cmdargs):
        return self

    def extract_setting(self, name):
        return 1


@pytest.mark.parametrize(
    ("has_mpi4py", "package", "message"),
    [
        (False, OtherRanks(), "2 ranks need mpi4py: `pip install mpi4py`"),
        (True, None, "cannot load LAMMPS as a library"),
        (True, OtherRanks(), "LAMMPS does not see the 2 ranks that were started"),
    ],
)
def test_what_a_user_lacks(monkeypatch, has_mpi4py, package, message):
    monkeypatch.setattr(lammps_run, "rank_and_size", lambda: (0, 2))
    monkeypatch.setattr(lammps_run, "load_mpi", lambda: has_mpi4py)
    monkeypatch.setitem(sys.modules, "lammps", package)
    monkeypatch.setenv("PATH", os.environ["PATH"])
    with pytest.raises(ConfigError, match=message):
        lammps_run.open_lammps([])


def test_sums_without_compiled_kernels(monkeypatch):
    """The same sums; every pair here has its reverse nowhere, so that a sign counts."""
    random = np.random.default_rng(3)
    i, j = np.sort(random.integers(0, 5, 40)).astype(np.int32), random.integers(0, 7, 40).astype(np.int32)
    rij, gradient = random.normal(size=(2, 40, 3))
    forces, virial = lammps_fix.sum_forces(7, i, j, rij, gradient)
    monkeypatch.setattr(cpu, "is_compiled", lambda: False)
    forces_again, virial_again = lammps_fix.sum_forces(7, i, j, rij, gradient)
    np.testing.assert_allclose(forces, forces_again, atol=1e-12)
    np.testing.assert_allclose(virial, virial_again, atol=1e-12)
    atomic = lammps_fix.sum_atomic_virials(7, i, j, rij, gradient)
    np.testing.assert_allclose(atomic.sum(axis=0), virial, atol=1e-12)
    np.testing.assert_allclose(virial[3], -(rij[:, 0] * gradient[:, 1]).sum(), atol=1e-12)


def test_words_of_the_pair_style_go_before_the_environment(monkeypatch):
    """And are forgotten with it: the second student has no guard of its own."""
    monkeypatch.setenv("MLFFD_GUARD", "warn")
    monkeypatch.delenv("MLFFD_DTYPE", raising=False)
    run = InputRun(None, Path("in.test"), [], None)
    run._set_variables({"precision": "float64", "guard": "stop"})
    assert (os.environ["MLFFD_GUARD"], os.environ["MLFFD_DTYPE"]) == ("stop", "float64")
    run._set_variables({})
    assert os.environ["MLFFD_GUARD"] == "warn"
    assert "MLFFD_DTYPE" not in os.environ
