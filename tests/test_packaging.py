# SPDX-License-Identifier: MIT
"""pyproject.toml says what is there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_is_listed():
    folders = [file.parent for room in ("mlffd", "drivers") for file in (ROOT / room).rglob("__init__.py")]
    names = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    names = {name if name.startswith("mlffd") else f"mlffd.{name}" for name in names}
    assert sorted(names) == sorted(PROJECT["tool"]["setuptools"]["packages"])


def test_every_room_is_a_package():
    rooms = {file.parent for file in (ROOT / "mlffd").rglob("*.py")}
    assert [room for room in rooms if not (room / "__init__.py").exists()] == []


def test_test_setup_installs_known_extras():
    asked = set(re.findall(r"'\.\[([\w,]+)\]'", (ROOT / "Makefile").read_text()))
    assert asked
    for extras in asked:
        assert set(extras.split(",")) <= set(PROJECT["project"]["optional-dependencies"])


def test_installs_without_a_compiler(tmp_path):
    """The build says so and goes on; the package then runs on plain PyTorch."""
    no_compiler = {**os.environ, "CC": "/nonexistent/cc", "CXX": "/nonexistent/c++"}
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", tmp_path, "--build-temp", tmp_path]
    built = subprocess.run(command, cwd=ROOT, env=no_compiler, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert "the CPU kernels of mlffd are not built" in built.stderr
    assert list(tmp_path.rglob("*.so")) == []


def test_a_mistake_in_the_kernels_is_not_taken_for_a_missing_compiler(tmp_path):
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    for folder in ("mlffd", "drivers"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    with open(tmp_path / "mlffd/kernels/cpu/kernel.hpp", "a") as file:
        file.write("dooble mistake;\n")
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", "lib", "--build-temp", "temp"]
    built = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert built.returncode != 0
    assert "dooble" in built.stderr
    assert list((tmp_path / "lib").rglob("*.so")) == []
