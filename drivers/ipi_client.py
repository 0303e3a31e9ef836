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
import json
import re
import sys
import time
from pathlib import Path

import numpy as np
from ase import Atoms

from mlffd.drivers.ipi_loop import (
    Address,
    Connection,
    Evaluate,
    Evaluator,
    NoAnswer,
    ServerGone,
    Stopped,
    StopSignal,
    Tally,
    connect,
    serve,
)
from mlffd.drivers.ipi_protocol import ProtocolError, Session
from mlffd.drivers.structure_file import read_structure
from mlffd.errors import ConfigError, MlffdError
from mlffd.files import write_atomically
from mlffd.units import BOHR

STATUS_INTERVAL = 0.5  # s between two status lines


def say(line: str) -> None:
    """One line for the user, even where a status line stands."""
    clear = "\r\x1b[K" if sys.stderr.isatty() else ""
    print(f"{clear}mlffd-driver: {line}", file=sys.stderr, flush=True)


def read_template(path: str | Path, pbc: str | None = None) -> Atoms:
    """Species, periodicity and a first geometry from any structure file that ASE reads.

    The protocol carries neither species nor periodicity. ``pbc`` overrides the file's: the periodic
    directions as in "xyz" or "xy", or "none". i-PI's own xyz files, whose cell ASE skips, count as periodic.
    Raises ConfigError where there is no such file or no structure in it.
    """
    atoms = read_structure(path, f"template {path}")
    if not atoms.pbc.any() and Path(path).suffix == ".xyz":
        atoms = with_ipi_cell(atoms, Path(path).read_text().splitlines()[1])
    atoms = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    if pbc is not None:
        atoms.pbc = [letter in pbc.replace("none", "") for letter in "xyz"]
    if atoms.pbc.any() and not atoms.cell.rank == 3:
        raise ConfigError(f"template {path} has no cell of three vectors: give one, or --pbc none")
    return atoms


def with_ipi_cell(atoms: Atoms, comment: str) -> Atoms:
    """The structure with the cell of an i-PI comment line, and in Å; as it is where there is none."""
    found = re.search(r"CELL[\(\[\{]abcABC[\)\]\}]:((?:\s+[-+.\dEe]+){6})", comment)
    if found is None:
        return atoms
    lengths_and_angles = np.array(found.group(1).split(), float)
    lengths_and_angles[:3] *= 1.0 if "cell{angstrom}" in comment else BOHR
    scale = 1.0 if "positions{angstrom}" in comment else BOHR
    return Atoms(atoms.numbers, atoms.positions * scale, cell=lengths_and_angles, pbc=True)


def summary(tally: Tally) -> str:
    """The tally in one line."""
    n = max(tally.evaluations, 1)
    seconds = tally.model_seconds + tally.waiting_seconds
    rate = tally.evaluations / seconds if seconds else 0.0
    repeats = f" ({tally.repeats} repeats not evaluated)" if tally.repeats else ""
    return (
        f"{tally.evaluations} evaluations of {tally.structures} structures{repeats}, {rate:.1f}/s: "
        f"{1e3 * tally.model_seconds / n:.2f} ms in the student, "
        f"{1e3 * tally.waiting_seconds / n:.2f} ms waiting for i-PI each"
    )


class StatusLine:
    """Keeps the summary so far on the last line of a terminal."""

    def __init__(self):
        self.shown_at = 0.0

    def __call__(self, tally: Tally) -> None:
        """Called after each evaluation; writes at most twice a second."""
        now = time.monotonic()
        if now - self.shown_at > STATUS_INTERVAL:
            self.shown_at = now
            print(f"\r\x1b[K{summary(tally)}", end="", file=sys.stderr, flush=True)


def write_report(path: str | Path, tally: Tally, facts: dict) -> None:
    """The tally and more facts as JSON; the file is complete or not there."""
    counts = {name: value for name, value in vars(tally).items() if not callable(value)}
    write_atomically(Path(path), json.dumps({**facts, **counts}, indent=1) + "\n")


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
    evaluator.warm_up(1)
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
