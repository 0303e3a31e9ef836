# SPDX-License-Identifier: MIT
"""Benchmarks: no cache is timed, numbers come with their facts, and every route runs."""

import ctypes
import json
import shutil
import sys
import time
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase.build import bulk, molecule

from mlffd import Calculator
from mlffd.bundle import write_bundle
from mlffd.dataset.label import label
from mlffd.dataset.store import join_labels, read_labels
from mlffd.students import build_student

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))  # as for `python benchmarks/ns_per_day.py`

import cpu_kernels  # noqa: E402
import dense_layers  # noqa: E402
import harness  # noqa: E402
import ipi_costs  # noqa: E402
import label_budget  # noqa: E402
import lammps_costs  # noqa: E402
import ns_per_day  # noqa: E402
import one_peer  # noqa: E402
import peers  # noqa: E402
import routes  # noqa: E402
from harness import BenchmarkError, NothingMoved, run_program, summary, time_steps  # noqa: E402

LOCAL = dict(family="local", species=[1, 8], cutoff=4.0, n_radial=4, channels=8, hidden=[8])
QUICK = ["--steps", "2", "--repetitions", "3", "--warm-up", "1", "--molecules", "64"]
FACTS = {
    "question", "date", "commit", "device", "cpu", "cores", "threads", "load_average", "versions", "boxes",
    "time_step_fs", "student", "teacher", "force_error", "rows",
}  # fmt: skip


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("benchmarks") / "random.mlffd"
    student = build_student(LOCAL)
    student.baseline.reference_energies += torch.tensor([-3.0, -43.0], dtype=torch.float64)
    write_bundle(path, student)
    return path


