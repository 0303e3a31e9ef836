# SPDX-License-Identifier: MIT
"""The verbs that make students, judge them, and look after their files."""

import json
import os
import sys
from pathlib import Path

from mlffd.commands.arguments import add_verb, given_teacher
from mlffd.errors import ConfigError


def add_verbs(verbs) -> None:
    """Their options."""
    sub = add_verb(verbs, run_train, "train")
    sub.add_argument("labels", type=Path, nargs="+", help="HDF5 label files")
    sub.add_argument("--config", type=Path, help="TOML file with tables [student], [train], [bars]")
    sub.add_argument("--validation", type=Path, nargs="+", help="label files to validate with")
    sub.add_argument("--start-from", metavar="BUNDLE", help="student whose weights training starts from")
    sub.add_argument(
        "--committee", type=int, metavar="N", help="N students, OUTPUT-0.mlffd ..., seeds one after the other"
    )
    sub.add_argument("--tensorboard", action="store_true", help="metrics for TensorBoard as well")
    sub.add_argument("-o", "--output", type=Path, required=True, help="student bundle to write")

    sub = add_verb(verbs, run_sweep, "sweep")
    sub.add_argument("config", type=Path, help="TOML file; see mlffd/sweep.py")
    sub.add_argument("-o", "--output", type=Path, required=True, help="folder to write to")

    sub = add_verb(verbs, run_report, "report")
    sub.add_argument("bundle", help="student bundle, or name of a shipped student")
    sub.add_argument("labels", type=Path, nargs="+", help="HDF5 label files that it was not trained on")
    sub.add_argument("--config", type=Path, help="TOML file with tables [fidelity], [bars] and [teacher]")
    sub.add_argument("--teacher", help="default: that of the labels; none: leave out what needs one")
    sub.add_argument(
        "--set", nargs="*", action="extend", default=[], metavar="KEY=VALUE", help="teacher settings"
    )
    sub.add_argument("--into", type=Path, metavar="BUNDLE", help="write the student with its verdict here")
    sub.add_argument("-o", "--output", type=Path, required=True, help="folder of the report")

    sub = add_verb(verbs, run_evaluate, "evaluate")
    sub.add_argument("bundle", help="student bundle, or name of a shipped student")
    sub.add_argument("labels", type=Path, help="HDF5 label file")
    sub.add_argument("-o", "--output", type=Path, help="write the errors as JSON")

    for function, name in ((run_info, "info"), (run_check, "check")):
        add_verb(verbs, function, name).add_argument(
            "bundle", help="student bundle, or name of a shipped student"
        )

    sub = add_verb(verbs, run_repair, "repair")
    sub.add_argument("file", type=Path, help="bundle with wrong metadata, or PyTorch state dict")
    sub.add_argument("-o", "--output", type=Path, required=True, help="student bundle to write")
    sub.add_argument("--species", nargs="+", help="elements, in the order of the tensors")
    sub.add_argument("--cutoff", type=float, help="Å")
    sub.add_argument(
        "--labels", type=Path, nargs="+",
        help="all label files of its training, in that order: records for the guard what it saw",
    )  # fmt: skip


def run_train(options) -> None:
    """Train a student, or a committee, on labelled structures; resumable, also under torchrun."""
    from mlffd.bundle import read_bundle
    from mlffd.config import check_keys, read_toml, settings_from
    from mlffd.dataset.store import join_labels, read_labels
    from mlffd.train.config import StudentConfig, TrainConfig
    from mlffd.train.loop import train_committee
    from mlffd.verdict import check_bars

    if options.committee is not None and options.committee < 1:
        raise ConfigError(f"--committee must be 1 or more, not {options.committee}")
    config = read_toml(options.config) if options.config else {}
    check_keys(config, ("student", "train", "bars", "teacher", "fidelity"), str(options.config))
    student = settings_from(config.get("student", {}), StudentConfig, "[student]")
    settings = settings_from(config.get("train", {}), TrainConfig, "[train]")
    check_bars(config.get("bars", {}))
    start_from = read_bundle(options.start_from) if options.start_from else None
    sizes = student.architecture
    if start_from and "student" not in config:
        sizes = start_from.student.architecture
    bundles = train_committee(
        join_labels([read_labels(path) for path in options.labels]), sizes, settings,
        committee_paths(options.output, options.committee),
        validation=join_labels([read_labels(p) for p in options.validation]) if options.validation else None,
        start_from=start_from, facts={"bars": config["bars"]} if "bars" in config else None,
        tensorboard=options.tensorboard,
    )  # fmt: skip
    if int(os.environ.get("RANK", 0)) == 0:
        errors = [bundle.metadata["errors"] for bundle in bundles]
        print(json.dumps(errors if options.committee else errors[0], indent=1))


