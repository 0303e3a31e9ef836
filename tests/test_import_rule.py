# SPDX-License-Identifier: MIT
"""Imports point downwards only: reads every file's imports and holds them to RESTS_ON."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Each room and those right below it; it may import these and all that they rest on.
RESTS_ON = {
    "allocator": [],
    "environment": [],
    "errors": [],
    "files": [],
    "units": [],
    "domain": ["errors"],
    "dynamics": ["replicas", "evaluation"],
    "evaluation": ["errors"],
    "config": ["errors"],
    "neighbors": ["domain", "errors", "units"],
    "graph": ["neighbors"],
    "replicas": ["neighbors"],
    "students": ["graph"],
    "predict": ["graph"],
    "kernels": ["students", "predict"],
    "verdict": ["config", "errors"],
    "bundle": ["students", "predict", "kernels", "files", "domain", "verdict"],
    "repair": ["bundle"],
    "engine": ["bundle", "allocator"],
    "check": ["engine"],
    "drivers": ["check", "config", "environment"],
    "teachers": ["errors", "units", "config"],
    "dataset.label_file": ["environment", "errors", "units", "files", "evaluation"],
    "dataset.store": ["dataset.label_file"],
    "dataset.frames": ["errors"],
    "dataset": ["dataset.store", "dataset.frames", "teachers", "dynamics"],
    "train": ["dataset.store", "bundle", "config", "allocator"],
    "speed": ["evaluation"],
    "sweep": ["train", "dataset.store", "dataset.frames", "engine", "environment", "report", "speed"],
    "fidelity": ["dynamics", "dataset", "drivers", "report", "speed"],
    "explore": ["engine", "dynamics", "dataset"],
    "distill": ["train", "explore", "fidelity"],
    "report": ["errors", "units", "config", "files", "verdict"],
}
SEE_ALL = ("__init__", "__main__", "commands")
# libraries that only these rooms may import, and libraries that a room must not
ONLY_IN = {"vesin": "neighbors"}
NEVER_IN = {("report", "torch")}


def modules(root: Path) -> dict[str, Path]:
    """Module names, without "mlffd.", and their files; drivers/ is installed as mlffd.drivers."""
    files = {file.relative_to(root / "mlffd"): file for file in (root / "mlffd").rglob("*.py")}
    files |= {file.relative_to(root): file for file in (root / "drivers").rglob("*.py")}
    return {_module_name(path): file for path, file in files.items()}


def _module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def room_of(module: str) -> str | None:
    """The room a module belongs to: the longest name in the rule that it starts with, or None."""
    parts = module.split(".")
    names = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    return next((name for name in names if name in RESTS_ON or name in SEE_ALL), None)


def below(room: str) -> set[str]:
    """All rooms that ``room`` rests on."""
    return {deeper for next_room in RESTS_ON[room] for deeper in {next_room} | below(next_room)}


def imported(file: Path, module: str, known) -> list[tuple[int, str]]:
    """(line, full name) of every import in ``file``, also those inside functions."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, name.name) for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = _origin(node, file, module)
            found += [(node.lineno, _imported_name(origin, name.name, known)) for name in node.names]
    return found


def _origin(node: ast.ImportFrom, file: Path, module: str) -> str:
    """The module that ``from ... import`` names; leading dots are counted from the file's package."""
    if node.level == 0:
        return node.module
    package = ["mlffd", *module.split(".")]
    steps_up = node.level - (file.name == "__init__.py")
    return ".".join(package[: len(package) - steps_up] + ([node.module] if node.module else []))


def _imported_name(origin: str, name: str, known) -> str:
    # `from mlffd import graph` imports the module mlffd.graph, `from mlffd import Engine` the package
    full = f"{origin}.{name}"
    return full if full.removeprefix("mlffd.") in known else origin


def violations(root: Path) -> list[str]:
    """One line for every import in mlffd/ and drivers/ that does not point downwards."""
    known = modules(root)
    found = []
    for module, file in sorted(known.items()):
        room = room_of(module)
        if room is None:
            found.append(f"{file.relative_to(root)}: has no place in the import rule")
            continue
        for line, name in imported(file, module, known):
            fault = _fault(room, name)
            found += [f"{file.relative_to(root)}:{line}: {room} {fault}"] if fault else []
    return found


