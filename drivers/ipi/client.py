# SPDX-License-Identifier: MIT
"""``mlffd-driver``: serves the forces of a student to i-PI over a socket.

    i-pi ipi_inputs/nvt.xml &
    mlffd-driver water --template ipi_inputs/water64.xyz --unix mlffd-water

One process, one connection, one batched evaluation for all the beads that the server sends at once. The
student is loaded and has answered once before anything is connected.

Exit status: 0 after the server's EXIT, 1 wrong input, 3 no usable answer from the student, 4 server gone or
never there, 5 not an i-PI server or not this system, 130 and 143 after SIGINT and SIGTERM.
"""

import argparse
import sys
import time
from pathlib import Path

from ase import Atoms

from mlffd.drivers.ipi.evaluator import Evaluate, Evaluator, NoAnswer
from mlffd.drivers.ipi.loop import Address, Connection, ServerGone, Stopped, StopSignal, connect, serve
from mlffd.drivers.ipi.protocol import ProtocolError, Session
from mlffd.drivers.ipi.report import StatusLine, Tally, say, summary, write_report
from mlffd.drivers.ipi.template import read_template
from mlffd.errors import MlffdError


def drive(
    template: Atoms,
    evaluate: Evaluate,
    address: Address,
    connect_timeout: float = 60.0,
    verbose: bool = False,
    report: str | Path | None = None,
    facts: dict | None = None,
) -> int:
    """Serves from warm-up to the closing summary; returns the exit status. For the main thread: it takes over
    SIGINT and SIGTERM.

    ``evaluate`` turns a list of structures into one object with energy (eV), forces (n_atoms, 3) (eV/Å) and
    virial (3, 3) (eV, -dE/dstrain) each, and may raise MlffdError. ``facts`` go into the report.
    """
    tally = Tally(after_each=StatusLine()) if sys.stderr.isatty() else Tally()
    started = time.perf_counter()
    exit_status, ending = 0, "the server said EXIT"
    try:
        converse(template, Evaluator(template, evaluate, tally), address, connect_timeout, verbose)
    except (NoAnswer, ServerGone, ProtocolError, Stopped) as error:
        exit_status, ending = error.exit_status, str(error)
    say(ending)
    if tally.evaluations:
        say(summary(tally))
    if report is not None:
        facts = {**(facts or {}), "n_atoms": len(template), "wall_seconds": time.perf_counter() - started}
        write_report(report, tally, {**facts, "exit_status": exit_status, "ending": ending})
    return exit_status


def converse(
    template: Atoms, evaluator: Evaluator, address: Address, connect_timeout: float, verbose: bool
) -> None:
    """Warms up, connects, serves, and closes in good order whatever happens."""
    stop = StopSignal()
    stop.install()
    evaluator.warm_up()
    periodic = "".join(letter for letter, is_periodic in zip("xyz", template.pbc) if is_periodic)
    say(f"{template.get_chemical_formula()}, periodic directions: {periodic or 'none'}; calling {address}")
    connection = Connection(connect(address, connect_timeout, stop), Session({len(template)}))
    if verbose:
        connection.session.on_message = say
    try:
        serve([connection], evaluator, stop)
    finally:
        connection.close()


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="mlffd-driver",
        description="Serves the forces of a student to i-PI over a socket.",
        epilog="exit status: 0 after EXIT, 1 wrong input, 3 no usable answer from the student, "
        "4 server gone or never there, 5 not an i-PI server or not this system",
    )
    parser.add_argument("bundle", help="a student: a .mlffd file, or the name of a shipped one such as water")
    parser.add_argument(
        "-t", "--template", required=True, metavar="FILE", help="structure with the atoms in i-PI's order"
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("-u", "--unix", metavar="NAME", help="the <address> of <ffsocket mode='unix'>")
    where.add_argument("--host", help="the <address> of <ffsocket mode='inet'>")
    parser.add_argument("--port", type=int, default=31415, help="its <port> (default %(default)s)")
    parser.add_argument(
        "--socket-prefix", default="/tmp/ipi_", help="what i-pi -S was given (default %(default)s)"
    )
    parser.add_argument(
        "--pbc", metavar="xyz|none|...", type=periodic_directions, help="instead of the template's"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default %(default)s)")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    parser.add_argument("--connect-timeout", type=float, default=60.0, metavar="S", help="wait for i-PI (60)")
    parser.add_argument("--report", metavar="FILE", help="write the closing summary as JSON")
    parser.add_argument("-v", "--verbose", action="store_true", help="print every message that arrives")
    return parser


def periodic_directions(text: str) -> str:
    """An argparse type: "none", or some of the letters x, y and z."""
    if text != "none" and not (text and set(text) <= set("xyz")):
        raise argparse.ArgumentTypeError(f"{text!r} is not some of x, y, z, or none")
    return text


def main(argv: list[str] | None = None) -> int:
    """The console script."""
    options = parser().parse_args(argv)
    path = f"{options.socket_prefix}{options.unix}" if options.unix else ""
    try:
        template = read_template(options.template, options.pbc)
        from mlffd.engine import Engine  # late: importing torch takes seconds

        engine = Engine(options.bundle, device=options.device, dtype=options.dtype)
        return drive(
            template,
            engine.evaluate,
            Address(path=path, host=options.host or "", port=options.port),
            connect_timeout=options.connect_timeout,
            verbose=options.verbose,
            report=options.report,
            facts={"bundle": options.bundle, "device": options.device, "dtype": options.dtype},
        )
    except MlffdError as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        say("interrupted")
        return 130


if __name__ == "__main__":
    sys.exit(main())
