# SPDX-License-Identifier: MIT
"""tools/: finding and mending LAMMPS' source, judging an lmp, never leaving a half-made one."""

import io
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import build_lammps  # noqa: E402
import lammps_mend  # noqa: E402
import lammps_probe  # noqa: E402
import lammps_source  # noqa: E402
import lammps_wheel  # noqa: E402
from lammps_source import SourceError  # noqa: E402

FAULTY = """\
  memory->destroy(lmp_firstneigh);
        lmp_firstneigh[ii][ninside] = firstneigh[i][jj];
    memory->grow(lmp_firstneigh, natomneigh, nneigh_max, "MLIAPData:lmp_firstneigh");
    memory->grow(lmp_firstneigh, natomneigh, nneigh, "MLIAPData:lmp_firstneigh");
  bytes += (double) nneigh_max * natomneigh_max * sizeof(int);    // lmp_firstneigh
  bytes += (double) nneigh_max * 3 * sizeof(double);              // rij
"""
MLIAP_INIT = "pylib = ctypes.CDLL(library)\n"


@pytest.fixture
def tree(tmp_path):
    """The few files of a LAMMPS source that tools/ reads."""
    contents = {
        "src/version.h": '#define LAMMPS_VERSION "4 Jul 2026"\n',
        "src/ML-IAP/mliap_data.cpp": FAULTY,
        "cmake/CMakeLists.txt": "",
        "python/lammps/mliap/__init__.py": MLIAP_INIT,
    }
    for name, text in contents.items():
        file = tmp_path / "lammps-x" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path / "lammps-x"


@pytest.fixture
def tarball(tree, tmp_path):
    path = tmp_path / "lammps.tar.xz"
    with tarfile.open(path, "w:xz") as tar:
        tar.add(tree, tree.name)
    return path


def silent(text):
    pass


# the source


def test_no_source_given(monkeypatch):
    monkeypatch.delenv("MLFFD_LAMMPS_SOURCE", raising=False)
    assert lammps_source.given_source() is None


@pytest.mark.parametrize("kind", ["tarball", "directory", "directory above"])
def test_mending_spares_the_given_source(kind, tree, tarball, tmp_path, monkeypatch):
    given = {"tarball": tarball, "directory": tree, "directory above": tree.parent}[kind]
    monkeypatch.setenv("MLFFD_LAMMPS_SOURCE", str(given))
    work = tmp_path / "work"
    work.mkdir()
    copy = lammps_source.unpacked_source(work, lammps_source.given_source(), silent)
    assert lammps_source.release_version(copy) == "2026.7.4"
    lammps_mend.mend(copy, silent)
    assert not lammps_mend.mend_firstneigh(copy / "src/ML-IAP/mliap_data.cpp")
    assert (tree / "src/ML-IAP/mliap_data.cpp").read_text() == FAULTY


def test_bad_source_is_refused_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "text.tar.xz").write_text("not an archive")
    (tmp_path / "empty").mkdir()
    for name, reason in [
        ("nowhere", "no such file"),
        ("text.tar.xz", "not a tar"),
        ("empty", "no LAMMPS source"),
    ]:
        monkeypatch.setenv("MLFFD_LAMMPS_SOURCE", str(tmp_path / name))
        with pytest.raises(SourceError, match=reason) as error:
            lammps_source.given_source()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", ["truncated", "overwritten"])
def test_damaged_tarball_is_refused(damage, tarball, tmp_path):
    broken = tmp_path / "broken.tar.xz"
    content = bytearray(tarball.read_bytes())
    middle = len(content) // 2
    content[middle:] = b"" if damage == "truncated" else b"x" * middle
    broken.write_bytes(content)
    (tmp_path / "work").mkdir()
    with pytest.raises(SourceError, match="broken"):
        lammps_source.unpacked_source(tmp_path / "work", broken, silent)


def test_tarball_of_something_else_is_refused(tmp_path):
    other = tmp_path / "other.tar"
    with tarfile.open(other, "w") as tar:
        tar.addfile(tarfile.TarInfo("hello"), io.BytesIO())
    (tmp_path / "work").mkdir()
    with pytest.raises(SourceError, match="no LAMMPS source"):
        lammps_source.unpacked_source(tmp_path / "work", other, silent)


def test_failing_downloads_are_all_named(tmp_path, monkeypatch):
    def unreachable(folder):
        (folder / "half").write_text("half a download")
        raise OSError("no route to host")

    for way in ("_download", "_git_clone", "_debian"):
        monkeypatch.setattr(lammps_source, way, unreachable)
    with pytest.raises(SourceError, match="MLFFD_LAMMPS_SOURCE") as error:
        lammps_source.unpacked_source(tmp_path, None, silent)
    assert str(error.value).count("no route to host") == 3


