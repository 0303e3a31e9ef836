# SPDX-License-Identifier: MIT
"""Asks a LAMMPS program what it does not say by itself: which mpiexec starts it, which Python is inside, and
whether it has faults that are known of upstream's sources."""

import json
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

from mlffd.drivers.lammps_program import Finished, LammpsFacts, LammpsProgram, mpiexecs

LOADS_OBJECTS = 20250612  # the first release whose ML-IAP calls torch.load with weights_only=False
KOKKOS_FAULT = (20250910, 20251210)  # releases around lammps#4744, which #4808 mended on 15 December 2025

TO_MAKE_A_BOX = 30.0  # s, and it takes one

BOX = """
units metal
region box block 0 10 0 10 0 10
create_box 1 box
"""
# run by every rank in the Python inside LAMMPS, which may be any
ABOUT_PYTHON = """
import importlib.util, json, os, sys

facts = {"version": sys.version.split()[0], "prefix": sys.prefix, "error": ""}
found = importlib.util.find_spec("mlffd")
facts["mlffd"] = list(found.submodule_search_locations)[0] if found else ""
facts["mpi4py"] = facts["mpi_library"] = ""
facts["shares_mpi"] = False
try:
    import mpi4py
    facts["mpi4py"] = mpi4py.__version__
    mpi4py.rc.initialize = mpi4py.rc.finalize = False
    from mpi4py import MPI
    facts["mpi_library"] = MPI.Get_library_version().split("\\n")[0].strip("\\0 ")
    facts["shares_mpi"] = MPI.Is_initialized()
except (ImportError, RuntimeError) as error:
    facts["error"] = str(error)
with open("python.%d.json" % os.getpid(), "w") as file:
    json.dump(facts, file)
"""
# ML-IAP's array lmp_firstneigh is grown to (centers, all pairs) integers in the faulty sources: 20 GB here
MEMORY = 8 << 30  # bytes
MANY_ATOMS = """
units lj
lattice sc 1.0
region box block 0 20 0 20 0 20
create_box 1 box
create_atoms 1 box
mass 1 1.0
python source memory.py
pair_style mliap unified memory.pkl 0
pair_coeff * * Ar
run 0
"""
SILENT_MODEL = """
import pickle

class Silent:
    element_types, ndescriptors, nparams, rcutfac, interface = ["Ar"], 1, 1, 1.25, None

    def compute_descriptors(self, data):
        pass

    compute_gradients = compute_forces = compute_descriptors

with open("memory.pkl", "wb") as file:
    pickle.dump(Silent(), file)
"""


@dataclass(frozen=True)
class Probe:
    """What was found."""

    program: LammpsProgram  # with the mpiexec that starts it, and with variables that its Python needs
    runs: bool  # whether it made a box at all
    tried_mpiexecs: tuple[str, ...]
    python: dict | None  # what ABOUT_PYTHON writes, run as a user would; None where it does not run
    python_led: dict | None  # the same, if need be, led to this environment
    why: str  # what the last run said that failed, or did not start two ranks


def probe(program: LammpsProgram, facts: LammpsFacts, folder: Path, time_limit: float) -> Probe:
    """Start LAMMPS on two ranks, by each mpiexec until one does, and look into its Python."""
    tried, why, time_limit = [], "", min(time_limit, TO_MAKE_A_BOX)
    for mpiexec in [] if facts.is_serial else mpiexecs(program):
        tried.append(mpiexec)
        candidate = replace(program, mpiexec=mpiexec)
        python, finished = look(candidate, facts, folder, time_limit, ranks=2)
        if n_ranks(finished.output) == 2 and finished.status == 0:
            program = candidate
            break
        why = finished.why()
    else:
        python, finished = look(program, facts, folder, time_limit, ranks=1)
        why = why if finished.status == 0 else finished.why()
    led, runs = None, finished.status == 0
    if runs and "PYTHON" in facts.packages and not (python and python["mlffd"]):
        led, _ = look(program.with_own_python(), facts, folder, time_limit, ranks=1)
        if led and led["mlffd"]:
            program = program.with_own_python()
    return Probe(program, runs, tuple(tried), python, led, why)


def look(
    program: LammpsProgram, facts: LammpsFacts, folder: Path, time_limit: float, ranks: int
) -> tuple[dict | None, Finished]:
    """What the Python inside says of itself, and how the run ended."""
    for stale in folder.glob("python.*.json"):
        stale.unlink()
    (folder / "about.py").write_text(ABOUT_PYTHON)
    script = BOX + ("python source about.py\n" if "PYTHON" in facts.packages else "")
    finished = program.run(script, folder, ranks, time_limit)
    written = sorted(folder.glob("python.*.json"))
    return (json.loads(written[0].read_text()) if written else None), finished


def n_ranks(output: str) -> int:
    """Ranks of the first LAMMPS that made a box, 0 where none did; LAMMPS that do not meet have one each."""
    grid = re.search(r"(\d+) by (\d+) by (\d+) MPI processor grid", output)
    return math.prod(map(int, grid.groups())) if grid else 0


def memory_fault(program: LammpsProgram, folder: Path, time_limit: float) -> tuple[bool | None, str]:
    """Whether ML-IAP has the fault of ``lmp_firstneigh``, None where that cannot be told, and a finding."""
    (folder / "memory.py").write_text(SILENT_MODEL)
    finished = program.run(MANY_ATOMS, folder, 1, time_limit, memory=MEMORY)
    if finished.status == 0:
        return False, "8000 atoms stay within 8 GB"
    if "lmp_firstneigh" in finished.output:
        return True, "ML-IAP asks for 20 GB for 8000 atoms, and MD crashes (upstream's lmp_firstneigh)"
    return None, f"cannot be told: {finished.why()}"


def may_exchange_wrongly(facts: LammpsFacts) -> bool:
    """Whether the build may be from between lammps#4744 and #4808.

    A release bears its date, a development build that of the release before it.
    """
    first, last = KOKKOS_FAULT
    return facts.version == last or (facts.version == first and "Development" in facts.release)
