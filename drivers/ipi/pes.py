# SPDX-License-Identifier: MIT
"""The PES file that i-PI loads by its path: a student within i-PI's own process, without a socket.

    <ffdirect name="student" threaded="true">
      <pes>custom</pes>
      <pes_path>FILE</pes_path>
      <parameters>{student: water, template: init.xyz}</parameters>
      <batch_size>32</batch_size>
    </ffdirect>

``mlffd ipi-pes-path`` prints FILE. ``batch_size`` is the number of beads. With ``threaded="true"`` i-PI
flushes an incomplete batch; without it i-PI hangs where a number of evaluations is no multiple of it.
``Parameters`` has all parameters.

The same file serves i-PI's own client, here on a unix socket:

    i-pi-driver-py -u -a ADDRESS -m custom -P FILE -o student=water,template=init.xyz
"""

import atexit
import gc
import os
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from ipi.pes.dummy import Dummy_driver
from ipi.utils.softexit import softexit

from mlffd.config import settings_from
from mlffd.drivers.ipi.committee import Committee, committee_extras
from mlffd.drivers.ipi.evaluator import Evaluator, NoAnswer
from mlffd.drivers.ipi.loop import Connection, close
from mlffd.drivers.ipi.protocol import ProtocolError, Request, Session, check_atom_count
from mlffd.drivers.ipi.report import Tally, say, summary
from mlffd.drivers.ipi.students import answering, load_engines
from mlffd.drivers.ipi.template import read_templates
from mlffd.errors import ConfigError, MlffdError

# i-PI looks for these two
__DRIVER_NAME__ = "mlffd"
__DRIVER_CLASS__ = "StudentDriver"

ADDED_BY_IPI = ("verbosity", "verbose")
SEPARATOR = ";"  # between names; i-PI keeps the comma for itself


@dataclass(frozen=True)
class Parameters:
    """What ``<parameters>`` may say: the options of ``mlffd-driver`` by their names there."""

    student: str  # a bundle's path or the name of a shipped student; several, with ; between, are a committee
    template: str  # structure with the atoms in i-PI's order; several systems: several files, with ; between
    pbc: str | None = None
    device: str = "cpu"
    dtype: str = "float32"
    max_batch_atoms: int | None = None
    guard: str | None = None
    extras: bool = False
    timestep: float | None = None  # fs, for ns/day in the closing summary
    beads: int | None = None


class StudentDriver(Dummy_driver):
    """A student, or a committee, as i-PI wants its drivers: for one structure or lists of any length.

    It is loaded and has answered once when the object is there. Wrong parameters end the process with one
    line and exit status 1; a structure without a usable answer ends the simulation with one line and exit
    status 3, as ``mlffd-driver`` does.
    """

    def __init__(self, *unnamed, **parameters):
        try:
            if unnamed:
                raise ConfigError("parameters need names, as in student=water,template=init.xyz")
            ours = {name: value for name, value in parameters.items() if name not in ADDED_BY_IPI}
            self.evaluator = evaluator_from(settings_from(ours, Parameters, "parameters"))
            self.evaluator.warm_up()
        except MlffdError as error:
            say(str(error))
            raise SystemExit(1) from error
        super().__init__(verbose=bool(parameters.get("verbose")))
        evaluate = self.evaluator.evaluate
        self.guard = evaluate.members[0] if isinstance(evaluate, Committee) else evaluate
        self._answered_at = time.perf_counter()
        softexit.register_function(self.summarize)  # i-pi leaves without Python's own
        atexit.register(self.summarize)

    def compute(self, cell, pos):
        """Potential (Hartree), forces (n_atoms, 3) (Hartree/Bohr), virial (3, 3) (Hartree) and extras.

        ``cell`` (3, 3), its columns lattice vectors, and ``pos`` (n_atoms, 3), in Bohr; or a list of each,
        and a list comes back.
        """
        if not isinstance(cell, list):
            return self._results([cell], [pos])[0]
        return self._results(cell, pos)

    def summarize(self) -> None:
        """Says what has been done, and what the guard saw, once."""
        if self.evaluator.tally.evaluations:
            say(summary(self.evaluator.tally))
        self.evaluator.tally = Tally()
        self.guard.summarize()

    def _results(self, cells: list, positions: list) -> list[tuple]:
        self.evaluator.tally.waited(time.perf_counter() - self._answered_at)
        with errors_end_all():
            answers = self.evaluator(requests_from(cells, positions, self.evaluator.atom_counts))
        self._answered_at = time.perf_counter()
        return [
            result
            for answer in answers
            for result in zip(*answer.for_ipi(), answer.extras or [""] * len(answer.energies))
        ]


