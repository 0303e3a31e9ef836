# SPDX-License-Identifier: MIT
"""The CPU kernels in programs: same numbers, no bad memory access, exact tables, no symbols to mix up."""

import runpy
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from contract import ALL, random_box, random_student
from cpu_graphs import NEIGHBORS, PairGraph, kernel, random_graph, single_layer_graph, symmetric_graph

from mlffd.engine import Engine
from mlffd.kernels import cpu
from mlffd.kernels.block import weight_block

ROOT = Path(__file__).parents[1]
CPU = ROOT / "mlffd" / "kernels" / "cpu"
PROGRAM = Path(__file__).parent / "cpu_program.c"


def compiler(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"there is no {name} on this machine")
    return path


def run(*words) -> subprocess.CompletedProcess:
    return subprocess.run([str(word) for word in words], capture_output=True, text=True)


def compile_(*words) -> None:
    result = run(*words)
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    """The C program linked to the installed library, as a user would."""
    path = tmp_path_factory.mktemp("program") / "cpu_program"
    rpath = f"-Wl,-rpath,{CPU}"
    compile_(
        compiler("gcc"),
        "-std=c99",
        "-Wall",
        "-Werror",
        "-g",
        f"-I{CPU}",
        PROGRAM,
        cpu.LIBRARY,
        rpath,
        "-o",
        path,
    )
    return path


@pytest.fixture(scope="module")
def checked_program(tmp_path_factory) -> Path:
    """The same program and all the kernels' sources, compiled to report every bad access or overflow."""
    folder = tmp_path_factory.mktemp("checked")
    flags = [
        "-std=c++17",
        "-O1",
        "-g",
        "-fopenmp",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
    ]
    gxx, objects = compiler("g++"), []
    for name, options in instruction_flags().items():
        objects.append(folder / f"{name}.o")
        compile_(gxx, *flags, *options, f"-DMLFFD_ISA={name}", "-c", CPU / "students.cpp", "-o", objects[-1])
    x86 = ["-DMLFFD_X86=1"] if "avx2" in instruction_flags() else []
    for source in ("block", "interface"):
        objects.append(folder / f"{source}.o")
        compile_(gxx, *flags, *x86, "-c", CPU / f"{source}.cpp", "-o", objects[-1])
    objects.append(folder / "program.o")
    compile_(compiler("gcc"), "-g", "-fsanitize=address", f"-I{CPU}", "-c", PROGRAM, "-o", objects[-1])
    compile_(gxx, *flags, *objects, "-o", folder / "cpu_program")
    return folder / "cpu_program"


def instruction_flags() -> dict[str, list[str]]:
    """As setup.py compiles for them."""
    return runpy.run_path(str(ROOT / "setup.py"))["INSTRUCTIONS"]


def run_program(program: Path, folder: Path, student, graph: PairGraph, *, symmetric=False, dtype="float32",
                instructions="auto", n_threads=1, under=()):  # fmt: skip
    """Energies and gradient that the program writes."""
    (folder / "block").write_bytes(weight_block(student))
    arrays = [
        np.array([len(graph.atomic_numbers), graph.n_centers, len(graph.neighbor), symmetric]),
        graph.species_idx(student), graph.first_edge, graph.neighbor, graph.edge_vectors,
    ]  # fmt: skip
    (folder / "graph").write_bytes(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays))
    precision = cpu.PRECISIONS[dtype]
    result = run(
        *under,
        program,
        folder / "block",
        folder / "graph",
        precision,
        instructions,
        n_threads,
        folder / "out",
    )
    if "this processor has no" in result.stderr:
        pytest.skip(result.stderr.strip())
    assert result.returncode == 0, result.stderr[-3000:]
    values = np.fromfile(folder / "out")
    return values[: graph.n_centers], values[graph.n_centers :].reshape(-1, 3)


def test_a_c_program_gets_the_same_numbers(program, tmp_path):
    student = random_student("local")
    graph = random_graph(student, NEIGHBORS["uneven"], n_ghosts=2)
    energies, gradient = run_program(program, tmp_path, student, graph)
    expected = kernel(student, "float32").evaluate(
        graph.species_idx(student), graph.first_edge, graph.neighbor, graph.edge_vectors
    )
    assert np.array_equal(energies, expected[0])
    assert np.array_equal(gradient, expected[1])


