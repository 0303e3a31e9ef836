# SPDX-License-Identifier: MIT
"""Real ``i-pi`` and driver processes for tests, each test's in a folder of its own and with time limits."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from ase.io import write
from conftest import command
from ipi_evaluators import argon

HERE = Path(__file__).parent
TIME_LIMIT = 60  # s for any process, on however busy a machine

ARGON_INPUT = """
<simulation verbosity="medium">
  <total_steps>{steps}</total_steps>
  <prng><seed>4</seed></prng>
  <output prefix="out">
    <properties filename="energies" stride="1">[ step, potential, virial_md ]</properties>
    <trajectory filename="pos" stride="1" format="ase">positions{{ase}}</trajectory>
  </output>
  <ffsocket name="driver" mode="{mode}" pbc="false">
    <address>{address}</address>
    <exit_on_disconnect>{exit_on_disconnect}</exit_on_disconnect>
    <batch_size>{batch_size}</batch_size>
    <latency>1e-3</latency>
  </ffsocket>
  <system>
    <initialize nbeads="{n_beads}">
      <file mode="ase">start.xyz</file>
      <velocities mode="thermal" units="kelvin">80</velocities>
    </initialize>
    <forces><force forcefield="driver"/></forces>
    <ensemble><temperature units="kelvin">80</temperature></ensemble>
    <motion mode="dynamics">
      <dynamics mode="nve"><timestep units="femtosecond">{timestep}</timestep></dynamics>
    </motion>
  </system>
</simulation>
"""


class Runs:
    """Processes in one folder, none of which outlives the test."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.processes = []

    def start(self, *words) -> subprocess.Popen:
        """Starts a program of this environment; its output goes to a file named after it."""
        log = self.folder / f"{Path(words[0]).name}.{len(self.processes)}.log"
        with open(log, "w") as output:
            process = subprocess.Popen(
                [str(word) for word in words],
                cwd=self.folder,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONFAULTHANDLER": "1"},
            )
        process.log = log
        self.processes.append(process)
        return process

    def inside(self, name: str) -> "Runs":
        """The same in a folder within this one; its processes count as this one's."""
        inside = Runs(self.folder / name)
        inside.folder.mkdir()
        inside.processes = self.processes
        return inside

    def ipi(self, text: str | None = None) -> subprocess.Popen:
        """i-PI on input.xml, its sockets in this folder."""
        if text is not None:
            (self.folder / "input.xml").write_text(text)
        return self.start(command("i-pi"), "-S", f"{self.folder}/", "input.xml")

    def argon(
        self, steps=1000, n_beads=1, batch_size=1, exit_on_disconnect=True, timestep=2, mode="unix",
        address="argon", repeat=1, **more,
    ) -> subprocess.Popen:  # fmt: skip
        """i-PI on a crystal of 4 atoms, repeated along each of its vectors. ``timestep`` in fs; ``more`` are
        elements of <ffsocket>."""
        write(self.folder / "start.xyz", argon() * (repeat, repeat, repeat), format="extxyz")
        text = ARGON_INPUT.format(
            steps=steps, n_beads=n_beads, batch_size=batch_size, exit_on_disconnect=exit_on_disconnect,
            timestep=timestep, mode=mode, address=address,
        )  # fmt: skip
        elements = "".join(f"<{name}>{value}</{name}>" for name, value in more.items())
        return self.ipi(text.replace("</ffsocket>", f"{elements}</ffsocket>"))

    def driver(
        self, evaluator: str, template="start.xyz", address="argon", n_connections=1, *more
    ) -> subprocess.Popen:
        """The loop of mlffd-driver around one of the simple evaluators."""
        where = ["--template", template, "--path", self.folder / address, "-n", n_connections]
        script = HERE / "ipi_evaluators.py"
        return self.start(sys.executable, script, evaluator, *where, "--report", "report.json", *more)

    def report(self) -> dict:
        """What the driver wrote at its end."""
        return json.loads((self.folder / "report.json").read_text())

    def table(self) -> np.ndarray:
        """i-PI's properties, one row a step."""
        return np.loadtxt(self.folder / "out.energies", ndmin=2)

    def wait_for(self, file: str, n_rows: int = 0) -> None:
        """Returns when that file is there and has so many rows, comments not counted."""
        path, deadline = self.folder / file, time.monotonic() + TIME_LIMIT
        while not path.exists() or (n_rows and self._rows(path) < n_rows):
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.02)

    def _rows(self, path: Path) -> int:
        return len(re.findall(r"^[^#\n]+\n", path.read_text(), re.M))

    def end(self, process: subprocess.Popen) -> int:
        """The exit status of a process that has to end by itself."""
        try:
            return process.wait(TIME_LIMIT)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)  # says where it was
            time.sleep(0.5)
            pytest.fail(f"{process.args[:2]} did not end\n{self.output()}")

    def output(self) -> str:
        return "\n".join(f"{p.log.name}:\n{p.log.read_text()[-2000:]}" for p in self.processes)


@contextmanager
def processes_in_a_folder() -> Iterator[Runs]:
    """Runs in a new folder; in the end all of its processes are killed and the folder is removed."""
    folder = Path(tempfile.mkdtemp(prefix="mlffd"))  # short: a socket's path has at most 107 characters
    runs = Runs(folder)
    try:
        yield runs
    finally:
        for process in runs.processes:
            process.kill()
            process.wait()
        shutil.rmtree(folder)
