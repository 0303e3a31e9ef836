# SPDX-License-Identifier: MIT
"""What README.md prints is run: its Python, its five commands, and every option it names exists."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlffd.__main__ import main, parser

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^mlffd .*", README, re.MULTILINE)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_python_runs(tmp_path):
    (code,) = blocks("python")
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[0].endswith(" eV")
    assert "(24, 3)" in run.stdout


@pytest.mark.slow
def test_your_system_in_five_commands(tmp_path, monkeypatch, capsys):
    shutil.copytree(ROOT / "configs", tmp_path / "configs", ignore=shutil.ignore_patterns("runs"))
    monkeypatch.chdir(tmp_path)
    five = next(block for block in blocks("sh") if "mlffd sample" in block).splitlines()
    assert len(five) == 5
    for line in five:
        assert main(shlex.split(line)[1:]) == 0, line
    assert (tmp_path / "argon.pt").stat().st_size > 1000
    assert "force_mae_mev_per_angstrom" in capsys.readouterr().out


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_parses(line):
    words = shlex.split(line, comments=True)
    parser().parse_args(words[1:])
    for word in words[2:]:
        if word.startswith("configs/"):
            assert (ROOT / word).exists()


WRITTEN = {shlex.split(line)[2] for line in COMMANDS if "--init" in line}


@pytest.mark.parametrize("path", sorted(set(re.findall(r"[\w/]+\.(?:py|toml|xml)\b", README)) - WRITTEN))
def test_files_named_exist(path):
    assert any((ROOT / folder / path).exists() for folder in (".", "mlffd", "examples")), path


def test_every_environment_variable_is_in_the_table():
    sources = [path for room in ("mlffd", "drivers") for path in (ROOT / room).rglob("*.[ch]*pp")]
    sources += [path for room in ("mlffd", "drivers") for path in (ROOT / room).rglob("*.py")]
    named = {name for path in sources for name in re.findall(r"\"(MLFFD_[A-Z_]+)\"", path.read_text())}
    table = set(re.findall(r"^\| `(MLFFD_[A-Z_]+)`", README, re.MULTILINE))
    assert {"MLFFD_DTYPE", "MLFFD_INSTRUCTIONS"} <= named == table