def test_a_c_program_gets_one_line_on_a_damaged_block(program, tmp_path):
    (tmp_path / "block").write_bytes(weight_block(random_student("local"))[:-8])
    result = run(program, tmp_path / "block", "none", 32, "auto", 1, "none")
    assert result.returncode == 1
    assert result.stderr.startswith("the weight block is cut")
    assert result.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("instructions", ["baseline", "avx2", "avx512"])
@pytest.mark.parametrize("name", ALL)
def test_address_sanitizer_finds_nothing(checked_program, name, instructions, tmp_path):
    student = random_student(name)
    for dtype in ("float32", "float64"):
        options = dict(dtype=dtype, instructions=instructions, n_threads=2)
        for neighbors in ("none", "uneven", "many"):
            graph = single_layer_graph(student, NEIGHBORS[neighbors])
            run_program(checked_program, tmp_path, student, graph, **options)
        engine = Engine(student, backend="reference")
        graph = symmetric_graph(random_box(engine), engine.cutoff + 0.3)
        run_program(checked_program, tmp_path, student, graph, symmetric=True, **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["local", "painn", "lennard_jones"])
def test_valgrind_finds_nothing(program, name, tmp_path):
    """On AVX2: valgrind knows no AVX-512. It also sees values that are used before they are set."""
    valgrind = [
        compiler("valgrind"),
        "-q",
        "--error-exitcode=9",
        "--leak-check=full",
        "--errors-for-leak-kinds=definite",
    ]
    student = random_student(name)
    graph = single_layer_graph(student, NEIGHBORS["uneven"])
    run_program(program, tmp_path, student, graph, instructions="avx2", under=valgrind)


@pytest.mark.slow
@pytest.mark.parametrize("instructions", ["avx2", "avx512"])
def test_nothing_is_left_for_the_linker_to_mix_up(instructions, tmp_path):
    """An inline function compiled for AVX-512 outside its namespace may become the copy everyone calls."""
    if instructions not in instruction_flags():
        pytest.skip("not this kind of processor")
    flags = [
        "-std=c++17",
        "-O3",
        "-fopenmp",
        f"-DMLFFD_ISA={instructions}",
        *instruction_flags()[instructions],
    ]
    compile_(compiler("g++"), *flags, "-c", CPU / "students.cpp", "-o", tmp_path / "students.o")
    symbols = run(compiler("nm"), "-C", "--defined-only", tmp_path / "students.o").stdout.splitlines()
    shared = [line.split(maxsplit=2)[2] for line in symbols if line.split()[1] in "WVuBDTR"]
    assert any(f"mlffd::{instructions}::" in name for name in shared), "nm is read wrongly"
    foreign = [name for name in shared if f"mlffd::{instructions}::" not in name]
    assert [name for name in foreign if "__gxx_personality" not in name] == []


@pytest.mark.slow
def test_tabulated_filters_are_exact_to_rounding(tmp_path):
    """Values and derivatives, for 1 to 64 radial functions: below 1e-6 in float32."""
    flags = ["-std=c++17", "-O1", "-fopenmp", "-Wno-psabi", "-DMLFFD_ISA=baseline", f"-I{CPU}"]
    compile_(compiler("g++"), *flags, Path(__file__).parent / "cpu_table.cpp", "-o", tmp_path / "table")
    rows = [line.split() for line in run(tmp_path / "table").stdout.splitlines()]
    assert [(int(bits), int(n_radial)) for bits, n_radial, *_ in rows] == [
        (bits, n_radial) for n_radial in (1, 6, 20, 64) for bits in (32, 64)
    ]
    for bits, _, value_error, slope_error in rows:
        value_bar, slope_bar = (5e-7, 5e-7) if bits == "32" else (1e-12, 1e-11)
        assert float(value_error) < value_bar
        assert float(slope_error) < slope_bar
