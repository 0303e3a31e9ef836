# SPDX-License-Identifier: MIT
"""The loop between i-PI and a student: sockets in, batches to evaluate out.

``serve`` waits for structures on any number of connections, evaluates all that has been asked for in one
batch and answers. It takes any function from a list of structures to a list of predictions. Nothing that is
not finite is ever sent: i-PI would carry on with it to the end of the run.
"""

import selectors
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import write

from mlffd.drivers.ipi_protocol import Answer, ProtocolError, Request, Session
from mlffd.errors import MlffdError

DUMP = "mlffd-driver-failed.xyz"
PATIENCE = 30.0  # s that a server may pause in the middle of a message
FAREWELL = 2.0  # s to wait for the server to notice that we leave

Evaluate = Callable[[list[Atoms]], list]  # returns one object with .energy .forces .virial a structure


class NoAnswer(MlffdError):
    """The student cannot answer, and i-PI must not get anything else."""

    exit_status = 3


class ServerGone(MlffdError):
    """The server closed the connection without EXIT, or was never there."""

    exit_status = 4


class Stopped(MlffdError):
    """SIGINT or SIGTERM arrived."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_status = 128 + number


@dataclass
class Tally:
    """What has been done so far; waiting counts from the first evaluation on."""

    evaluations: int = 0  # calls of the student
    structures: int = 0  # structures it evaluated
    repeats: int = 0  # structures answered with a copy of another one's result
    model_seconds: float = 0.0
    waiting_seconds: float = 0.0
    after_each: Callable[["Tally"], None] = field(default=lambda tally: None, repr=False)

    def count(self, n_evaluated: int, n_asked: int, seconds: float) -> None:
        """Adds one call of the student."""
        self.evaluations += 1
        self.structures += n_evaluated
        self.repeats += n_asked - n_evaluated
        self.model_seconds += seconds
        self.after_each(self)

    def waited(self, seconds: float) -> None:
        """Adds a wait for the server."""
        if self.evaluations:
            self.waiting_seconds += seconds


class Evaluator:
    """Turns requests into answers with one call of ``evaluate`` for all of them."""

    def __init__(self, template: Atoms, evaluate: Evaluate, tally: Tally | None = None):
        self.template = template
        self.evaluate = evaluate
        self.tally = tally or Tally()
        self._warm = set()

    def warm_up(self, n_structures: int) -> None:
        """Evaluates that many copies of the template in one batch, once for each number of them."""
        if n_structures not in self._warm:
            self.evaluate([self.template.copy() for _ in range(n_structures)])
            self._warm.add(n_structures)

    def __call__(self, requests: Sequence[Request]) -> list[Answer]:
        """One answer a request; repeated structures at the end of a request are answered, not evaluated.

        Raises NoAnswer, after writing the structures to a file, where the student refuses them or its
        result is not finite.
        """
        structures = [atoms for request in requests for atoms in self._distinct(request)]
        started = time.perf_counter()
        predictions = self._predict(structures)
        n_asked = sum(len(request.cells) for request in requests)
        self.tally.count(len(structures), n_asked, time.perf_counter() - started)
        remaining = iter(predictions)
        return [
            answer_of([next(remaining) for _ in range(request.n_distinct())], len(request.cells))
            for request in requests
        ]

    def _distinct(self, request: Request) -> list[Atoms]:
        structures = []
        for cell, positions in zip(request.cells, request.positions[: request.n_distinct()]):
            atoms = self.template.copy()
            if atoms.pbc.any():  # a molecule has no cell, whatever box i-PI puts around it
                atoms.cell = cell
                positions = wrapped(positions, cell, atoms.pbc)
            atoms.positions = positions
            structures.append(atoms)
        return structures

    def _predict(self, structures: list[Atoms]) -> list:
        try:
            predictions = self.evaluate(structures)
        except MlffdError as error:
            raise NoAnswer(f"{error}; {dump(structures)}") from error
        wrong = [k for k, prediction in enumerate(predictions) if not is_finite(prediction)]
        if wrong:
            of_all = f"{len(wrong)} of {len(structures)}"
            raise NoAnswer(f"{of_all} results are not finite; {dump([structures[k] for k in wrong])}")
        return predictions


def is_finite(prediction) -> bool:
    """Whether energy, forces and virial are free of NaN and infinity."""
    return all(np.isfinite(x).all() for x in (prediction.energy, prediction.forces, prediction.virial))


def wrapped(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """Positions (n_atoms, 3) moved by whole lattice vectors into the cell; directions without pbc stay.

    i-PI lets atoms drift for ever, and far from the origin float32 would be too coarse.
    """
    if not np.linalg.det(cell):
        return positions  # the student refuses such a cell
    fractional = np.linalg.solve(cell.T, positions.T).T
    return positions - np.floor(fractional)[:, pbc] @ cell[pbc]


def answer_of(predictions: list, n_structures: int) -> Answer:
    """The predictions as one answer for ``n_structures``, the last prediction repeated at the end."""
    predictions = predictions + [predictions[-1]] * (n_structures - len(predictions))
    return Answer(
        energies=np.array([prediction.energy for prediction in predictions], np.float64),
        forces=np.array([prediction.forces for prediction in predictions], np.float64),
        virials=np.array([prediction.virial for prediction in predictions], np.float64),
    )


def dump(structures: list[Atoms]) -> str:
    """Writes the structures for a look at them; says where."""
    write(DUMP, structures, format="extxyz")
    return f"see {Path(DUMP).resolve()}"


@dataclass(frozen=True)
class Address:
    """Where the server listens: a unix socket's path, or a host and port."""

    path: str = ""
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"

    def open(self, timeout: float) -> socket.socket:
        """A connected socket; OSError where there is none to be had."""
        if self.path:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.settimeout(timeout)
            try:
                sock.connect(self.path)
            except OSError:
                sock.close()
                raise
            return sock
        sock = socket.create_connection((self.host, self.port), timeout=timeout)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return sock