def committee_paths(output: Path, n_members: int | None) -> list[Path]:
    """One path for each member, or the output itself where there is no committee."""
    if n_members is None:
        return [output]
    return [output.with_name(f"{output.stem}-{k}{output.suffix}") for k in range(n_members)]


def run_sweep(options) -> int:
    """Train students of several sizes and families, and choose the fastest within an error; resumable."""
    from mlffd.config import read_toml, settings_from
    from mlffd.dataset.store import join_labels, read_labels
    from mlffd.report.pareto import sentence
    from mlffd.sweep import SweepConfig, sweep

    settings = settings_from(read_toml(options.config), SweepConfig, str(options.config))
    if not settings.labels or not settings.held_out:
        raise ConfigError(f"{options.config}: give labels = [FILE, ...] and held_out = FILE")
    home = options.config.parent
    labels = join_labels([read_labels(home / path) for path in settings.labels])
    result = sweep(labels, read_labels(home / settings.held_out), settings, options.output)
    bundle = options.output / f"{settings.name}.mlffd"
    print(sentence(result), options.output / "sweep.md", sep="\n")
    if result["chosen"]:
        print(bundle)
    elif bundle.exists():
        print(f"{bundle} comes from an earlier sweep")
    return 0 if result["chosen"] else 1


def run_report(options) -> int:
    """Judge a student by simulations beside its teacher: a page with figures, JSON, a verdict; resumable."""
    from mlffd.config import read_toml, settings_from
    from mlffd.dataset.store import join_labels, read_labels
    from mlffd.fidelity.config import FidelityConfig, report_tables
    from mlffd.fidelity.report import report, summary

    tables = report_tables(read_toml(options.config) if options.config else {}, str(options.config))
    settings = settings_from(tables.get("fidelity", {}), FidelityConfig, "[fidelity]")
    teacher = tables.get("teacher")
    if options.teacher:
        teacher = given_teacher(options)
    elif options.set:
        raise ConfigError("--set needs --teacher NAME")
    labels = join_labels([read_labels(path) for path in options.labels])
    home = options.config.parent if options.config else Path(".")
    judged = report(
        options.bundle, labels, teacher, settings, tables.get("bars"), options.output, home, options.into
    )
    print(*summary(judged), options.output / "report.html", sep="\n")
    return 1 if judged["failed"] else 0


def run_evaluate(options) -> None:
    """Errors of a student on labelled structures, as JSON."""
    from mlffd.distill import evaluate_bundle
    from mlffd.files import write_atomically

    errors = json.dumps(evaluate_bundle(options.bundle, options.labels), indent=1)
    if options.output:
        write_atomically(options.output, errors)
    print(errors)


def run_info(options) -> None:
    """Show what a student bundle says of itself, as JSON."""
    from mlffd.bundle import read_bundle

    bundle = read_bundle(options.bundle)
    print(f"mlffd: {bundle.verdict}", file=sys.stderr)
    n_parameters = sum(parameter.numel() for parameter in bundle.student.parameters())
    print(json.dumps({"parameters": n_parameters, **bundle.metadata}, indent=1))


def run_check(options) -> int:
    """Check that a student's forces, stress, symmetries and precision are sound."""
    from mlffd.bundle import read_bundle
    from mlffd.check import check

    rows = check(read_bundle(options.bundle))
    for what, passed, figure in rows:
        print(f"{'ok  ' if passed else 'FAIL'} {what} ({figure})")
    return 0 if all(passed for _, passed, _ in rows) else 1


def run_repair(options) -> None:
    """Make a bundle from a bare state dict, or from a bundle whose metadata is wrong."""
    from ase.data import atomic_numbers

    from mlffd.bundle import write_bundle
    from mlffd.dataset.store import join_labels, read_labels
    from mlffd.distill import with_domain
    from mlffd.repair import repair

    unknown = [symbol for symbol in options.species or () if symbol not in atomic_numbers]
    if unknown:
        raise ConfigError(f"--species: no element is called {unknown[0]!r}")
    species = [atomic_numbers[symbol] for symbol in options.species] if options.species else None
    bundle = repair(options.file, species, options.cutoff)
    if options.labels:
        bundle = with_domain(bundle, join_labels([read_labels(path) for path in options.labels]))
    write_bundle(options.output, bundle.student, bundle.metadata)
    print(f"mlffd: {bundle.verdict}", file=sys.stderr)
    print(f"wrote {options.output}: {json.dumps(bundle.student.architecture)}")
