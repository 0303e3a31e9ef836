# SPDX-License-Identifier: MIT
"""``mlffd lammps run --fix external`` for tests, with the stock LAMMPS as a library."""

from pathlib import Path

from lammps_process import SCRIPTS, Finished, run_limited
from plugin_process import STOCK, needs

MODULE = STOCK.parent / "lib"  # of the virtual environment that has the stock package lammps


def run_fix(
    script: str | Path,
    folder: Path,
    ranks: int = 1,
    time_limit: float = 120.0,
    options: tuple[str, ...] = (),
    environment: tuple[str, ...] = (),
    **variables,
) -> Finished:
    """Run an input, its text or its path, in ``folder``; ``environment`` holds settings NAME=VALUE."""
    needs()
    (packages,) = MODULE.glob("python3*/site-packages")
    if not isinstance(script, Path):
        (folder / "in.test").write_text(script)
        script = folder / "in.test"
    command = ["env", f"PYTHONPATH={packages}", *environment]
    command += [SCRIPTS / "mpiexec", "-n", str(ranks)] if ranks > 1 else []
    command += [SCRIPTS / "mlffd", "lammps", "run", script, "--fix", "external", *options]
    for name, value in variables.items():
        command += ["-var", name, str(value)]
    return run_limited(command, folder, time_limit)
