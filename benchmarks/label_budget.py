# SPDX-License-Identifier: MIT
"""How the error falls with the number of labels: frames drawn at random against frames found by exploring.

    python benchmarks/label_budget.py --config CONFIG.toml --test TEST.h5 --folder FOLDER
        --random POOL.h5 [POOL.h5 ...] --explored ROUND0.h5 [ROUND1.h5 ...]

``--random``: label files of molecular dynamics, of which N frames are drawn. ``--explored``: label files of a
distillation, round after round: of the round that a budget of N ends in, frames are drawn. Every student is
trained by the tables [student] and [train] of the config, but all for the same number of steps
and judged on ``--test``. Students lie in FOLDER; what is trained is not trained again. Writes
results/label_budget.json and, from it, label_budget.md and, where matplotlib is installed, label_budget.svg.
"""

import argparse
import dataclasses
import hashlib
import sys
from pathlib import Path

import numpy as np
import torch
from harness import RESULTS, facts, report, set_threads

from mlffd.dataset.frames import check_apart
from mlffd.dataset.store import LabelledSet, join_labels, read_labels
from mlffd.distill.config import read_plan
from mlffd.train.config import TrainConfig
from mlffd.train.frames import labelled_graphs, split
from mlffd.train.loop import train
from mlffd.train.metrics import evaluate

SIZES = (50, 100, 200, 400, 800)
SERIES = {"random": "drawn at random from dynamics", "explored": "round after round of the distillation"}


def subset(labels: LabelledSet, chosen: np.ndarray) -> LabelledSet:
    """The labels of some frames."""
    of_frames = hashlib.sha256(f"{labels.hash} {chosen.tolist()}".encode()).hexdigest()
    return dataclasses.replace(
        labels,
        structures=[labels.structures[k] for k in chosen],
        energies=labels.energies[chosen],
        forces=[labels.forces[k] for k in chosen],
        stresses=labels.stresses[chosen],
        hash=of_frames,
        hessian_rows=None,
        frame_idx=None,
    )


def training_sets(labels: dict[str, LabelledSet], rounds: list[int], sizes, seed: int):
    """(series, labels) for every size that a series has frames for; ``rounds``: lengths of those explored."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels["random"]))
    of_rounds = [first + rng.permutation(n) for first, n in zip(np.cumsum([0, *rounds]), rounds)]
    orders = {"random": order, "explored": np.concatenate(of_rounds)}
    for size in sizes:
        for series, frames in labels.items():
            if size <= len(frames):
                yield series, subset(frames, orders[series][:size])


def same_number_of_steps(config: TrainConfig, labels: LabelledSet, n_steps: int) -> TrainConfig:
    """The training config with the epochs that make up ``n_steps``."""
    training, _ = split(labels.structures, config)
    steps_an_epoch = -(-len(training) // config.batch_size)
    return dataclasses.replace(config, epochs=max(1, round(n_steps / steps_an_epoch)), patience=0)


def measure(options) -> dict:
    """Train on every set, or take what is trained already, and look at the errors on the test frames."""
    plan = read_plan(options.config)
    files = {name: [read_labels(path) for path in getattr(options, name)] for name in SERIES}
    labels, test = {name: join_labels(sets) for name, sets in files.items()}, read_labels(options.test)
    for frames in labels.values():
        check_apart(frames.structures, test.structures)
    options.folder.mkdir(parents=True, exist_ok=True)
    rows = []
    rounds = list(map(len, files["explored"]))
    for series, frames in training_sets(labels, rounds, options.sizes, options.seed):
        output = options.folder / f"{series}-{len(frames)}.mlffd"
        config = same_number_of_steps(plan.final, frames, options.steps)
        student = train(frames, plan.student.architecture, config, output).student
        errors = evaluate(student, labelled_graphs(test, student.cutoff, torch.float64))
        rows.append({"series": series, "n_labels": len(frames), "epochs": config.epochs, **errors})
        print(f"{series} {len(frames)}: {errors['force_mae_mev_per_angstrom']:.1f} meV/Å", flush=True)
    return {
        "question": "How does the error of a student fall with the number of labels?",
        **facts(),
        "teacher": test.metadata["teacher"],
        "student": plan.student.architecture,
        "steps": options.steps,
        "sets": {
            name: {"sha256": s.hash, "n_frames": len(s)} for name, s in {**labels, "test": test}.items()
        },
        "rows": rows,
    }


def markdown(results: dict) -> str:
    """The page: one row a number of labels, one column a series."""
    error = {(row["series"], row["n_labels"]): row["force_mae_mev_per_angstrom"] for row in results["rows"]}
    sizes = sorted({n_labels for _, n_labels in error})
    lines = [
        f"# {results['question']}",
        "",
        f"Force error (MAE, meV/Å) on {results['sets']['test']['n_frames']} frames never trained on; every "
        f"student trained for {results['steps']} steps. {results['date'][:10]}, commit {results['commit']}.",
        "",
        "| labels | " + " | ".join(SERIES.values()) + " |",
        "| --: | " + " | ".join("--:" for _ in SERIES) + " |",
    ]
    for size in sizes:
        found = [error.get((series, size)) for series in SERIES]
        cells = ["" if value is None else f"{value:.1f}" for value in found]
        lines.append(f"| {size} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def figure(results: dict, path: Path) -> None:
    """Error by number of labels, both axes logarithmic; nothing where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no figure: matplotlib is not installed", file=sys.stderr)
        return
    canvas = Figure(figsize=(5, 3.5), layout="constrained")
    axes = canvas.subplots()
    for series, title in SERIES.items():
        rows = [row for row in results["rows"] if row["series"] == series]
        errors = [row["force_mae_mev_per_angstrom"] for row in rows]
        axes.loglog([row["n_labels"] for row in rows], errors, "o-", label=title)
    axes.set(xlabel="labels", ylabel="force error, MAE (meV/Å)")
    axes.set_xticks(SIZES, SIZES, minor=False)
    axes.legend(frameon=False)
    canvas.savefig(path, metadata={"Date": None})


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--config", type=Path, help="distillation config")
    options.add_argument("--test", type=Path, help="label file that nothing is trained on")
    options.add_argument("--random", type=Path, nargs="+", help="label files of molecular dynamics")
    options.add_argument("--explored", type=Path, nargs="+", help="label files of a distillation, in order")
    options.add_argument("--folder", type=Path, help="for the students")
    options.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    options.add_argument("--steps", type=int, default=20000, help="of every training (default %(default)s)")
    options.add_argument("--seed", type=int, default=0, help="of the frames drawn (default %(default)s)")
    options.add_argument("--output", type=Path, default=RESULTS / "label_budget.json")
    options.add_argument("--page-only", action="store_true", help="make the page anew from the JSON")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    set_threads(1)
    results = report("label_budget", options, measure, markdown)
    if results is None:
        return 1
    figure(results, options.output.with_suffix(".svg"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