@pytest.fixture
def benchmark(bundle, tmp_path, monkeypatch, capsys):
    """A function that runs ns_per_day with options: exit status, JSON and page (None if there are none)."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MLFFD_THREADS"):
        monkeypatch.setenv(name, "1")  # so that it is put back

    def run(*options):
        output = tmp_path / "results" / "ns.json"
        status = ns_per_day.main(["--student", str(bundle), "--output", str(output), *QUICK, *options])
        if not output.exists():
            return status, None, None
        return status, json.loads(output.read_text()), output.with_suffix(".md").read_text()

    return run


class Walk:
    """A step that takes a known time: ``seconds`` of a clock of its own, and moves an atom."""

    def __init__(self, monkeypatch, seconds):
        self.now, self.seconds, self.positions = 0.0, iter(seconds), np.zeros((1, 3))
        monkeypatch.setattr(harness.time, "perf_counter", lambda: self.now)

    def step(self):
        self.now += next(self.seconds)
        self.positions[0, 0] += 1.0


def test_time_steps_leaves_out_the_warm_up(monkeypatch):
    walk = Walk(monkeypatch, [50.0, 60.0, 1.0, 2.0, 3.0, 5.0])
    means = time_steps(walk.step, lambda: walk.positions, n_steps=2, repetitions=2, warm_up=2)
    assert means == [1.5, 4.0]


def test_no_cache_is_timed():
    atoms = molecule("H2O")
    atoms.calc = Calculator(build_student(LOCAL))
    with pytest.raises(NothingMoved, match="cache"):
        time_steps(atoms.get_forces, lambda: atoms.positions, n_steps=2, repetitions=1, warm_up=0)


def test_summary():
    numbers = summary([0.05, 0.0432, 0.04], time_step_fs=0.5)
    assert numbers["ns_per_day"] == pytest.approx(1.0)
    assert numbers["median_seconds_per_step"] == 0.0432
    assert (numbers["lowest_seconds_per_step"], numbers["highest_seconds_per_step"]) == (0.04, 0.05)


@pytest.mark.parametrize("seconds", [[], [0.0, 1.0], [float("nan")]])
def test_summary_refuses_what_is_no_time(seconds):
    with pytest.raises(BenchmarkError):
        summary(seconds, 0.5)


def test_a_run_that_stopped_early_has_no_speed():
    with pytest.raises(BenchmarkError, match="5 steps instead of 6"):
        harness.repetition_means([1.0] * 5, n_steps=2, repetitions=2, warm_up=2)
    plan = routes.Plan(molecule("H2O"), 0.5, steps=10, repetitions=2, warm_up=3)
    printed = "Loop time of {} on 2 procs for {} steps with 192 atoms\n"
    runs = [(0.1, 0), (9.0, 3), (1.0, 10), (2.0, 10)]
    text = "".join(printed.format(*run) for run in runs)
    assert routes.loop_times(text, plan) == [0.1, 0.2]
    with pytest.raises(BenchmarkError, match="LAMMPS ran"):
        routes.loop_times(text[: text.rindex("Loop")], plan)


def test_programs_fail_with_their_last_line(tmp_path):
    python, speak = sys.executable, "print('some words'); raise SystemExit('the reason')"
    assert run_program([python, "-c", "print('done')"], tmp_path) == "done\n"
    with pytest.raises(BenchmarkError, match="failed: the reason"):
        run_program([python, "-c", speak], tmp_path)
    with pytest.raises(BenchmarkError, match="did not end within"):
        run_program([python, "-c", "import time; time.sleep(60)"], tmp_path, time_limit=0.2)


def test_nobody_waits_for_a_partner_that_failed(tmp_path):
    began = time.monotonic()
    with pytest.raises(BenchmarkError, match="sh failed: no such student"):
        run_program(["sleep", "60"], tmp_path, beside=["sh", "-c", "echo no such student; exit 1"])
    assert time.monotonic() - began < 10.0


def test_ase_route(benchmark, bundle):
    status, results, page = benchmark("--only", "ase")
    assert status == 0
    assert set(results) >= FACTS
    assert set(results["versions"]) == set(harness.PACKAGES)
    assert results["versions"]["torch"] == torch.__version__
    assert (results["threads"], results["time_step_fs"]) == (1, 0.5)
    box = results["boxes"]["64"]
    assert box["n_atoms"] == 192
    assert results["student"]["name"] == bundle.stem
    assert str(bundle.parent) not in json.dumps(results)  # a folder of this machine says nothing to others
    (row,) = results["rows"]
    assert len(row["seconds_per_step"]) == 3
    assert row["median_seconds_per_step"] == sorted(row["seconds_per_step"])[1]
    assert row["ns_per_day"] == pytest.approx(0.5e-6 * 86400 / row["median_seconds_per_step"])
    assert abs(row["energy_difference_ev"]) < 1e-3
    assert box["reference_energy_ev"] == pytest.approx(64 * (-43 - 2 * 3), abs=100)
    assert page == ns_per_day.markdown(results)
    assert "ASE, velocity Verlet" in page
    assert "nothing is said of the student's error" in page


def test_the_page_can_be_made_anew(benchmark):
    page = benchmark("--only", "ase")[2]
    assert benchmark("--page-only")[2] == page


def test_what_cannot_run_is_said(benchmark, monkeypatch, tmp_path):
    monkeypatch.setattr(harness, "SCRIPTS", tmp_path)
    status, results, page = benchmark("--only", "lammps", "ipi")
    assert status == 1
    assert [row["not_run"] for row in results["rows"]] == [
        "no lmp in this environment", "no i-pi in this environment",
    ]  # fmt: skip
    assert "not run: no lmp" in page


def test_a_wrong_energy_stops_it(benchmark, monkeypatch, capsys):
    right = routes.run_ase
    wrong = {"first_energy": -1e4}
    monkeypatch.setattr(
        ns_per_day, "run_ase", lambda *args: routes.Outcome(**{**vars(right(*args)), **wrong})
    )
    status, results, _ = benchmark("--only", "ase")
    assert (status, results) == (1, None)
    assert "off the float64 reference" in capsys.readouterr().err


def test_missing_student(benchmark, capsys):
    assert benchmark("--student", "nowhere.mlffd", "--only", "ase")[0] == 1
    assert "no student bundle at nowhere.mlffd" in capsys.readouterr().err


@pytest.mark.parametrize("script", [cpu_kernels, dense_layers, ipi_costs, ns_per_day, peers])
def test_the_committed_page_is_that_of_the_committed_numbers(script):
    path = harness.RESULTS / f"{script.__name__}.json"
    if not path.exists():
        pytest.skip("no results yet")
    assert path.with_suffix(".md").read_text() == script.markdown(json.loads(path.read_text()))


@pytest.fixture
def compare(tmp_path, monkeypatch):
    """A function that runs peers with options: exit status, JSON and page (None if there are none)."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MLFFD_THREADS"):
        monkeypatch.setenv(name, "1")
    quick = ["--frames", "8", "--seconds", "0.1", "--repetitions", "2", "--backend", "reference"]

    def run(*options):
        output = tmp_path / "peers.json"
        status = peers.main(["--output", str(output), *quick, *options])
        if not output.exists():
            return status, None, None
        return status, json.loads(output.read_text()), output.with_suffix(".md").read_text()

    return run


