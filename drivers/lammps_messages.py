# SPDX-License-Identifier: MIT
"""How students that pass messages get the features of ghost atoms under ``pair_style mliap unified``.

With the pair style's flag 0 ghosts get their owners' features between layers, through an exchange: LAMMPS'
own under Kokkos, otherwise that of lammps_exchange.py. On one rank it only takes the atoms' ids; on several
it takes mpi4py, built for the MPI that LAMMPS uses.

With flag 1 LAMMPS lists the neighbors of ghosts as well, and messages are computed for ghosts on every rank
that has them: a halo, which ``comm_modify cutoff`` must make n_layers times the cutoff and the skin wide. It
needs no messages between ranks and several times the work.
"""

import numpy as np

from mlffd.drivers.lammps_exchange import GhostExchange, exchange_for, halo_is_complete
from mlffd.drivers.lammps_instance import LammpsInstance, library_is_visible
from mlffd.drivers.lammps_kokkos import KokkosExchange
from mlffd.drivers.lammps_ranks import on_any_rank, rank_and_size
from mlffd.engine import Engine
from mlffd.errors import ConfigError

HAND_OVER = (
    'python hand_over input 1 SELF format p here "from mlffd.drivers.lammps_instance import hand_over" '
    "and `python hand_over invoke`"
)


class Messages:
    """Evaluates steps of one LAMMPS, messages included where the student passes any."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self.exchange: GhostExchange | None = None
        self.has_halo = False
        self._pointer, self._warned = None, False

    def evaluate(
        self, frame, atomic_numbers: np.ndarray, instance: LammpsInstance | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Atomic energies (n_local,) in eV and dE/drij (n_pairs, 3) in eV/Å; COLLECTIVE if n_layers > 1.

        Args:
            frame: a ``lammps_mliap.Frame``.
            atomic_numbers: (n_all,), ghosts last.
            instance: the LAMMPS that asks, where it was found.

        Raises:
            ConfigError: features of ghosts are not to be had, or the halo is too thin.
        """
        if self.engine.n_layers == 1:
            return self._evaluate_owned(frame, atomic_numbers, frame.pair_j)
        if frame.kokkos_data is not None:
            exchange = KokkosExchange(frame.kokkos_data, instance)
            return self._evaluate_owned(frame, atomic_numbers, frame.pair_j, exchange)
        self._follow(frame, instance)
        if self.has_halo:
            self._check_halo(frame, instance)
            return self.engine.evaluate_pairs(
                atomic_numbers, frame.pair_i, frame.pair_j, frame.rij, frame.n_all, n_owned=frame.n_local
            )
        if self.exchange is None:
            return self._evaluate_owned(frame, atomic_numbers, frame.pair_j)
        rows = self.exchange.row_of_atom
        numbers = np.zeros(self.exchange.n_rows, atomic_numbers.dtype)
        numbers[rows] = atomic_numbers
        between_ranks = self.exchange if self.exchange.n_ranks > 1 else None
        return self._evaluate_owned(frame, numbers, rows[frame.pair_j], between_ranks)

    def _evaluate_owned(self, frame, numbers: np.ndarray, row_j: np.ndarray, exchange=None):
        """From the neighbors of owned atoms alone; ``numbers`` and ``row_j`` are of rows."""
        if frame.centers_are_owned:
            pairs = frame.pair_i, row_j, frame.rij
            return self.engine.evaluate_pairs(numbers, *pairs, frame.n_local, exchange)
        owned = frame.pair_i < frame.n_local
        pairs = frame.pair_i[owned], row_j[owned], frame.rij[owned]
        gradient = np.zeros((len(owned), 3))
        energies, gradient[owned] = self.engine.evaluate_pairs(numbers, *pairs, frame.n_local, exchange)
        return energies, gradient

    def _follow(self, frame, instance: LammpsInstance | None) -> None:
        """Bring the exchange up to date, and agree with all ranks on whether there is a halo."""
        if instance is not None and self._pointer != instance.pointer:
            self.exchange, self._pointer = exchange_for(instance), instance.pointer
        if self.exchange is not None:
            n_updates = self.exchange.n_updates
            self.exchange.update(instance.tags(), frame.n_local)
            if self.exchange.n_updates > n_updates:  # on all ranks alike
                # a rank that has no ghosts cannot tell by itself
                self.has_halo = on_any_rank(not frame.centers_are_owned, self.exchange.communicator)
            return
        self.has_halo = not frame.centers_are_owned
        if not self.has_halo and frame.n_all > frame.n_local:
            raise ConfigError(self._why_no_exchange(instance))

    def _why_no_exchange(self, instance: LammpsInstance | None) -> str:
        wider = f"or use flag 1 of the pair style and `comm_modify cutoff {self._halo_cutoff(instance):g}`"
        layers = f"the student passes messages in {self.engine.n_layers} layers, and "
        if not library_is_visible():
            return (
                layers
                + f"this LAMMPS was built without a shared library, which that takes: build one, {wider}"
            )
        if instance is None:
            return layers + f"LAMMPS was not found from Python: add the lines `{HAND_OVER}`, {wider}"
        return layers + (
            "between ranks that takes mpi4py built for the MPI of LAMMPS, which is not here: install it, "
            f"{wider}, or run on one rank"
        )

    def _halo_cutoff(self, instance: LammpsInstance | None) -> float:
        skin = 2.0 if instance is None else instance.skin()  # 2 Å is LAMMPS' default in units metal
        return self.engine.n_layers * self.engine.cutoff + skin

    def _check_halo(self, frame, instance: LammpsInstance | None) -> None:
        """Raises ConfigError where a ghost lacks neighbors; says so where that cannot be found out."""
        cutoff = self._halo_cutoff(instance)
        if self.exchange is None:
            if not self._warned and rank_and_size()[0] == 0:
                print(
                    "mlffd: cannot check without mpi4py that ghosts have all neighbors that messages come "
                    f"from: `comm_modify cutoff` must be {cutoff:g} or more",
                    flush=True,
                )
            self._warned = True
            return
        # a little inside the cutoff: whether atoms of a crystal are just at it is a matter of rounding
        inside = np.einsum("ij,ij->i", frame.rij, frame.rij) < (self.engine.cutoff * (1 - 1e-6)) ** 2
        if not halo_is_complete(
            self.exchange, frame.pair_i[inside], frame.pair_j[inside], self.engine.n_layers
        ):
            raise ConfigError(
                f"ghost atoms lack neighbors that messages in {self.engine.n_layers} layers come from: "
                f"set `comm_modify cutoff {cutoff:g}` or more, or use flag 0 of the pair style"
            )