def evaluator_from(parameters: Parameters) -> Evaluator:
    """The way from structures to answers that is behind ``mlffd-driver``, too.

    Raises:
        ConfigError, BundleError: what the parameters name does not exist or cannot be read.
    """
    templates = read_templates(names(parameters.template, "template"), parameters.pbc)
    bundles = names(parameters.student, "student")
    how = parameters.device, parameters.dtype, parameters.max_batch_atoms
    engines = load_engines(bundles, templates, *how)
    extras = committee_extras if parameters.extras else None
    tally = Tally(parameters.timestep, parameters.beads)
    return Evaluator(templates, answering(engines, bundles, parameters.guard), tally, extras)


def names(text: str, parameter: str) -> list[str]:
    """The names in a list of them. Raises ConfigError where there is none."""
    found = [name.strip() for name in text.split(SEPARATOR) if name.strip()]
    if not found:
        raise ConfigError(f"parameters: {parameter} is empty")
    return found


def requests_from(cells: list, positions: list, atom_counts: set[int]) -> list[Request]:
    """One request for all neighbors in the lists that have the same number of atoms.

    Raises:
        ProtocolError: that is none of ``atom_counts``.
    """
    structures = [(np.asarray(cell), np.reshape(xyz, (-1, 3))) for cell, xyz in zip(cells, positions)]
    requests = []
    for n_atoms, group in groupby(structures, key=lambda structure: len(structure[1])):
        check_atom_count(n_atoms, atom_counts)
        requests.append(Request.from_ipi(*map(np.array, zip(*group))))
    return requests


@contextmanager
def errors_end_all() -> Iterator[None]:
    """Ends the simulation with any error: of one that ends its polling thread alone, i-PI hangs.

    Raises SystemExit in this thread.
    """
    try:
        yield
    except (NoAnswer, ProtocolError) as error:
        end(str(error), error.exit_status)
        raise SystemExit(error.exit_status) from error
    except BaseException as error:
        traceback.print_exc()
        end(f"{type(error).__name__}: {error}", 1)
        raise SystemExit(1) from error


def end(message: str, exit_status: int) -> None:
    """Ends the simulation; i-PI would carry on with whatever it got.

    i-PI's own soft exit closes its outputs and writes RESTART, but leaves with status 0.
    """
    say(message)
    if softexit.hard_exit:  # the program i-pi, not somebody's script
        softexit.register_function(leave, exit_status)
    if softexit.tlist:  # there is a simulation in this process, and its other threads have to end, too
        softexit.trigger(status="bad", message=message)
    close([Connection(sock, Session(())) for sock in connected_sockets()])


def leave(exit_status: int) -> None:
    """Ends the process from whichever thread; the last that i-PI does."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:  # they may be full or closed
        os._exit(exit_status)


def connected_sockets() -> list[socket.socket]:
    """Those of i-pi-driver-py, which keeps its socket to itself; with a message unread, i-PI would hang."""
    # not isinstance: that asks some objects of torch for their class, and they warn
    return [found for found in gc.get_objects() if type(found) is socket.socket and is_connected(found)]


def is_connected(sock: socket.socket) -> bool:
    """Whether there is another side."""
    try:
        sock.getpeername()
    except OSError:
        return False
    return True