def test_second_way_follows_a_failed_first(tree, tmp_path, monkeypatch):
    def unreachable(folder):
        (folder / "half").write_text("half a download")
        raise OSError("no route to host")

    def clone(folder):
        assert list(folder.iterdir()) == []
        shutil.copytree(tree, folder / "lammps")

    monkeypatch.setattr(lammps_source, "_download", unreachable)
    monkeypatch.setattr(lammps_source, "_git_clone", clone)
    (tmp_path / "work").mkdir()
    assert lammps_source.unpacked_source(tmp_path / "work", None, silent).name == "lammps"


def test_identity_follows_contents(tree, tarball):
    before = lammps_source.source_identity(tree)
    (tree / "src/version.h").write_text('#define LAMMPS_VERSION "5 Jul 2026"\n')
    identities = {before, lammps_source.source_identity(tree), lammps_source.source_identity(tarball)}
    assert len(identities | {lammps_source.source_identity(None)}) == 4


# the mending


def test_firstneigh_is_gone_after_mending(tree):
    file = tree / "src/ML-IAP/mliap_data.cpp"
    assert lammps_mend.mend_firstneigh(file)
    code = [line for line in file.read_text().splitlines() if not line.startswith("//")]
    assert [line.strip() for line in code if "lmp_firstneigh" in line] == ["memory->destroy(lmp_firstneigh);"]
    assert any("// rij" in line for line in code)


def test_source_mended_upstream_is_left_alone(tree):
    file = tree / "src/ML-IAP/mliap_data.cpp"
    text = FAULTY.replace("nneigh_max, ", "nmax_inside, ").replace(
        "natomneigh, nneigh,", "natomneigh, inside,"
    )
    file.write_text(text)
    assert not lammps_mend.mend_firstneigh(file)
    assert file.read_text() == text


def test_unknown_use_of_firstneigh_is_refused(tree):
    file = tree / "src/ML-IAP/mliap_data.cpp"
    file.write_text(FAULTY.replace("lmp_firstneigh[ii][ninside] =", "lmp_firstneigh[ii][ninside++] ="))
    with pytest.raises(SourceError, match="lmp_firstneigh"):
        lammps_mend.mend_firstneigh(file)


def test_mliap_asks_the_running_python(tree):
    lammps_mend.mend(tree, silent)
    text = (tree / "python/lammps/mliap/__init__.py").read_text()
    found = {"ctypes": __import__("ctypes")}
    exec(text, found)
    assert found["pylib"].Py_IsInitialized()


# the cache