def test_peers_in_processes_of_their_own(compare, tmp_path):
    status, results, page = compare("--only", "student", "nep", "snap", "--environments", str(tmp_path))
    assert status == 1
    student, *others = results["rows"]
    assert student["n_atoms"] == 192
    assert student["neighbors"] == pytest.approx(70, abs=5)
    assert len(student["seconds_per_step"]) == len(student["cpu_seconds_per_step"]) == 2
    assert student["median_seconds_per_step"] == np.median(student["seconds_per_step"])
    assert "no environment nep with calorine" in others[0]["not_run"]
    assert "no environment snap" in others[1]["not_run"]
    assert page == peers.markdown(results)
    assert page.count("not run") == 2


def test_peers_that_fail_say_why(compare, monkeypatch):
    monkeypatch.setitem(peers.PEERS, "nep", peers.Peer("NEP", "", "nep"))
    status, results, _ = compare("--only", "nep")
    assert status == 1
    assert "No module named 'calorine'" in results["rows"][0]["not_run"]


def test_a_peer_that_answers_from_a_cache_is_noticed(compare, monkeypatch, capsys):
    still = np.repeat(peers.trajectory(peers.read(peers.WATER), 1, 0.5, "reference"), 8, axis=0)
    monkeypatch.setattr(peers, "trajectory", lambda *args: still)
    status, results, _ = compare("--only", "student")
    assert (status, results) == (1, None)
    assert "cache" in capsys.readouterr().err


def test_a_peer_is_timed_over_what_fits(monkeypatch):
    atoms = molecule("H2O", cell=[9.0] * 3)
    frames = atoms.positions + np.random.default_rng(0).normal(size=(30, 3, 3), scale=0.01)
    request = {"frames": frames, "numbers": atoms.numbers, "cell": atoms.cell.array, "warm_up": 2}
    request |= {"repetitions": 3, "seconds": 1e-6}
    measured = one_peer.measure(Calculator(build_student(LOCAL), backend="reference"), request)
    assert measured["steps"] == 1
    assert len(measured["energies"]) == 2 + 3
    assert len(set(measured["force_norms"])) == 5
    measured = one_peer.measure(
        Calculator(build_student(LOCAL), backend="reference"), {**request, "seconds": 1e3}
    )
    assert measured["steps"] == 28 // 3


def test_made_up_nep_is_of_the_size_its_header_says():
    header, numbers = one_peer.random_nep(("O", "H")).split("ANN 30 0\n")
    assert header.startswith("nep4 2 O H\n")
    network, expansion, scales = 2 * (30 + 2) * 30 + 1, 4 * (5 * 9 + 5 * 9), 30
    assert len(numbers.split()) == network + expansion + scales


@pytest.mark.parametrize(
    ("name", "neighbors", "megaflop"),
    # the limits of the students as they were stated: 0.23; 0.42 dense and 0.35 of edges; 2.65 and 1.19
    [("local", 70, 0.23), ("painn-64", 52, 0.42 + 0.35), ("painn-128", 52, 2.65 + 1.19)],
)
def test_flop_are_those_of_the_stated_limits(name, neighbors, megaflop):
    flop = cpu_kernels.flop_per_atom(cpu_kernels.STUDENTS[name], neighbors)
    assert flop == pytest.approx(1e6 * megaflop, rel=0.02)


