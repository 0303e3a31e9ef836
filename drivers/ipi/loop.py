# SPDX-License-Identifier: MIT
"""The loop between i-PI and a student: sockets in, batches to evaluate out.

``serve`` talks with a server on any number of connections, and evaluates in one batch all that it asks for at
one time. Where more may come meanwhile, the student computes in a thread of its own and all sockets are
drained, since i-PI drops a client that has not taken a message within 0.1 s, and hangs where one dies and
leaves bytes unread.
"""

import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mlffd.drivers.ipi.evaluator import Evaluator
from mlffd.drivers.ipi.protocol import Answer, ProtocolError, Session
from mlffd.drivers.ipi.report import say
from mlffd.errors import ConfigError, MlffdError

PATIENCE = 30.0  # s that a server may pause in the middle of a message
GATHERING = 1e-3  # s without news after which a wave of requests has come; i-PI's next takes less than 0.3 ms
SILENCE = 60.0  # s without a word from the server, of which the user is then told
FAREWELL = 2.0  # s to wait for the server to notice that we leave
RETRY_INTERVAL = 0.1  # s between two attempts to connect
ATTEMPT = 0.05  # s that an attempt to open one more connection may keep the others waiting
SAID_AT_SIGNAL = b"\nmlffd-driver: stopping after this evaluation; at once at the next signal\n"
LONGEST_PATH = 107  # bytes of a unix socket's path


class ServerGone(MlffdError):
    """The server closed the connection without EXIT, or was never there."""

    exit_status = 4


class Stopped(KeyboardInterrupt):
    """SIGINT or SIGTERM arrived."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_status = 128 + number


@dataclass(frozen=True)
class Address:
    """Where the server listens: a unix socket's path, or a host and port. ConfigError where nothing can."""

    path: str = ""
    host: str = ""
    port: int = 0

    def __post_init__(self):
        if len(os.fsencode(self.path)) > LONGEST_PATH:
            raise ConfigError(
                f"{self.path} is no name of a unix socket: it has more than {LONGEST_PATH} bytes"
            )
        if not self.path and not 0 < self.port < 2**16:
            raise ConfigError(f"{self.port} is no port: ports are 1 to {2**16 - 1}")

    def __str__(self) -> str:
        return self.path or (f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}")

    def open(self, timeout: float) -> socket.socket:
        """A connected socket; OSError where there is none to be had."""
        if not self.path:
            sock = socket.create_connection((self.host, self.port), timeout=timeout)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            return sock
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(timeout)
        try:
            sock.connect(self.path)
        except OSError:
            sock.close()
            raise
        return sock


class StopSignal:
    """SIGINT and SIGTERM raise Stopped; while ``deferred``, the first one is remembered and wakes the loop,
    and a second one ends the process at once; while ``held``, they are remembered."""

    def __init__(self):
        self.number = 0
        self.evaluating = False
        self._deferred = self._held = False
        self._reader, self._writer = socket.socketpair()

    def install(self) -> None:
        """Takes over both signals; only the main thread may."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """For the time in which an evaluation may be going on."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        self.check()

    @contextmanager
    def held(self) -> Iterator[None]:
        """For a moment that ends by itself and must not be cut short."""
        self._held = True
        try:
            yield
        finally:
            self._held = False

    def fileno(self) -> int:
        """Readable once a signal has been remembered."""
        return self._reader.fileno()

    def check(self) -> None:
        """Raises Stopped if a signal has been remembered."""
        if self.number:
            raise Stopped(self.number)

    def _on_signal(self, number, frame) -> None:
        if not (self._deferred or self._held):
            raise Stopped(number)
        if self.number and not self._held:
            os._exit(128 + number)  # an evaluation, in whichever thread, would hold up any other exit
        self.number = number
        self._writer.send(b"\0")
        if self.evaluating and not self._held:
            with suppress(OSError):  # no print: what was interrupted may be in the middle of one
                os.write(2, SAID_AT_SIGNAL)


