# SPDX-License-Identifier: MIT
"""CP2K through ASE's CP2K shell, named `cp2k:INPUT`; checked against ASE 3.29 and CP2K 2023.1.

INPUT is a CP2K input without what comes from the frames: coordinates, cell, and the project's name.
"""

import hashlib
import shlex
import subprocess
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path

from ase.calculators.calculator import all_changes
from ase.calculators.cp2k import CP2K, parse_input

from mlffd.errors import TeacherError
from mlffd.teachers.facts import TeacherFacts

PREFIX = "cp2k:"
COMMAND = "cp2k.psmp -s"
# ASE writes these into the input where they are not None; here the input says it all
NOTHING_ADDED = dict.fromkeys(
    (
        "basis_set", "basis_set_file", "cutoff", "force_eval_method", "max_scf", "poisson_solver",
        "potential_file", "print_level", "pseudo_potential", "xc",
    )
)  # fmt: skip
SHELL_FAILURES = (AssertionError, ValueError, OSError, RuntimeError)


class FreshCp2k(CP2K):
    """ASE's CP2K with nothing carried over: a label must not depend on the frame before it."""

    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        """As ASE's, from scratch; TeacherError with CP2K's own words if it stopped."""
        try:
            super().calculate(atoms, properties, all_changes)  # of elements too: it starts anew
        except SHELL_FAILURES as error:
            self._abandon_shell()
            reason = _last_words(Path(self.label + ".out")) or "its process ended, with no word in its output"
            raise TeacherError(f"CP2K stopped: {reason}") from error

    def _abandon_shell(self):
        """The next frame gets a CP2K of its own."""
        with suppress(*SHELL_FAILURES), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the shell has to be ended
            self._shell.close()
        self._shell = self._force_env_id = self.atoms = None


def load(name, device="cpu", directory=".", command=COMMAND):
    """CP2K with the input file that follows "cp2k:", run in that file's folder."""
    path = _find(name.removeprefix(PREFIX), directory)
    text = path.read_text()
    _refuse_geometry(path, text)
    version = _version(command)
    folder = tempfile.TemporaryDirectory(prefix="mlffd-cp2k-")
    calculator = FreshCp2k(
        label=f"{folder.name}/cp2k",
        command=f"cd {shlex.quote(str(path.parent))} && exec {command}",
        inp=text,
        stress_tensor="STRESS_TENSOR" not in text.upper(),  # else the input asks for it itself
        **NOTHING_ADDED,
    )
    calculator.scratch = folder  # lives as long as the calculator
    digest = hashlib.sha256(text.encode()).hexdigest()
    return calculator, version, {"input": path.name, "input_sha256": digest}


def _find(name, directory):
    for path in (Path(directory) / name, Path(name)):
        if path.is_file():
            return path.resolve()
    raise TeacherError(f"teacher {PREFIX}{name}: no input file {name} in {Path(directory).resolve()} or here")


def _refuse_geometry(path, text):
    """What the frames say must not be in the input as well."""
    root = parse_input(text)
    subsys = root.get_subsection("FORCE_EVAL/SUBSYS")
    found = [f"&{s.name}" for s in subsys.subsections if s.name in ("COORD", "CELL", "TOPOLOGY")]
    keywords = root.get_subsection("GLOBAL").keywords
    found += ["PROJECT"] if any(line.split()[0].upper().startswith("PROJECT") for line in keywords) else []
    if found:
        raise TeacherError(f"{path.name}: take {', '.join(found)} out: the frames say it")


def _version(command):
    program = command.removesuffix(" -s")
    try:
        done = subprocess.run(
            [*shlex.split(program), "--version"], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TeacherError(
            f"cannot start {program} ({error}): install CP2K (Debian: apt install cp2k), or name how it is"
            ' started with command = "... -s"'
        ) from error
    lines = [line.strip() for line in done.stdout.splitlines() if "version" in line.lower()]
    return lines[0] if lines else "CP2K, version not stated"


def _last_words(output):
    """What CP2K wrote into its box when it stopped, in a line, or None."""
    if not output.is_file():
        return None
    lines = [line.strip(" *\n") for line in output.read_text(errors="replace").splitlines()]
    marks = [k for k, line in enumerate(lines) if "[ABORT]" in line]
    if not marks:
        return None
    box = lines[marks[-1] : marks[-1] + 8]
    return " ".join(" ".join(box).replace("[ABORT]", "").strip("_\\|/ ").split())


TEACHERS = {
    "cp2k:INPUT": TeacherFacts(
        load,
        about="whatever a CP2K input says: DFT, xTB, neural networks",
        level="that of the input",
        code_licence="GPL-2.0-or-later",
        weights_licence="that of what the input names",
        install="apt install cp2k (Debian), or your cluster's CP2K",
        program="cp2k.psmp",
        elements_note="those of the input",
        conservative=None,
        settings={"command": "how CP2K's shell is started; threads are OMP_NUM_THREADS"},
        note="leave coordinates, &CELL and PROJECT out of the input; it runs in the input's folder",
    )
}
