# SPDX-License-Identifier: MIT
"""``mlffd-driver``: serves the forces of a student to i-PI over a socket.

    i-pi ipi_inputs/nvt.xml &
    mlffd-driver water --template ipi_inputs/water64.xyz --unix mlffd-water

One process, one connection, one batched evaluation for all the beads that the server sends at once. The
student is loaded and has answered before anything is connected.

Exit status: 0 after the server's EXIT, 1 wrong input, 3 no usable answer from the student, 4 server gone or
never there, 5 not an i-PI server or not this system, 130 and 143 after SIGINT and SIGTERM.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ase import Atoms

from mlffd.drivers.ipi.committee import committee_extras
from mlffd.drivers.ipi.evaluator import Evaluate, Evaluator, NoAnswer
from mlffd.drivers.ipi.loop import (
    ATTEMPT,
    RETRY_INTERVAL,
    Address,
    Connection,
    ServerGone,
    Stopped,
    StopSignal,
    attempt,
    close,
    connect,
    serve,
)
from mlffd.drivers.ipi.protocol import ProtocolError, Session
from mlffd.drivers.ipi.report import (
    StatusLine,
    Tally,
    check_writable,
    open_standard_streams,
    run_facts,
    say,
    summary,
    write_report,
)
from mlffd.drivers.ipi.template import read_templates
from mlffd.errors import ConfigError, MlffdError

CONNECT_TIMEOUT = 60.0  # s


def drive(
    templates: Atoms | Sequence[Atoms],
    evaluate: Evaluate,
    address: Address | Sequence[Address],
    connect_timeout: float = CONNECT_TIMEOUT,
    verbose: bool = False,
    report: str | Path | None = None,
    facts: dict | None = None,
    *,
    n_connections: int = 1,
    persist: bool = False,
    extras: Callable[[object], str] | None = None,
    tally: Tally | None = None,
) -> int:
    """Serves from warm-up to the closing summary; returns the exit status. For the main thread: it takes over
    SIGINT and SIGTERM.

    Args:
        templates, evaluate, tally, extras: see ``Evaluator``.
        address: of the server; of each of its force fields, where there are several systems in one run.
        connect_timeout: s to wait for a server; may be infinite.
        verbose: print every message that arrives.
        report: write the closing summary to this file, as JSON.
        facts: go into the report.
        n_connections: to each address, all of them served by one evaluation at a time.
        persist: serve the next server when one has gone.
    """
    tally = tally or Tally(after_each=StatusLine())
    evaluator = Evaluator(templates, evaluate, tally, extras)
    addresses = [address] if isinstance(address, Address) else list(address)
    tally.n_systems = len(addresses)
    client = Client(evaluator, addresses, connect_timeout, n_connections, verbose)
    started = time.perf_counter()
    exit_status, ending = 0, "the server said EXIT"
    try:
        client.run(persist)
    except (NoAnswer, ServerGone, ProtocolError, Stopped) as error:
        exit_status, ending = error.exit_status, str(error)
    say(ending)
    if tally.evaluations:
        say(summary(tally))
    if report is not None:
        n_atoms = sorted(evaluator.atom_counts)
        facts = {**(facts or {}), "n_atoms": n_atoms[0] if len(n_atoms) == 1 else n_atoms}
        facts["wall_seconds"] = time.perf_counter() - started
        write_report(report, tally, {**facts, "exit_status": exit_status, "ending": ending})
    return exit_status


class Client:
    """What all connections to a server have in common."""

    def __init__(
        self,
        evaluator: Evaluator,
        addresses: list[Address],
        connect_timeout: float,
        n_connections: int,
        verbose: bool,
    ):
        self.evaluator = evaluator
        self.addresses = addresses
        self.connect_timeout = connect_timeout
        self.n_connections = n_connections
        self.verbose = verbose
        self.stop = StopSignal()
        self.connections: list[Connection] = []

    def run(self, persist: bool) -> None:
        """Warms up, then serves one server, or one after the other until a signal arrives.

        Raises what ``serve`` and ``connect`` raise.
        """
        self.stop.install()
        self.evaluator.warm_up()
        where = " and ".join(map(str, self.addresses))
        say(f"{'; '.join(map(describe, self.evaluator.templates.values()))}; calling {where}")
        while True:
            ending = "the server said EXIT"
            try:
                self.serve()
            except ServerGone as error:
                if not (persist and self.connections):  # without a connection there was none in time
                    raise
                ending = str(error)
            if not persist:
                return
            self.stop.check()
            if self.connections[0].session.greeted:  # else it was a server that was leaving already
                say(f"{ending}; waiting for the next one at {where}")
            time.sleep(RETRY_INTERVAL)

    def serve(self) -> None:
        """Serves one server until it has gone, and closes in good order whatever happens."""
        self.connections = []
        self.evaluator.expect_another_server()
        try:
            for address in self.addresses:
                sock = connect(address, self.connect_timeout)
                self.connections.append(self.connection(sock, address))
            n_connections = self.n_connections * len(self.addresses)
            serve(self.connections, self.evaluator, self.stop, self.another, n_connections)
        finally:
            with self.stop.held():  # else a signal would take the place of what has gone wrong
                close(self.connections)

    def another(self) -> Connection | None:
        """One more connection, if it is to be had at once. i-PI does one handshake after the other: one more
        would only fill its short queue."""
        for address in self.addresses:
            there = [connection for connection in self.connections if connection.address == address]
            if len(there) < self.n_connections and all(connection.session.greeted for connection in there):
                sock = attempt(address, ATTEMPT)
                if sock is not None:
                    return self.connection(sock, address)
        return None

    def connection(self, sock, address: Address) -> Connection:
        """The conversation on a new socket."""
        session = Session(self.evaluator.atom_counts)
        if self.verbose:
            session.on_message = say
        return Connection(sock, session, address)


def describe(template: Atoms) -> str:
    """What is about to be served, as the user gave it."""
    periodic = "".join(letter for letter, is_periodic in zip("xyz", template.pbc) if is_periodic)
    return f"{template.get_chemical_formula()}, periodic directions: {periodic or 'none'}"


class Parser(argparse.ArgumentParser):
    """Wrong words are wrong input like any other: one line, and the exit status that goes with it."""

    def error(self, message: str):
        """Ends the program."""
        say(f"{message}; see mlffd-driver --help")
        sys.exit(1)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(
        prog="mlffd-driver",
        description="Serves the forces of a student to i-PI over a socket: all beads that i-PI sends at once "
        "are evaluated in one batch. Start it before or after i-pi.",
        epilog="exit status: 0 after EXIT, 1 wrong input, 3 no usable answer from the student (the structure "
        "is written to a file), 4 server gone or never there, 5 not an i-PI server or not this system, "
        "130 and 143 after SIGINT and SIGTERM",
    )
    add = parser.add_argument_group("what to serve").add_argument
    add(
        "bundle", nargs="+",
        help="a student: a .mlffd file, or the name of a shipped one such as water; several are a committee, "
        "which answers with the mean",
    )  # fmt: skip
    add(
        "-t", "--template", required=True, action="append", metavar="FILE",
        help="structure with the atoms in i-PI's order; once for each system of the run",
    )  # fmt: skip
    add("--pbc", metavar="xyz|none|...", help="instead of the template's")
    add(
        "--extras", action="store_true",
        help="send energies, forces and virials of all members of the committee, for <ffcommittee> with "
        "<parse_json>True</parse_json>",
    )  # fmt: skip

    add = parser.add_argument_group("where i-PI listens").add_argument
    add(
        "-u", "--unix", action="append", metavar="NAME",
        help="the <address> of <ffsocket mode='unix'>; once for each system of the run",
    )  # fmt: skip
    add("--host", help="the <address> of <ffsocket mode='inet'>")
    add("--port", type=whole_number, default=31415, help="its <port> (default %(default)s)")
    add("--socket-prefix", default="/tmp/ipi_", help="what i-pi -S was given (default %(default)s)")
    add(
        "-n", "--connections", type=whole_number, default=1, metavar="N",
        help="connections, for servers that send no batches: as many as there are beads; before i-PI 3.3 a "
        "divisor of it does too, with matching='lock' i-PI would wait for ever; with <batch_size> leave it "
        "at 1 (default %(default)s)",
    )  # fmt: skip
    add(
        "--connect-timeout", type=seconds, metavar="S",
        help=f"give up after so long without a server (default {CONNECT_TIMEOUT:g}; with --persist: never)",
    )  # fmt: skip
    add(
        "--persist", action="store_true",
        help="when a server has gone wait for the next one, until SIGINT or SIGTERM; an unusable answer or a "
        "server for another system still ends the driver",
    )  # fmt: skip

    add = parser.add_argument_group("how to compute").add_argument
    add("--device", default="cpu", help="cpu, cuda, cuda:1 (default %(default)s)")
    add("--dtype", default="float32", choices=["float32", "float64"], help="(default %(default)s)")
    add(
        "--max-batch-atoms", type=whole_number, metavar="N",
        help="evaluate up to so many atoms in one go (default: found out at the start)",
    )  # fmt: skip

    add(
        "--guard", choices=["warn", "stop", "collect", "off"],
        help="what to do where the student leaves what it was trained on: warn (default), stop, or collect "
        "frames in guard.extxyz; of a committee the first student counts; goes before MLFFD_GUARD",
    )  # fmt: skip

    add = parser.add_argument_group("what to tell").add_argument
    add("--timestep", type=positive, metavar="FS", help="for ns/day, where i-PI's <parameters> do not say it")
    add("--beads", type=whole_number, metavar="N", help="for steps/s, likewise")
    add("--report", metavar="FILE", help="write the closing summary as JSON")
    add("-v", "--verbose", action="store_true", help="print every message that arrives")
    return parser


def whole_number(text: str) -> int:
    """An argparse type: 1, 2, 3, ..."""
    if not (text.isascii() and text.isdecimal()) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def seconds(text: str) -> float:
    """An argparse type: 0 or more."""
    if not as_number(text) >= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return float(text)


def positive(text: str) -> float:
    """An argparse type: above 0 and finite."""
    if not 0 < as_number(text) < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return float(text)


def as_number(text: str) -> float:
    """NaN where it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def addresses_of(options) -> list[Address]:
    """Where the options say that the server listens."""
    names = options.unix or []
    if bool(names) == bool(options.host) or not all(names):
        parser().error("say where i-PI listens: -u NAME, or --host HOST and --port PORT")
    if names:
        return [Address(path=f"{options.socket_prefix}{name}") for name in dict.fromkeys(names)]
    return [Address(host=options.host, port=options.port)]