class Connection:
    """A socket and the conversation on it. Neither reading nor writing waits."""

    def __init__(self, sock: socket.socket, session: Session, address: Address | None = None):
        self.sock = sock
        self.session = session
        self.address = address
        self.at_end = False
        self.arrived_at = time.monotonic()  # when the latest bytes came
        self._incoming = memoryview(bytearray(1 << 18))  # kept: a new one takes time
        self._outgoing = bytearray()
        sock.setblocking(False)

    def fileno(self) -> int:
        """For selectors."""
        return self.sock.fileno()

    def awaits(self) -> int:
        """The selector's events to wait for; 0 once the server has closed the connection."""
        if self.at_end:
            return 0
        return selectors.EVENT_READ | (selectors.EVENT_WRITE if self._outgoing else 0)

    def receive(self) -> None:
        """Takes what has arrived."""
        try:
            n_bytes = self.sock.recv_into(self._incoming)
        except BlockingIOError:
            return
        except OSError:  # reset, or given up by TCP
            n_bytes = 0
        self.at_end = n_bytes == 0
        self.arrived_at = time.monotonic()
        self.session.feed(self._incoming[:n_bytes])

    def advance(self) -> None:
        """Answers what can be answered without an evaluation."""
        self._outgoing += self.session.advance()
        self.send()

    def send(self) -> None:
        """Sends as much of what is due as the socket takes."""
        try:
            while self._outgoing:
                del self._outgoing[: self.sock.send(self._outgoing)]
        except BlockingIOError:
            pass
        except OSError:  # a server that leaves may have said so: what it sent is still to be read
            self._outgoing.clear()

    def leave(self) -> None:
        """Sends as much of the rest as the socket takes; after the last, says that no more will come."""
        self.send()
        if not self._outgoing:
            with suppress(OSError):  # the other side was quicker
                self.sock.shutdown(socket.SHUT_WR)


def close(connections: Sequence[Connection]) -> None:
    """Says goodbye and reads on for a moment. Closing with unread bytes would reset a connection, of which
    i-PI's poll thread dies, and then the run hangs for good."""
    deadline = time.monotonic() + FAREWELL
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            selector.register(connection, selectors.EVENT_READ | selectors.EVENT_WRITE)
        while selector.get_map() and (remaining := deadline - time.monotonic()) > 0:
            for key, events in selector.select(remaining):
                connection = key.fileobj
                if events & selectors.EVENT_WRITE:
                    connection.leave()
                if events & selectors.EVENT_READ:
                    connection.receive()
                if connection.at_end:
                    selector.unregister(connection)
                else:
                    selector.modify(connection, connection.awaits())
    for connection in connections:
        connection.sock.close()


def connect(address: Address, timeout: float) -> socket.socket:
    """Tries until the server is there, for at most ``timeout`` seconds; then ServerGone."""
    deadline = time.monotonic() + timeout
    while (sock := attempt(address, max(1.0, min(timeout, PATIENCE)))) is None:
        if time.monotonic() >= deadline:
            stale = " (left by a killed i-pi? then remove it)" if Path(address.path).is_socket() else ""
            raise ServerGone(f"no server at {address} after {timeout:g} s{stale}")
        time.sleep(RETRY_INTERVAL)
    return sock


def attempt(address: Address, timeout: float) -> socket.socket | None:
    """One attempt to connect; None where nobody listens. ServerGone where trying again would not help."""
    try:
        return address.open(timeout)
    except (FileNotFoundError, ConnectionError, BlockingIOError, TimeoutError):
        return None
    except OSError as error:
        raise ServerGone(f"cannot connect to {address}: {error.strerror or error}") from error


def serve(
    connections: list[Connection],
    evaluator: Evaluator,
    stop: StopSignal | None = None,
    another: Callable[[], Connection | None] = lambda: None,
    n_connections: int = 1,
) -> None:
    """Answers until the server has said EXIT on every connection.

    Up to ``n_connections``, ``another`` is asked for one more again and again; None means not now. They are
    appended to ``connections``, whose closing is left to the caller.

    Raises ServerGone, ProtocolError, NoAnswer or Stopped.
    """
    stop = stop or StopSignal()
    loop = Loop(connections, evaluator, stop, another, n_connections)
    with stop.deferred(), loop.selector, loop.evaluated, loop.wake, loop.worker:
        loop.run()


