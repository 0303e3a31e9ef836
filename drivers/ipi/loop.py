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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlffd.drivers.ipi.evaluator import Evaluator
from mlffd.drivers.ipi.protocol import ProtocolError, Session
from mlffd.errors import MlffdError

PATIENCE = 30.0  # s that a server may pause in the middle of a message
FAREWELL = 2.0  # s to wait for the server to notice that we leave


class ServerGone(MlffdError):
    """The server closed the connection without EXIT, or was never there."""

    exit_status = 4


class Stopped(MlffdError):
    """SIGINT or SIGTERM arrived."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_status = 128 + number


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
