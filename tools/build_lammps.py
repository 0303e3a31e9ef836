# SPDX-License-Identifier: MIT
"""Puts an ``lmp`` that can run students into this virtual environment.

    .venv/bin/python tools/build_lammps.py

In this order: an ``lmp`` that already can (in the environment, then on PATH) is used; a wheel built earlier
is taken from the cache; else LAMMPS is built by lammps_wheel.py, in a temporary directory, from the source
that lammps_source.py finds. What lammps_probe.py does not see working is neither kept nor left installed.

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
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import lammps_probe
import lammps_source
import lammps_wheel
from lammps_wheel import SCRIPTS, BuildError, say


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


def cache_key(identity: str) -> str:
    """The folder name of one build: equal source, options, Python, MPI, system and recipe."""
    here = Path(__file__).parent
    facts = [
        identity,
        lammps_wheel.packages(),
        sorted(lammps_wheel.OPTIONS.items()),
        [sysconfig.get_config_var(name) for name in ("SOABI", "LIBDIR", "INSTSONAME", "Py_ENABLE_SHARED")],
        mpich_version(),
        [platform.machine(), platform.libc_ver()],
        [(here / name).read_text() for name in ("lammps_mend.py", "lammps_wheel.py")],
    ]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


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
    installed = subprocess.run([*pip, "install", "--force-reinstall", "--no-deps", "--no-index", str(wheel)])
    if installed.returncode != 0:
        return False
    reason = lammps_probe.why_not(SCRIPTS / "lmp")
    if reason:
        say(f"LAMMPS: {wheel.name} does not work here: {reason}")
        subprocess.run([*pip, "uninstall", "--yes", "lammps"], check=True)
    return not reason


def build_and_cache(given: Path | None, folder: Path):
    """Builds, installs, probes; only what works is moved into the cache. Logs stay there on failure."""
    lammps_wheel.check_compilers()
    start = time.monotonic()
    log = folder / "build.log"
    with tempfile.TemporaryDirectory(prefix="mlffd-lammps-") as work, open(log, "w") as file:
        wheel = lammps_wheel.build_wheel(Path(work), given, file)
        works = install(wheel)
        # a wheel that fails is kept for a look at it, under a name that is never installed
        kept = folder / (wheel.name if works else f"{wheel.name}.rejected")
        shutil.copy(wheel, f"{kept}.part")
        os.replace(f"{kept}.part", kept)
    if not works:
        raise BuildError(f"the LAMMPS built just now does not work; it and its log are kept: {kept}, {log}")
    log.unlink()
    say(f"LAMMPS: built in {(time.monotonic() - start) / 60:.1f} min, kept as {kept}")


if __name__ == "__main__":
    main()