def test_time_inside_a_phase_counts_once(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(cpu_kernels.time, "process_time", lambda: now[0])
    taken, running = {}, []

    def spend(seconds):
        now[0] += seconds

    inner = cpu_kernels.watch(spend, "inner", taken, running)
    outer = cpu_kernels.watch(lambda: (spend(1.0), inner(4.0), inner(2.0)), "outer", taken, running)
    outer()
    outer()
    assert taken == {"inner": 12.0, "outer": 2.0}
    assert running == []


@pytest.fixture
def quick_kernels(tmp_path, monkeypatch):
    """A function that runs cpu_kernels on 192 atoms: exit status, JSON and page (None if there are none)."""
    if not cpu_kernels.cpu.is_compiled():
        pytest.skip("the CPU kernels are not compiled")
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MLFFD_THREADS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(cpu_kernels, "blas_peak", lambda dtype, **environment: 100.0)

    def run(*options):
        output = tmp_path / "kernels.json"
        quick = ["--quick", "--sizes", "192", "--only", "local", "--output", str(output)]
        status = cpu_kernels.main([*quick, *options])
        if not output.exists():
            return status, None, None
        return status, json.loads(output.read_text()), output.with_suffix(".md").read_text()

    return run


def test_kernels_beside_the_reference(quick_kernels):
    status, results, page = quick_kernels("--backends", "eager", "cpu")
    assert status == 0
    eager, kernel = results["rows"]
    assert eager["neighbors"] == kernel["neighbors"] == pytest.approx(70, abs=5)
    assert {"list checked", "edge vectors", "graph", "student"} <= set(eager["phase_cpu_seconds_per_step"])
    assert {"list checked", "edge vectors", "kernel", "force sums"} <= set(
        kernel["phase_cpu_seconds_per_step"]
    )
    for row in (eager, kernel):
        assert row["checked_against"] == "reference, float64"
        assert len(row["seconds_per_step"]) == len(row["cpu_seconds_per_step"]) == 2
        phases = np.sum(list(row["phase_cpu_seconds_per_step"].values()), axis=0)
        assert (phases <= row["cpu_seconds_per_step"]).all()  # nothing is counted twice
    assert cpu_kernels.ratio(kernel, results["rows"], "compiled") is None
    assert page == cpu_kernels.markdown(results)
    assert "times eager" in page


def test_kernels_that_are_wrong_are_not_timed(quick_kernels, monkeypatch, capsys):
    right = cpu_kernels.cpu.CpuKernel.evaluate

    def wrong(*arguments, **options):
        energies, gradient = right(*arguments, **options)
        return energies, gradient * 1.001

    monkeypatch.setattr(cpu_kernels.cpu.CpuKernel, "evaluate", wrong)
    status, results, _ = quick_kernels("--backends", "cpu")
    assert (status, results) == (1, None)
    assert "off float64" in capsys.readouterr().err


def test_what_needs_too_much_memory_is_said(quick_kernels, monkeypatch):
    monkeypatch.setattr(cpu_kernels, "timed", lambda *args: torch.empty(10**15))
    status, results, page = quick_kernels("--backends", "eager")
    assert status == 0
    assert results["rows"][0]["not_run"] == "needs more memory than there is"
    assert "not run" in page


def test_other_errors_are_not_taken_for_a_want_of_memory(quick_kernels, monkeypatch):
    def fails(*arguments):
        raise RuntimeError("the kernel is broken")

    monkeypatch.setattr(cpu_kernels, "timed", fails)
    with pytest.raises(RuntimeError, match="broken"):
        quick_kernels("--backends", "eager")


def test_dense_layers_beside_blas(tmp_path, monkeypatch):
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("needs a C++ compiler")
    shapes = [(16, 64, 64), (48, 100, 64)]
    monkeypatch.setattr(dense_layers, "SHAPES", shapes)
    monkeypatch.setattr(dense_layers, "numpy_rates", lambda options, **environment: [50.0, 60.0, 30.0, 40.0])
    output = tmp_path / "dense.json"
    assert dense_layers.main(["--seconds", "0.001", "--output", str(output)]) == 0
    results = json.loads(output.read_text())
    assert [(tuple(row["shape"]), row["dtype"]) for row in results["rows"]] == [
        (shape, dtype) for dtype in ("float32", "float64") for shape in shapes
    ]
    assert all(row["kernel"] > 0 and row["torch"] > 0 for row in results["rows"])
    assert output.with_suffix(".md").read_text() == dense_layers.markdown(results)


def test_a_wrong_product_is_not_timed(monkeypatch):
    options = dense_layers.parser().parse_args([])

    class Wrong:
        def apply_float32(self, x, weight, y, n_rows, n_in, n_out, n_times):
            np.ctypeslib.as_array(ctypes.cast(y.value, ctypes.POINTER(ctypes.c_float)), (n_rows, n_out))[
                :
            ] = 1.0

    with pytest.raises(BenchmarkError, match="off"):
        dense_layers.kernel_rate(Wrong(), (4, 8, 16), "float32", options)


@pytest.mark.slow
def test_all_routes_with_a_student(benchmark, lmp, mpiexec):
    """Real lmp and i-pi; that their energies are the reference's is checked by the benchmark itself."""
    pytest.importorskip("ipi", reason="needs the extra `ipi`")
    without = ("teacher",) if cpu_kernels.cpu.is_compiled() else ("teacher", "plugin", "plugin-2")
    names = [name for name in ns_per_day.ROUTES if name not in without]
    status, results, _ = benchmark("--only", *names, "--dtype", "float64")
    assert status == 0
    assert [row["route"] for row in results["rows"]] == names
    assert all(len(row["seconds_per_step"]) == 3 and row["ns_per_day"] > 0 for row in results["rows"])


@pytest.mark.slow
def test_mlffd_driver_that_fails_ends_ipi(lmp, tmp_path):
    pytest.importorskip("ipi", reason="needs the extra `ipi`")
    plan = routes.Plan(molecule("H2O", cell=[9.0] * 3, pbc=True), 0.5, 1, 1, 1)
    with pytest.raises(BenchmarkError, match=r"mlffd-driver failed: .*no student bundle at nowhere"):
        routes.run_ipi(plan, "nowhere.mlffd", "float32")


def ipi_round(driver: float, alone: float, model: float) -> dict[str, list[dict]]:
    """One round of one route each, as the benchmark keeps them: seconds a step."""
    empty = {"ipi_cpu_seconds": None, "clients_cpu_seconds": None, "report": {}}
    taken = {"driver": driver, "alone": alone, "model": model}
    return {name: [{"seconds": s, "median_seconds": s, **empty}] for name, s in taken.items()}


def test_ratio_is_taken_within_a_round():
    """Seen to catch a ratio of medians: on a noisy machine rounds differ more than routes."""
    rounds = [ipi_round(3.0, 1.0, 1.0), ipi_round(26.0, 10.0, 10.0), ipi_round(12.0, 4.0, 6.0)]
    rows = [
        {"beads": 32, "route": name, "rounds": [one for each in rounds for one in each[name]]}
        for name in ("driver", "alone", "model")
    ]
    assert ipi_costs.ratio_row(rows, 32)["ratios_of_seconds"] == pytest.approx([1.5, 1.3, 1.2])
    assert ipi_costs.ratio_row(rows[1:], 32) is None
    assert ipi_costs.ratio_row(rows, 8) is None


def test_batches_of_the_driver_are_counted():
    plan = ipi_costs.Plan(n_beads=4, student="water", steps=8, warm_up=1)
    reports = [{"evaluations": 10, "structures": 37}, {"evaluations": 11, "structures": 40}]
    assert ipi_costs.batches([{"report": one} for one in reports], plan) == {
        "evaluations_per_step": pytest.approx(1.05), "duplicates": 0,
    }  # fmt: skip
    assert ipi_costs.batches([{"report": {"evaluations": 10, "structures": 45}}], plan)["duplicates"] == 5


def test_a_client_that_fails_at_its_very_end_is_noticed(tmp_path):
    """Seen to catch figures of a driver that ended together with i-PI, badly."""
    plan = ipi_costs.Plan(n_beads=1, student="water", steps=1, warm_up=0)
    for name in ("ipi", "client"):
        (tmp_path / name).mkdir()
    ipi = harness.Program(["sleep", "0.2"], tmp_path / "ipi")
    client = harness.Program(["sh", "-c", "sleep 0.2; echo the reason; exit 1"], tmp_path / "client")
    with pytest.raises(BenchmarkError, match="sh failed: the reason"):
        ipi_costs.watch([ipi, client], plan)


@pytest.mark.slow
def test_costs_of_path_integrals(bundle, tmp_path, monkeypatch):
    """Real i-PI; what it recorded is what the student alone is timed with."""
    pytest.importorskip("ipi", reason="needs the extra `ipi`")
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MLFFD_THREADS"):
        monkeypatch.setenv(name, "1")  # so that it is put back
    output = tmp_path / "ipi.json"
    options = ["--student", str(bundle), "--beads", "2", "--steps", "2", "--warm-up", "2", "--rounds", "1"]
    routes = ["driver", "alone", "model", "ase"]
    assert ipi_costs.main([*options, "--only", *routes, "--output", str(output)]) == 0
    results = json.loads(output.read_text())
    assert [row["route"] for row in results["rows"]] == routes
    assert all(row["seconds_per_step"] > 0 for row in results["rows"])
    driver = results["rows"][0]
    assert driver["duplicates"] == 0
    # the beads start as one and the same structure
    assert driver["rounds"][0]["report"]["structures"] == 2 * (driver["steps"] + 2) + 1
    assert len(results["ratios"]) == 1
    assert output.with_suffix(".md").read_text() == ipi_costs.markdown(results)


@pytest.mark.slow
def test_costs_around_a_student(bundle, tmp_path, monkeypatch, lmp):
    """The clock within LAMMPS sees the student on both routes."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MLFFD_THREADS"):
        monkeypatch.setenv(name, "1")  # so that it is put back
    output = tmp_path / "costs.json"
    options = ["--student", str(bundle), "--steps", "8", "--repetitions", "2", "--output", str(output)]
    assert lammps_costs.main([*options, "--only", "overhead"]) == 0
    for row in json.loads(output.read_text())["overhead"]:
        assert 0.0 < row["outside_the_student"] < 1.0
        assert all(np.array(row["kernel_cpu_seconds"]) < row["cpu_seconds_per_step"])
    assert output.with_suffix(".md").read_text().count("| 1536 |") == 2


def test_memory_of_children_is_watched(tmp_path):
    with lammps_costs.ResidentMemory() as watched:
        run_program([sys.executable, "-c", "import time; held = b'x' * 10**8; time.sleep(2)"], tmp_path)
    assert max(watched.mib) > 1e8 / lammps_costs.MIB


LABEL_BUDGET = """
name = "argon"
teacher = "lj"
student = { cutoff = 5.0, channels = 2, l_max = 1, n_radial = 4, hidden = [4] }
train = { validation_fraction = 0.01 }
rounds = [{ stages = [] }]
test = {}
"""


@pytest.fixture
def label_files(tmp_path):
    """Label files of rattled crystals: pool, test, and two rounds, by name."""
    frames = []
    for number in range(14):
        frames.append(bulk("Ar", cubic=True) * (2, 1, 1))
        frames[-1].rattle(0.1 + 0.01 * number, seed=number)
    sets = {"pool": frames[:4], "round0": frames[4:7], "round1": frames[7:11], "test": frames[11:]}
    for name, chosen in sets.items():
        ase.io.write(tmp_path / f"{name}.xyz", chosen)
        label(tmp_path / f"{name}.xyz", {"name": "lj", "rc": 5.0}, tmp_path / f"{name}.h5")
    return {name: tmp_path / f"{name}.h5" for name in sets}


@pytest.mark.slow
def test_label_budget(label_files, tmp_path):
    """All students take the same number of steps."""
    (tmp_path / "config.toml").write_text(LABEL_BUDGET)
    output = tmp_path / "budget.json"
    words = (
        "--config config.toml --folder students --sizes 2 3 4 8 --steps 12 --test test.h5 --random pool.h5 "
    )
    words += "--explored round0.h5 round1.h5 --output budget.json"
    options = [str(tmp_path / word) if "." in word or word == "students" else word for word in words.split()]
    assert label_budget.main(options) == 0
    results = json.loads(output.read_text())
    epochs = {(row["series"], row["n_labels"]): row["epochs"] for row in results["rows"]}
    # one frame of each set is for validation
    assert epochs == {(name, n): 12 // (n - 1) for name in ("random", "explored") for n in (2, 3, 4)}
    assert "| 4 |" in output.with_suffix(".md").read_text()
    assert output.with_suffix(".svg").stat().st_size > 1000


@pytest.mark.slow
def test_a_budget_buys_round_after_round(label_files):
    """Of the round it ends in, frames of all stages; seen to fail when those of all rounds were mixed."""
    explored = join_labels([read_labels(label_files[name]) for name in ("round0", "round1")])
    sets = label_budget.training_sets({"explored": explored, "random": explored}, [3, 4], (2, 5), seed=1)
    few, more = (labels.structures for series, labels in sets if series == "explored")
    first = [atoms.positions.sum() for atoms in explored.structures[:3]]
    assert {atoms.positions.sum() for atoms in few} < set(first)
    assert {atoms.positions.sum() for atoms in more[:3]} == set(first)
    assert len(more) == 5
