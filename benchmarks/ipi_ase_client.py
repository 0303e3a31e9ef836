# SPDX-License-Identifier: MIT
"""ASE's socket client with a student, as a process: what i-PI's users have without mlffd-driver.

    python benchmarks/ipi_ase_client.py STUDENT STRUCTURE ADDRESS

Waits for i-PI at /tmp/ipi_ADDRESS and serves until it leaves.
"""

import sys
import time
from pathlib import Path

import torch
from ase.calculators.socketio import SocketClient, actualunixsocketname
from ase.io import read

from mlffd import Calculator

PATIENCE = 120.0  # s


def main(student: str, structure: str, address: str) -> None:
    """One client, one thread, warm before it connects."""
    torch.set_num_threads(1)
    atoms = read(structure)
    atoms.calc = Calculator(student)
    atoms.get_potential_energy()
    deadline = time.monotonic() + PATIENCE
    while not Path(actualunixsocketname(address)).exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    SocketClient(unixsocket=address).run(atoms, use_stress=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