def _fault(room: str, name: str) -> str:
    library, _, rest = name.partition(".")
    if library != "mlffd":
        home = ONLY_IN.get(library, room)
        return f"imports {library}" if home != room or (room, library) in NEVER_IN else ""
    target = room_of(rest or "__init__")
    allowed = room in SEE_ALL or target == room or target in below(room)
    return "" if allowed else f"imports {name}"


def test_imports_point_downwards():
    assert violations(ROOT) == []


def test_rule_sees_files():
    assert {"graph", "predict", "drivers"} <= {room_of(module) for module in modules(ROOT)}


def plant(root: Path, path: str, text: str):
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


@pytest.fixture
def tree(tmp_path):
    """A small package that keeps the rule."""
    plant(tmp_path, "mlffd/__init__.py", "from mlffd.engine import Engine\n")
    plant(tmp_path, "mlffd/__main__.py", "from mlffd import train, teachers\nfrom mlffd.drivers import ipi\n")
    plant(tmp_path, "mlffd/neighbors.py", "import vesin\n")
    plant(tmp_path, "mlffd/graph.py", "import torch\nfrom mlffd import neighbors\n")
    plant(tmp_path, "mlffd/students/__init__.py", "from mlffd.students.local import Local\n")
    plant(tmp_path, "mlffd/students/local.py", "from ..graph import Graph\nfrom . import __init__\n")
    plant(tmp_path, "mlffd/engine.py", "import mlffd.students\n")
    plant(tmp_path, "mlffd/teachers/__init__.py", "import sevenn\n")
    plant(tmp_path, "mlffd/dataset/store.py", "import h5py\n")
    plant(tmp_path, "mlffd/dataset/label.py", "import mlffd.teachers\nfrom mlffd.dataset import store\n")
    plant(tmp_path, "mlffd/train/__init__.py", "from mlffd.dataset.store import read\n")
    plant(tmp_path, "drivers/__init__.py", "")
    plant(tmp_path, "drivers/ipi.py", "from mlffd.engine import Engine\n")
    return tmp_path


def test_kept_rule_is_silent(tree):
    assert violations(tree) == []


@pytest.mark.parametrize(
    ("path", "text", "fault"),
    [
        (
            "mlffd/graph.py",
            "from mlffd.students import build",
            "mlffd/graph.py:1: graph imports mlffd.students",
        ),
        (
            "mlffd/graph.py",
            "def f():\n    from . import engine",
            "mlffd/graph.py:2: graph imports mlffd.engine",
        ),
        ("mlffd/graph.py", "import vesin.torch", "mlffd/graph.py:1: graph imports vesin"),
        ("mlffd/graph.py", "from mlffd import Engine", "mlffd/graph.py:1: graph imports mlffd"),
        ("mlffd/engine.py", "import mlffd", "mlffd/engine.py:1: engine imports mlffd"),
        (
            "mlffd/students/local.py",
            "from ..teachers import sevennet",
            "mlffd/students/local.py:1: students imports mlffd.teachers",
        ),
        (
            "mlffd/teachers/mace.py",
            "import mlffd.students.local",
            "mlffd/teachers/mace.py:1: teachers imports mlffd.students.local",
        ),
        (
            "mlffd/train/loop.py",
            "from mlffd.dataset import label",
            "mlffd/train/loop.py:1: train imports mlffd.dataset.label",
        ),
        (
            "mlffd/engine.py",
            "from mlffd.drivers.ipi import main",
            "mlffd/engine.py:1: engine imports mlffd.drivers.ipi",
        ),
        ("drivers/ipi.py", "from mlffd import train", "drivers/ipi.py:1: drivers imports mlffd.train"),
        ("mlffd/report/table.py", "import torch.nn", "mlffd/report/table.py:1: report imports torch"),
        ("mlffd/attic.py", "", "mlffd/attic.py: has no place in the import rule"),
    ],
)
def test_broken_rule_is_found(tree, path, text, fault):
    plant(tree, path, text)
    assert violations(tree) == [fault]