class Loop:
    """The connections to one server, and the evaluation in progress, if any."""

    def __init__(self, connections, evaluator, stop, another, n_connections):
        """See ``serve``."""
        self.connections = connections
        self.evaluator = evaluator
        self.stop = stop
        self.another = another
        self.n_connections = n_connections
        self.selector = selectors.DefaultSelector()
        self.worker = ThreadPoolExecutor(1, "student")
        self.evaluation: Future | None = None
        self.asking: list[Connection] = []  # those whose requests are being evaluated
        self.introduced = False  # the server's parameters are known
        self.answered_at = time.monotonic()
        self.has_told_of_silence = False
        self.evaluated, self.wake = socket.socketpair()
        self.selector.register(self.evaluated, selectors.EVENT_READ)
        self.selector.register(stop, selectors.EVENT_READ)

    @property
    def active(self) -> list[Connection]:
        """The connections on which the server has not said EXIT."""
        return [connection for connection in self.connections if not connection.session.finished]

    def run(self) -> None:
        """Until no connection is active."""
        while self.active:
            self.open_another()
            active = self.active  # with the new one: what it receives is answered before the next wait
            self.wait(active)
            for connection in active:
                connection.advance()
            if self.evaluation is not None and self.evaluation.done():
                self.hand_out(self.evaluation.result())
            self.check(active)
            if self.evaluation is None:
                self.stop.check()
                self.tell_of_silence(active)
                self.evaluate(active)

    def open_another(self) -> None:
        """Opens one more connection where it is time for it."""
        if len(self.connections) < self.n_connections:
            connection = self.another()
            if connection is not None:
                self.connections.append(connection)

    def wait(self, active: list[Connection]) -> None:
        """Returns after something has been received, sent or evaluated, or when it is time for something."""
        for connection in self.connections:
            self.watch(connection)
        started = time.perf_counter()
        for key, events in self.selector.select(self.patience(active)):
            if key.fileobj is self.evaluated:
                self.evaluated.recv(1)
            elif key.fileobj is self.stop:
                self.selector.unregister(self.stop)  # seen: it stays readable
            elif isinstance(key.fileobj, Connection) and events & selectors.EVENT_READ:
                key.fileobj.receive()
        if self.evaluation is None:
            self.evaluator.tally.waited(time.perf_counter() - started)

    def watch(self, connection: Connection) -> None:
        """Has the selector watch for what the connection waits for."""
        watched = self.selector.get_map().get(connection)
        if not connection.awaits():
            if watched:
                self.selector.unregister(connection)
        elif watched is None:
            self.selector.register(connection, connection.awaits())
        elif watched.events != connection.awaits():
            self.selector.modify(connection, connection.awaits())

    def patience(self, active: list[Connection]) -> float | None:
        """How long nothing may happen, in s; None for any time."""
        times = []
        if any(connection.session.mid_message for connection in active):
            times.append(PATIENCE)
        if self.evaluation is None and any(connection.session.request for connection in active):
            times.append(GATHERING)
        if len(self.connections) < self.n_connections:
            times.append(RETRY_INTERVAL)
        if self.evaluation is None and not self.has_told_of_silence:
            times.append(SILENCE)
        return min(times, default=None)

    def tell_of_silence(self, active: list[Connection]) -> None:
        """Once: the server may wait for something as well."""
        latest = max([self.answered_at, *(connection.arrived_at for connection in active)])
        if not self.has_told_of_silence and time.monotonic() - latest > SILENCE:
            self.has_told_of_silence = True
            say(
                f"no word from the server for {SILENCE:g} s, waiting on; with matching='lock' i-PI begins "
                "when there are as many connections (-n) as beads"
            )

    def check(self, active: list[Connection]) -> None:
        """Raises ServerGone or ProtocolError where no more can be expected; takes in what INIT has said."""
        for connection in active:
            session = connection.session
            if session.initialized and not self.introduced:
                self.introduced = True
                self.evaluator.tally.learn(session.parameters, session.batch_size)
            if connection.at_end and not session.greeted and len(active) > 1:
                self.forget(connection)  # the server has not taken it; the others know the rest
            elif connection.at_end and not (session.finished or session.request):
                raise ServerGone("the server closed the connection without EXIT")
            if session.mid_message and time.monotonic() - connection.arrived_at > PATIENCE:
                paused = f"the server paused for {PATIENCE:g} s in the middle of a message"
                raise ProtocolError(f"{paused}: {session.why_unfinished()}")

    def forget(self, connection: Connection) -> None:
        """Closes one connection. The next may get its file descriptor, which nobody must watch then."""
        if connection in self.selector.get_map():
            self.selector.unregister(connection)
        self.connections.remove(connection)
        connection.sock.close()

    def evaluate(self, active: list[Connection]) -> None:
        """Evaluates all that is asked for, or begins to, unless more is about to be asked for."""
        asking = [connection for connection in active if connection.session.request]
        if not asking or any(connection.session.mid_message for connection in active):
            return
        greeted = [connection for connection in active if connection.session.greeted]
        latest = max(connection.arrived_at for connection in greeted)
        if len(asking) < len(greeted) and time.monotonic() - latest < GATHERING:
            return
        self.asking = asking
        self.stop.evaluating = True
        requests = [connection.session.request for connection in asking]
        if len(active) == self.n_connections and all(c.session.awaits_answer for c in active):
            self.hand_out(self.evaluator(requests))  # nothing to drain; a thread would cost 0.1 ms
            return
        self.evaluation = self.worker.submit(self.evaluator, requests)
        self.evaluation.add_done_callback(lambda evaluation: self.wake.send(b"\0"))

    def hand_out(self, answers: list[Answer]) -> None:
        """Sends the answers to those who are asking."""
        self.evaluation, self.stop.evaluating, self.answered_at = None, False, time.monotonic()
        for connection, answer in zip(self.asking, answers):
            connection.session.answer(answer)
            connection.advance()
