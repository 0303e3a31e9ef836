# SPDX-License-Identifier: MIT
"""The server's half of i-PI, i-PI's own, for tests in one process: the loop runs in a thread."""

import select
import socket
import threading

import numpy as np
import pytest
from ase import Atoms
from ase.units import Bohr, Hartree
from ipi_evaluators import Recorder

from mlffd.drivers.ipi.evaluator import Evaluator, NoAnswer
from mlffd.drivers.ipi.loop import Connection, ServerGone, close, serve
from mlffd.drivers.ipi.protocol import ProtocolError, Session

ForceRequest = pytest.importorskip("ipi.engine.forcefields", reason="needs the extra `ipi`").ForceRequest
ipi_sockets = pytest.importorskip("ipi.interfaces.sockets", reason="needs the extra `ipi`")

TIME_LIMIT = 30  # s


class Talk:
    """Our loop in a thread, and i-PI's own server-side object at the other end."""

    def __init__(self, template, evaluate, batch_size=1, n_connections=1):
        pairs = [socket.socketpair() for _ in range(n_connections)]
        self.recorder = Recorder(evaluate)
        self.evaluator = Evaluator(template, self.recorder)
        self.connections = [Connection(ours, Session({len(template)})) for ours, _ in pairs]
        self.servers = [ipi_sockets.Driver(theirs) for _, theirs in pairs]
        for server in self.servers:
            server.batch_size = batch_size
            server.settimeout(TIME_LIMIT)
        for _, theirs in pairs:
            theirs.close()  # the server holds its own duplicate
        self.error = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        try:
            serve(self.connections, self.evaluator)
        except (NoAnswer, ServerGone, ProtocolError) as error:
            self.error = error
        finally:
            close(self.connections)

    def close(self):
        for server in self.servers:
            server.close()
        self.join()

    def join(self):
        self.thread.join(TIME_LIMIT)
        assert not self.thread.is_alive(), "the loop did not end"


def ipi_request(atoms: Atoms, number: int = 0) -> ForceRequest:
    """The structure as i-PI's force field queues it."""
    h = np.ascontiguousarray(atoms.cell.array.T / Bohr)
    request = ForceRequest(id=number, pars=" ", offset=0.0, start=-1, status="Queued")
    request.update(pos=atoms.positions.reshape(-1) / Bohr, active=np.arange(3 * len(atoms)))
    request.update(cell=(h, np.linalg.inv(h)))
    return request


def ask(server, atoms: Atoms) -> tuple[float, np.ndarray, np.ndarray]:
    """Energy eV, forces (n_atoms, 3) eV/Å and virial (3, 3) eV of one structure, in i-PI's fast way."""
    request = ipi_request(atoms)
    server.get_status()
    assert server.dispatch_send(request)
    assert select.select([server], [], [], TIME_LIMIT)[0], "no answer"
    assert server.dispatch_recv(request)
    return in_ev(request["result"])


def ask_batch(server, structures: list[Atoms]) -> list[tuple]:
    """The same of several structures, as one batch that i-PI fills up."""
    requests = [ipi_request(atoms, k) for k, atoms in enumerate(structures)]
    server.get_status()
    assert server.dispatch_send_batch(requests)
    assert select.select([server], [], [], TIME_LIMIT)[0], "no answer"
    assert server.dispatch_recv_batch(requests)
    return [in_ev(request["result"]) for request in requests]


def in_ev(result) -> tuple[float, np.ndarray, np.ndarray]:
    energy, forces, virial, extras = result
    assert extras == {}
    return energy * Hartree, forces.reshape(-1, 3) * Hartree / Bohr, virial * Hartree