def templates_of(options, n_addresses: int) -> list[Atoms]:
    """One a system. ConfigError where they share an <ffsocket>: as many atoms of each system as the first one
    there has are what i-PI sends then, if it does not break down."""
    templates = read_templates(options.template, options.pbc)
    if len(templates) > n_addresses:
        raise ConfigError(
            f"{len(templates)} systems and {n_addresses} address: i-PI cannot have systems of different "
            "sizes on one <ffsocket>; give each one of its own, and name them all with -u"
        )
    return templates


def main(argv: list[str] | None = None) -> int:
    """The console script."""
    open_standard_streams()
    options = parser().parse_args(argv)
    StopSignal().install()
    try:
        return run(options)
    except MlffdError as error:
        say(str(error))
        return 1
    except Stopped as stopped:
        say(str(stopped))
        return stopped.exit_status


def run(options) -> int:
    """Loads what the options name, and drives."""
    addresses = addresses_of(options)
    templates = templates_of(options, len(addresses))
    if options.report is not None:
        check_writable(options.report)
    from mlffd.drivers.ipi.students import answering, load_engines  # late: importing torch takes seconds

    how = options.device, options.dtype, options.max_batch_atoms
    engines = load_engines(options.bundle, templates, *how)
    return drive(
        templates,
        answering(engines, options.bundle, options.guard),
        addresses,
        connect_timeout_of(options),
        options.verbose,
        options.report,
        run_facts(options.bundle, engines[0]),
        n_connections=options.connections,
        persist=options.persist,
        extras=committee_extras if options.extras else None,
        tally=Tally(options.timestep, options.beads, after_each=StatusLine()),
    )


def connect_timeout_of(options) -> float:
    """In s; a daemon waits as long as it takes."""
    if options.connect_timeout is not None:
        return options.connect_timeout
    return math.inf if options.persist else CONNECT_TIMEOUT


if __name__ == "__main__":
    sys.exit(main())
