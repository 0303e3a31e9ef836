# SPDX-License-Identifier: MIT
"""Are the kernels' own dense layers faster than a BLAS, at the shapes that students have?

    python benchmarks/dense_layers.py

GFLOP/s on one thread of `mlffd/kernels/cpu/gemm.hpp` for the widest vectors of this processor, and of the
BLAS of NumPy and of PyTorch; of NumPy's also when it is told to use AVX-512, which it does not do by itself
on all processors that have it. Writes results/dense_layers.json, and results/dense_layers.md made from it.
"""

import argparse
import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from harness import RESULTS, ROOT, BenchmarkError, facts, report, set_threads

KERNELS = ROOT / "mlffd" / "kernels" / "cpu"
SOURCE = Path(__file__).with_suffix(".cpp")
FLAGS = ["-std=c++17", "-O3", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]
AVX2 = ["-mavx2", "-mfma"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mprefer-vector-width=512"]
# rows, columns in, columns out: 16 atoms of the local student; 48 atoms, or their vectors, of painn; 1024^3
SHAPES = [
    (16, 224, 64), (16, 64, 64), (16, 64, 224), (80, 16, 64), (48, 64, 64), (48, 64, 192), (48, 128, 192),
    (144, 64, 128), (48, 128, 128), (48, 128, 384), (48, 256, 384), (144, 128, 256), (1024, 1024, 1024),
]  # fmt: skip
DTYPES = ("float32", "float64")
COLUMNS = {"kernel": "kernel", "numpy": "NumPy", "numpy_avx512": "NumPy, AVX-512", "torch": "PyTorch"}
TOLERANCES = {"float32": 1e-4, "float64": 1e-12}


def main(arguments: list[str] | None = None) -> int:
    """The command line: 1 where something could not be measured, with one line of why."""
    options = parser().parse_args(arguments)
    set_threads(1)
    if options.numpy_alone:
        print(json.dumps([numpy_rate(shape, dtype, options) for dtype in DTYPES for shape in SHAPES]))
        return 0
    return 1 if report("dense_layers", options, measure, markdown) is None else 0


def parser() -> argparse.ArgumentParser:
    """All options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=0.3, help="for each number")
    parser.add_argument(
        "--numpy-alone", action="store_true", help="print NumPy's rates (it starts itself so)"
    )
    parser.add_argument("--page-only", action="store_true", help="make the page anew from the JSON")
    parser.add_argument("--output", type=Path, default=RESULTS / "dense_layers.json")
    return parser


def measure(options) -> dict:
    """Everything that goes into the JSON.

    Raises:
        BenchmarkError: no compiler, or a product that is wrong.
    """
    instructions = widest()
    with tempfile.TemporaryDirectory(prefix="mlffd-") as folder:
        library = compiled(Path(folder), instructions)
        rows = [
            {
                "shape": shape,
                "dtype": dtype,
                "kernel": kernel_rate(library, shape, dtype, options),
                "torch": torch_rate(shape, dtype, options),
            }
            for dtype in DTYPES
            for shape in SHAPES
        ]
    for row, found in zip(rows, numpy_rates(options)):
        row["numpy"] = found
    if instructions == "avx512":
        for row, found in zip(rows, numpy_rates(options, OPENBLAS_CORETYPE="SKYLAKEX")):
            row["numpy_avx512"] = found
    return {"question": __doc__.splitlines()[0], **facts(), "instructions": instructions, "rows": rows}


def widest() -> str:
    """The widest vectors that this processor and the kernels have."""
    flags = set(Path("/proc/cpuinfo").read_text().split())
    if {"avx512f", "avx512vl", "avx512dq", "avx512bw"} <= flags:
        return "avx512"
    return "avx2" if {"avx2", "fma"} <= flags else "baseline"


def compiled(folder: Path, instructions: str) -> ctypes.CDLL:
    """dense_layers.cpp for these instructions.

    Raises:
        BenchmarkError: there is no compiler, or it refuses.
    """
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise BenchmarkError("no C++ compiler: install g++ or set CXX")
    vectors = {"baseline": [], "avx2": AVX2, "avx512": AVX512}[instructions]
    library = folder / "dense_layers.so"
    command = [
        compiler,
        *FLAGS,
        *vectors,
        f"-DMLFFD_ISA={instructions}",
        f"-I{KERNELS}",
        SOURCE,
        "-o",
        library,
    ]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        raise BenchmarkError(f"{SOURCE.name} cannot be compiled: {finished.stderr.splitlines()[-1]}")
    return ctypes.CDLL(str(library))


def kernel_rate(library: ctypes.CDLL, shape: tuple[int, int, int], dtype: str, options) -> float:
    """GFLOP/s of the kernels' dense layer.

    Raises:
        BenchmarkError: it computes something else.
    """
    x, weight = operands(shape, dtype)
    y, weight_64 = np.empty((shape[0], shape[2]), dtype), weight.astype(np.float64)
    apply = getattr(library, f"apply_{dtype}")
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (x, weight_64, y)]
    times = lambda n: apply(*pointers, *shape, n)  # noqa: E731
    times(1)
    error = np.abs(y - x @ weight.T).max() / np.abs(y).max()
    if not error <= TOLERANCES[dtype]:
        raise BenchmarkError(f"the kernel's {shape} product in {dtype} is {error:.2g} off")
    many = max(int(2e7 / np.prod(shape)), 20)  # so that neither packing nor the call counts
    packing = usual(partial(times, 0), options.seconds / 4)
    return rate(shape, (usual(partial(times, many), options.seconds) - packing) / many)


def numpy_rate(shape: tuple[int, int, int], dtype: str, options) -> float:
    """GFLOP/s of NumPy's BLAS, less what calling it costs."""
    x, weight = operands(shape, dtype)
    transposed, y = np.ascontiguousarray(weight.T), np.empty((shape[0], shape[2]), dtype)
    one = np.ones((1, 1), dtype)
    return rate(
        shape,
        less_calling(
            partial(np.matmul, x, transposed, out=y), partial(np.matmul, one, one, out=one.copy()), options
        ),
    )


def torch_rate(shape: tuple[int, int, int], dtype: str, options) -> float:
    """GFLOP/s of PyTorch's BLAS, less what calling it costs."""
    x, weight = (torch.from_numpy(array) for array in operands(shape, dtype))
    transposed, y = weight.T.contiguous(), torch.empty(shape[0], shape[2], dtype=x.dtype)
    one = torch.ones(1, 1, dtype=x.dtype)
    return rate(
        shape,
        less_calling(
            partial(torch.mm, x, transposed, out=y), partial(torch.mm, one, one, out=one.clone()), options
        ),
    )


def numpy_rates(options, **environment: str) -> list[float]:
    """NumPy's, in the order of the rows, from a process of its own: OpenBLAS reads the number of threads and
    the instructions from the environment, and only when it starts."""
    command = [sys.executable, __file__, "--numpy-alone", "--seconds", str(options.seconds)]
    everything = {**os.environ, **environment}
    answer = subprocess.run(command, env=everything, check=True, capture_output=True, text=True)
    return json.loads(answer.stdout)


def operands(shape: tuple[int, int, int], dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """x (n_rows, n_in) and weight (n_out, n_in)."""
    n_rows, n_in, n_out = shape
    random = np.random.default_rng(0)
    return random.normal(size=(n_rows, n_in)).astype(dtype), random.normal(size=(n_out, n_in)).astype(dtype)


def less_calling(product: Callable[[], object], smallest: Callable[[], object], options) -> float:
    """CPU seconds of a product less those of the smallest, which is all calling."""

    def ten(call: Callable[[], object]) -> None:  # so that reading the clock does not count
        for _ in range(10):
            call()

    seconds = [usual(partial(ten, call), options.seconds) for call in (product, smallest)]
    return (seconds[0] - seconds[1]) / 10


def usual(call: Callable[[], object], seconds: float) -> float:
    """CPU seconds of a call, the lower quartile of those that fit into so many seconds, at least four: others
    slow some down, and the clock of a virtual machine now and then jumps over one."""
    call()
    taken, end = [], time.process_time() + seconds
    while len(taken) < 4 or time.process_time() < end:
        began = time.process_time()
        call()
        taken.append(time.process_time() - began)
    return float(np.quantile(taken, 0.25))


def rate(shape: tuple[int, int, int], seconds: float) -> float:
    """GFLOP/s of one product."""
    return 2e-9 * float(np.prod(shape)) / seconds


def markdown(results: dict) -> str:
    """The page made from the JSON, and from nothing else."""
    lines = [
        "# Dense layers of the kernels beside BLAS",
        "",
        "GFLOP/s on one thread, without what a call from Python costs; kernel: `gemm.hpp`, "
        f"{results['instructions']}, weights packed once. The last column is the kernel over the fastest of "
        "the others.",
        "",
        "| dtype | rows x in -> out | " + " | ".join(COLUMNS.values()) + " | times |",
        "|---|---|" + "---|" * (len(COLUMNS) + 1),
        *(table_row(row) for row in results["rows"]),
        "",
        f"{results['cpu']}, load average {results['load_average']} at the start; CPU time, the lower "
        f"quartile of many calls. {results['date']}, commit {results['commit']}, numpy "
        f"{results['versions']['numpy']}, torch {results['versions']['torch']}",
    ]
    return "\n".join(lines) + "\n"


def table_row(row: dict) -> str:
    """One line of the table."""
    rates = [row.get(name) for name in COLUMNS]
    cells = ["" if rate is None else f"{rate:.0f}" for rate in rates]
    best = max(rate for rate in rates[1:] if rate is not None)
    shape = "{} x {} -> {}".format(*row["shape"])
    return f"| {row['dtype']} | {shape} | {' | '.join(cells)} | {rates[0] / best:.2f} |"


if __name__ == "__main__":
    sys.exit(main())
