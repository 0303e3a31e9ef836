# SPDX-License-Identifier: MIT
"""What ``pair_style mliap/kk unified`` hands over, made to look as in a plain build, and its own exchange.

Written from LAMMPS' sources (src/KOKKOS/mliap_unified_couple_kokkos.pyx, pair_mliap_kokkos.cpp of 2026).
No run on a GPU has been made yet: the tests use a stand-in that does what those sources say.
"""

import numpy as np
import torch

from mlffd.drivers.lammps_instance import LammpsInstance
from mlffd.errors import ConfigError

WRONG_EXCHANGE = range(20251001, 20251216)  # lammps#4744, mended by lammps#4808


class HostData:
    """LAMMPS' ``data`` of a Kokkos build, whose arrays are on the device, as NumPy arrays of the host."""

    _ARRAYS = ("elems", "iatoms", "pair_i", "pair_j", "rij")

    def __init__(self, kokkos_data):
        self._kokkos_data = kokkos_data

    def __getattr__(self, name):
        value = getattr(self._kokkos_data, name)
        return torch.as_tensor(value).cpu().numpy() if name in self._ARRAYS else value

    def set_energies(self, atomic_energies: np.ndarray, energy: float) -> None:
        """Energies (nlistatoms,) in eV of the listed atoms, and their sum."""
        if len(atomic_energies):
            torch.as_tensor(self._kokkos_data.eatoms).copy_(torch.from_numpy(atomic_energies))
        self._kokkos_data.energy = energy

    def update_pair_forces(self, pair_gradient: np.ndarray) -> None:
        """dE/drij (npairs, 3) in eV/Å, contiguous float64."""
        device = torch.as_tensor(self._kokkos_data.rij).device
        self._kokkos_data.update_pair_forces(torch.as_tensor(pair_gradient, device=device))


class KokkosExchange:
    """LAMMPS' own exchange of atoms' features: rows are its atoms, ghosts last, one row each.

    Its calls take where to read and where to write, (ntotal, n_values) each. Forward it copies all rows
    and fills those of ghosts with their owners'; reverse it copies all and adds those of ghosts to their
    owners'. It works on a stream of its own, so that PyTorch's has to be waited for, before and after.

    Raises:
        ConfigError: a LAMMPS whose exchange is known to be wrong.
    """

    on_device = True  # PyTorch's tensors, wherever they are

    def __init__(self, kokkos_data, instance: LammpsInstance | None):
        if instance is not None and instance.version in WRONG_EXCHANGE:
            raise ConfigError(
                f"LAMMPS {instance.version} passes messages between ranks wrongly under Kokkos "
                "(lammps#4744): install a version of 16 December 2025 or later, or run without -sf kk"
            )
        self._kokkos_data = kokkos_data

    def forward(self, rows: torch.Tensor | np.ndarray) -> None:
        """Rows (ntotal, n_values) from nlocal on get their owners' values; in place, collective."""
        self._pass(self._kokkos_data.forward_exchange, rows)

    def reverse(self, rows: torch.Tensor | np.ndarray) -> None:
        """Rows (ntotal, n_values) from nlocal on are added to their owners' rows; in place, collective.

        What is in the rows from nlocal on afterwards means nothing."""
        self._pass(self._kokkos_data.reverse_exchange, rows)

    def _pass(self, call, rows) -> None:
        sent = torch.as_tensor(rows)  # compiled kernels lend NumPy arrays, whose memory this is
        received = torch.empty_like(sent)
        _wait(sent)
        call(sent, received, sent.shape[1])
        _wait(sent)
        sent.copy_(received)


def _wait(tensor: torch.Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
