# SPDX-License-Identifier: MIT
"""LAMMPS seen through its C library: a stand-in for the library, with atom ids of 4 and of 8 bytes."""

import ctypes
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mlffd.drivers import lammps_instance
from mlffd.drivers.lammps_instance import LammpsInstance, hand_over, instance_behind
from mlffd.errors import ConfigError

SOURCE = Path(__file__).parent / "lammps_library.c"
N_REFERENCES = 14


@pytest.fixture(params=["int32_t", "int64_t"])
def library(request, tmp_path):
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    output = tmp_path / "library.so"
    command = [compiler, f"-DTAG={request.param}", "-w", "-shared", "-fPIC", "-o", output, SOURCE]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(output))


def test_what_lammps_says(library, request):
    """Seen to catch: ids of BIGBIG builds read as 4 bytes, boxes with columns for rows."""
    instance = LammpsInstance(1, library)
    large = 5000000000 if "int64_t" in request.node.name else 5000000000 - 2**32
    assert instance.tags().tolist() == [7, large, 7]
    assert instance.tags().dtype == np.int64
    assert (instance.version, instance.n_local, instance.n_all, instance.n_ranks) == (20260704, 2, 3, 1)
    assert instance.types().tolist() == [1, 2, 1]
    np.testing.assert_array_equal(instance.positions(), [[1, 2, 3], [4, 5, 6], [11, 2, 3]])
    assert instance.step() == 6000000000
    assert (instance.units(), instance.skin()) == ("metal", 2.0)
    origin, cell, pbc = instance.box()
    np.testing.assert_array_equal(origin, [-1, -2, -3])
    np.testing.assert_array_equal(cell, [[10, 0, 0], [0.5, 12, 0], [0.25, -0.5, 14]])
    assert pbc.tolist() == [True, False, True]
    assert instance.communicator() is None


def test_atoms_without_ids(library):
    library.take_ids_away()
    with pytest.raises(ConfigError, match="atom_modify id no"):
        LammpsInstance(1, library).tags()


def test_no_atoms(library):
    library.take_atoms_away()
    instance = LammpsInstance(1, library)
    assert instance.tags().shape == (0,)
    assert instance.positions().shape == (0, 3)


def test_a_library_that_is_not_of_lammps():
    with pytest.raises(ConfigError, match="not the library of LAMMPS"):
        LammpsInstance(1, ctypes.CDLL(None))


def derived_from_pointers(lammps: int) -> ctypes.Array:
    """Memory as in an object of such a class; a ctypes array holds the address of its memory, as Cython's
    classes hold that of a C++ object."""
    references = [lammps + 8 * k for k in range(N_REFERENCES)]
    return (ctypes.c_size_t * 20)(0xABC, lammps, *references)


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    """Every test searches anew."""
    monkeypatch.setattr(lammps_instance, "_place_in", {})


def test_lammps_is_found_behind_an_object():
    assert lammps_instance._address_in(derived_from_pointers(0x1000)) == 0x1000
    pair_style = derived_from_pointers(0x2000)
    of_kokkos = (ctypes.c_size_t * 64)(*range(40), ctypes.addressof(pair_style))
    assert lammps_instance._address_in(of_kokkos) == 0x2000


def test_where_it_was_found_it_is_looked_for_first(monkeypatch):
    """Without a search; the signature is asked for all the same."""
    assert lammps_instance._address_in(derived_from_pointers(0x1000)) == 0x1000
    monkeypatch.setattr(lammps_instance, "_search", None)
    other = derived_from_pointers(0x3000)
    assert lammps_instance._address_in(other) == 0x3000
    other[5] += 8
    assert lammps_instance._address_in(other) is None


@pytest.mark.parametrize(
    "thing", [None, 3, 10**40, "text", [1, 2], {}, object(), np.zeros(3), SimpleNamespace(a=1), 1.5],
    ids=lambda thing: type(thing).__name__,
)  # fmt: skip
def test_nothing_is_found_behind_others(thing):
    assert lammps_instance._address_in(thing) is None


@pytest.mark.parametrize("wrong", range(1, 2 + N_REFERENCES))
def test_one_wrong_word_is_enough(wrong):
    words = derived_from_pointers(0x1000)
    words[wrong] += 8
    assert lammps_instance._address_in(words) is None


def test_lammps_handed_over(library, monkeypatch):
    """An address or a capsule; taken only by an object that counts the same atoms."""
    monkeypatch.setattr(lammps_instance, "_own_library", lambda: library)
    monkeypatch.setattr(lammps_instance, "_handed_over", None)
    same, other = SimpleNamespace(nlocal=2, ntotal=3), SimpleNamespace(nlocal=2, ntotal=4)
    assert instance_behind(same) is None
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    for handle in (0x1000, new(0x1000, None, None)):
        hand_over(handle)
        assert instance_behind(same).pointer == 0x1000
        assert instance_behind(other) is None