class StopSignal:
    """Remembers SIGINT or SIGTERM and wakes the loop; a second one interrupts at once."""

    def __init__(self):
        self.number = 0
        self._reader, self._writer = socket.socketpair()

    def install(self) -> None:
        """Takes over both signals; only the main thread may."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def fileno(self) -> int:
        """Readable once a signal has arrived."""
        return self._reader.fileno()

    def check(self) -> None:
        """Raises Stopped once a signal has arrived."""
        if self.number:
            raise Stopped(self.number)

    def _on_signal(self, number, frame) -> None:
        if self.number:
            raise KeyboardInterrupt
        self.number = number
        self._writer.send(b"\0")


class Connection:
    """A socket and the conversation on it."""

    def __init__(self, sock: socket.socket, session: Session):
        self.sock = sock
        self.session = session
        self.at_end = False
        sock.settimeout(PATIENCE)

    def fileno(self) -> int:
        """For selectors."""
        return self.sock.fileno()

    def receive(self) -> None:
        """Takes what has arrived; call when readable."""
        try:
            chunk = self.sock.recv(1 << 20)
        except (ConnectionError, TimeoutError):
            chunk = b""
        self.at_end = not chunk
        self.session.feed(chunk)

    def advance(self) -> None:
        """Answers what can be answered without an evaluation."""
        reply = self.session.advance()
        try:
            self.sock.sendall(reply)
        except (ConnectionError, TimeoutError):
            self._read_to_end()  # a server that leaves may have said so
        if self.at_end and not (self.session.finished or self.session.request):
            raise ServerGone("the server closed the connection without EXIT")

    def _read_to_end(self) -> None:
        while not self.at_end:
            self.receive()
        self.session.advance()

    def close(self) -> None:
        """Says goodbye and reads on for a moment. Closing with unread bytes would reset the connection, of
        which i-PI's poll thread dies, and then the run hangs for good."""
        deadline = time.monotonic() + FAREWELL
        try:
            self.sock.shutdown(socket.SHUT_WR)
            while (remaining := deadline - time.monotonic()) > 0 and not self.at_end:
                self.sock.settimeout(remaining)
                self.at_end = not self.sock.recv(1 << 20)
        except OSError:
            pass  # the other side was quicker
        self.sock.close()


def connect(address: Address, timeout: float, stop: StopSignal) -> socket.socket:
    """Tries until the server is there, for at most ``timeout`` seconds; then ServerGone."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            return address.open(timeout=max(timeout, 1.0))
        except (FileNotFoundError, ConnectionError, BlockingIOError, TimeoutError) as error:
            if time.monotonic() >= deadline:
                stale = " (left by a killed i-pi? then remove it)" if Path(address.path).is_socket() else ""
                raise ServerGone(f"no server at {address} after {timeout:g} s: {error}{stale}") from error
        except OSError as error:
            raise ServerGone(f"cannot connect to {address}: {error}") from error
        stop.check()
        time.sleep(0.1)


def serve(connections: Sequence[Connection], evaluator: Evaluator, stop: StopSignal | None = None) -> None:
    """Answers until every server has said EXIT.

    Raises ServerGone, ProtocolError, NoAnswer or Stopped. Closing the connections is left to the caller.
    """
    with selectors.DefaultSelector() as selector:
        if stop is not None:
            selector.register(stop, selectors.EVENT_READ)
        for connection in connections:
            selector.register(connection, selectors.EVENT_READ)
        active = list(connections)
        while active:
            started = time.perf_counter()
            receive(selector, active, PATIENCE)
            evaluator.tally.waited(time.perf_counter() - started)
            if stop is not None:
                stop.check()
            for connection in active:
                connection.advance()
                evaluator.warm_up(connection.session.batch_size)  # news only right after INIT
            answer_all(selector, active, evaluator)
            for connection in [c for c in active if c.session.finished]:
                selector.unregister(connection)
                active.remove(connection)


def receive(selector, connections: Sequence[Connection], patience: float) -> bool:
    """Waits for bytes and takes them; with a ``patience`` of 0 s only looks. Whether any arrived.

    A server may think as long as it likes, except in the middle of a message: after ``patience`` seconds
    there, ProtocolError.
    """
    mid_message = any(connection.session.mid_message for connection in connections)
    ready = selector.select(patience if mid_message or patience == 0 else None)
    if not ready and mid_message and patience:
        raise ProtocolError(f"the server paused for {patience:g} s in the middle of a message")
    arrived = [key.fileobj for key, _ in ready if isinstance(key.fileobj, Connection)]
    for connection in arrived:
        connection.receive()
    return bool(arrived)


def answer_all(selector, connections: Sequence[Connection], evaluator: Evaluator) -> None:
    """Evaluates what all connections ask for in one go, and goes on until none asks for more."""
    while asking := [connection for connection in connections if connection.session.request]:
        # an unread GETFORCE would turn our death, should it come now, into a hanging server
        while receive(selector, connections, 0) and not any(c.at_end for c in connections):
            pass
        answers = evaluator([connection.session.request for connection in asking])
        for connection, answer in zip(asking, answers):
            connection.session.answer(answer)
            connection.advance()
