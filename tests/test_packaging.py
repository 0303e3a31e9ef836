# SPDX-License-Identifier: MIT
"""pyproject.toml says what is there."""

import os
import re
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
    folders = [file.parent for file in (ROOT / "mlffd").rglob("__init__.py")]
    names = {".".join(folder.relative_to(ROOT).parts) for folder in folders} | {"mlffd.drivers"}
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
    assert "failed" in built.stderr
    assert list(tmp_path.rglob("*.so")) == []