def test_cache_folder_is_outside_the_checkout(monkeypatch, tmp_path):
    monkeypatch.delenv("MLFFD_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert build_lammps.cache_folder() == tmp_path / "mlffd"
    monkeypatch.setenv("MLFFD_CACHE", str(tmp_path / "own"))
    assert build_lammps.cache_folder() == tmp_path / "own"


def test_key_follows_source_packages_and_options(monkeypatch):
    monkeypatch.setattr(build_lammps, "mpich_version", lambda: "5.0.2")
    keys = [build_lammps.cache_key("one"), build_lammps.cache_key("one"), build_lammps.cache_key("two")]
    monkeypatch.setenv("MLFFD_LAMMPS_PACKAGES", "rigid")
    keys.append(build_lammps.cache_key("one"))
    monkeypatch.setitem(lammps_wheel.OPTIONS, "FFT", "FFTW3")
    keys.append(build_lammps.cache_key("one"))
    assert keys[0] == keys[1]
    assert len(set(keys)) == 4


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """Nothing is installed for real: pip's calls are noted, and the probe says what it is told."""
    notes = {"pip": [], "probe": "", "status": 0}
    monkeypatch.setattr(lammps_wheel, "check_compilers", lambda: None)
    monkeypatch.setattr(build_lammps, "say", silent)
    monkeypatch.setattr(lammps_probe, "why_not", lambda lmp: notes["probe"])

    def pip(command, **options):
        notes["pip"].append("uninstall" if "uninstall" in command else "install")
        return subprocess.CompletedProcess(command, notes["status"])

    monkeypatch.setattr(build_lammps.subprocess, "run", pip)
    return notes


WHEEL = "lammps-1-py3-none-any.whl"


def build_a_wheel(work, given, log):
    wheel = work / WHEEL
    wheel.write_text("wheel")
    return wheel


def test_working_wheel_is_kept(bench, monkeypatch, tmp_path):
    monkeypatch.setattr(lammps_wheel, "build_wheel", build_a_wheel)
    build_lammps.build_and_cache(None, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [WHEEL]
    assert bench["pip"] == ["install"]


def test_wheel_that_fails_is_neither_kept_nor_left_installed(bench, monkeypatch, tmp_path):
    monkeypatch.setattr(lammps_wheel, "build_wheel", build_a_wheel)
    bench["probe"] = "it crashes"
    with pytest.raises(build_lammps.BuildError, match=r"build\.log"):
        build_lammps.build_and_cache(None, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["build.log", f"{WHEEL}.rejected"]
    assert bench["pip"] == ["install", "uninstall"]


def test_damaged_wheel_in_the_cache_is_built_anew(bench, monkeypatch, tmp_path):
    bench["status"] = 1
    assert not build_lammps.install(tmp_path / WHEEL)


def test_failing_command_points_to_its_log(tmp_path):
    with open(tmp_path / "build.log", "w") as log:
        with pytest.raises(build_lammps.BuildError, match=r"`false` failed; the log is .*build\.log"):
            lammps_wheel.run(["false"], tmp_path, log)
        with pytest.raises(build_lammps.BuildError, match="compilation failed"):
            lammps_wheel.compile_lmp(["sh", "-c", "echo '[1/30] first'; exit 2"], tmp_path, log)
    assert "[1/30] first" in (tmp_path / "build.log").read_text()


def test_missing_compiler_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(build_lammps.BuildError, match="gcc"):
        lammps_wheel.check_compilers()


def test_progress_skips_small_jobs_and_counts_tenths(capsys):
    lines = ["[1/1] looking for files"] + [f"[{n}/40] compiling" for n in range(1, 41)]
    assert list(lammps_wheel.tell_progress(lines)) == lines
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 10
    assert told[0].startswith("LAMMPS: 4 of 40 compiled")


def test_python_without_shared_library_goes_into_the_program(tmp_path):
    assert lammps_wheel.static_python_flags({"Py_ENABLE_SHARED": 1}) == ""
    config = {"Py_ENABLE_SHARED": 0, "LIBPL": str(tmp_path), "LIBRARY": "libpython3.11.a", "LIBS": "-ldl"}
    with pytest.raises(build_lammps.BuildError, match="another Python"):
        lammps_wheel.static_python_flags(config)
    (tmp_path / "libpython3.11.a").touch()
    flags = lammps_wheel.static_python_flags(config)
    assert f"--whole-archive {tmp_path}/libpython3.11.a" in flags


# the probe


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_probe_refuses_an_lmp_without_the_packages(tmp_path):
    lmp = script(tmp_path / "lmp", "echo ML-IAP ML-SNAP MOLECULE")
    assert lammps_probe.why_not(lmp) == f"{lmp} lacks PYTHON"


def test_probe_refuses_an_lmp_that_does_not_start(tmp_path):
    assert "libmpi.so" in lammps_probe.why_not(script(tmp_path / "lmp", "echo no libmpi.so >&2; exit 127"))
    (tmp_path / "broken").write_text("nothing to run")
    assert "cannot be started" in lammps_probe.why_not(tmp_path / "broken")


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("PYTHON /elsewhere\nENERGIES -1.0 -1.0", "the Python of /elsewhere"),
        ("1 by 1 by 1 MPI processor grid\nENERGIES -1.0 -1.0", "another MPI"),
        ("ENERGIES -1.0 -1.1", "where lj/cut gives"),
        ("ERROR: Failed to allocate 14495514624 bytes", "Failed to allocate"),
        ("1 by 1 by 2 MPI processor grid\nENERGIES -1.0 -1.0", ""),
    ],
)
def test_probe_judges_a_run(output, reason):
    verdict = lammps_probe._judge(Path("lmp"), subprocess.CompletedProcess([], 0, output, ""))
    assert (reason in verdict) if reason else verdict == ""


def test_installed_lmp_passes_the_probe(lmp):
    assert lammps_probe.why_not(lmp) == ""


# continuous integration


@pytest.mark.parametrize("beside", [True, False])
def test_ci_uses_the_source_beside_the_checkout(beside, tmp_path):
    (tmp_path / "checkout/.ci").mkdir(parents=True)
    shutil.copy(ROOT / ".ci/run", tmp_path / "checkout/.ci/run")
    source = tmp_path / "shared/lammps/lammps-slim-20260704.tar.xz"
    if beside:
        source.parent.mkdir(parents=True)
        source.touch()
    script(tmp_path / "make", 'echo "$@:$MLFFD_LAMMPS_SOURCE:$(pwd)"')
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "CI": "true"}
    answer = subprocess.run(
        [tmp_path / "checkout/.ci/run"], env=env, capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == f"test:{source if beside else ''}:{tmp_path / 'checkout'}"
