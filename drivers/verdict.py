# SPDX-License-Identifier: MIT
"""What a student's fidelity report says of it, in one line when a driver loads the student.

Once in a process, on rank 0 only; not at all with MLFFD_VERDICT=off.
"""

import os
import sys
from collections.abc import Callable

from mlffd.drivers.lammps_ranks import rank_and_size
from mlffd.engine import Engine

_said: set[str] = set()  # lines: a student that is loaded again is no news


def verdict_to_say(engine: Engine) -> str:
    """The line; empty where it has been said, where there is no bundle, or where nobody wants to know."""
    line = engine.verdict
    if line in _said or os.environ.get("MLFFD_VERDICT") == "off":
        return ""
    _said.add(line)
    return line


def print_line(line: str) -> None:
    """To standard error, where there is one."""
    if sys.stderr is not None:
        print(f"mlffd: {line}", file=sys.stderr, flush=True)


def say_verdict(engine: Engine, say: Callable[[str], None] = print_line) -> None:
    """Say the line, if there is one, on rank 0."""
    line = verdict_to_say(engine)
    if line and rank_and_size()[0] == 0:
        say(line)


def in_ascii(line: str) -> str:
    """For logs of programs that know no other letters."""
    return line.replace("Å", "A").replace("µ", "u").encode("ascii", "replace").decode()
