# SPDX-License-Identifier: MIT
"""Students under Kokkos, without it: a stand-in for what LAMMPS hands over does what LAMMPS' sources say.

On one rank, where all ghosts are images of its own atoms, and on the host; no run on a GPU has been made yet.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ase import Atoms

from mlffd.drivers.lammps_kokkos import KokkosExchange
from mlffd.drivers.lammps_mliap import MliapStudent
from mlffd.engine import Engine
from mlffd.errors import ConfigError
from mlffd.neighbors import neighbor_list
from mlffd.students import build_student


class KokkosStandIn:
    """LAMMPS' ``data`` under Kokkos: tensors for arrays of the device; ghosts are images of its own atoms."""

    def __init__(self, atoms: Atoms, cutoff: float, elements: list[str]):
        (i, j), rij, shifts = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, cutoff)
        images = {}  # (atom, shift): ghost
        neighbors = [
            int(b) if not np.any(s) else images.setdefault((int(b), *map(int, s)), len(atoms) + len(images))
            for b, s in zip(j, shifts)
        ]
        self.owner = torch.tensor([*range(len(atoms)), *(b for b, *_ in images)])
        self.nlocal = self.nlistatoms = self.natomneigh = len(atoms)
        self.ntotal, self.npairs = len(self.owner), len(i)
        kinds = [elements.index(symbol) for symbol in atoms.symbols]
        self.elems = torch.tensor(kinds, dtype=torch.int32)[self.owner]
        self.iatoms = torch.arange(len(atoms), dtype=torch.int32)
        self.pair_i = torch.as_tensor(i.astype(np.int32))
        self.pair_j = torch.tensor(neighbors, dtype=torch.int32)
        self.rij = torch.as_tensor(np.ascontiguousarray(rij))
        self.f = torch.zeros(self.ntotal, 3, dtype=torch.float64)
        self._eatoms = torch.zeros(len(atoms), dtype=torch.float64)
        self.energy, self.n_exchanges = None, 0

    @property
    def eatoms(self):  # can be written into, not replaced
        return self._eatoms

    def update_pair_forces(self, fij):
        assert fij.data_ptr()  # a tensor
        assert fij.dtype == torch.float64
        assert fij.is_contiguous()
        self.f.index_add_(0, self.pair_i, fij)
        self.f.index_add_(0, self.pair_j, -fij)

    def forward_exchange(self, copy_from, copy_to, vec_len):
        self.check(copy_from, copy_to, vec_len)
        copy_to.copy_(copy_from)
        copy_to[self.nlocal :] = copy_to[self.owner[self.nlocal :]]

    def reverse_exchange(self, copy_from, copy_to, vec_len):
        self.check(copy_from, copy_to, vec_len)
        copy_to.copy_(copy_from)
        copy_to.index_add_(0, self.owner[self.nlocal :], copy_from[self.nlocal :])

    def check(self, copy_from, copy_to, vec_len):
        self.n_exchanges += 1
        assert copy_from.dtype == copy_to.dtype
        assert copy_from.data_ptr() != copy_to.data_ptr()
        for rows in (copy_from, copy_to):
            assert rows.shape == (self.ntotal, vec_len)
            assert rows.is_contiguous()

    def forces(self) -> np.ndarray:
        """As after LAMMPS' reverse communication."""
        total = torch.zeros(self.nlocal, 3, dtype=torch.float64)
        return total.index_add_(0, self.owner, self.f).numpy()


def liquid() -> Atoms:
    random = np.random.default_rng(2)
    lattice = 2.0 * np.indices((3, 3, 3)).reshape(3, -1).T
    positions = lattice + random.normal(0.0, 0.1, lattice.shape)
    return Atoms("OHH" * 9, positions, cell=[[6.0, 0, 0], [0.7, 6.1, 0], [-0.4, 0.3, 6.2]], pbc=True)


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_exchange_of_lammps(layers, backend):
    """Seen to catch: an exchange whose result is not taken, and one that is not made."""
    torch.manual_seed(5)
    painn = {"family": "painn", "species": [1, 8], "cutoff": 3.5, "features": 8, "layers": layers}
    engine = Engine(build_student(painn), dtype="float64", backend=backend)
    data = KokkosStandIn(liquid(), engine.cutoff, ["H", "O"])
    (expected,) = engine.evaluate(liquid())
    MliapStudent(engine).compute_forces(data)
    assert data.energy == pytest.approx(expected.energy, abs=1e-10)
    np.testing.assert_allclose(data.eatoms.numpy(), expected.atomic_energies, atol=1e-11)
    np.testing.assert_allclose(data.forces(), expected.forces, atol=1e-11)
    assert data.n_exchanges == 2 * (layers - 1)


@pytest.mark.parametrize(("version", "wrong"), [(20250910, False), (20251210, True), (20260211, False)])
def test_versions_that_exchange_wrongly(version, wrong):
    """lammps#4744: forces would be wrong without a word."""
    instance = SimpleNamespace(version=version)
    if not wrong:
        KokkosExchange(None, instance)
        return
    with pytest.raises(ConfigError, match=r"LAMMPS 20251210 .*lammps#4744.*install a version"):
        KokkosExchange(None, instance)


def test_newer_kokkos_builds_ask_for_the_cutoff():
    engine = Engine(build_student({"family": "painn", "species": [1, 8], "cutoff": 3.5, "features": 8}))
    assert MliapStudent(engine).cutoff == 3.5
