"""The command line: one verb, one function. ``mlffd --help`` lists the verbs."""

import argparse
import json
import os
import sys
from functools import partial
from pathlib import Path
from shlex import quote

from mlffd.errors import ConfigError, MlffdError


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 0 on success, 1 with one clear line on standard error if it cannot be done."""
    options = parser().parse_args(arguments)
    try:
        return options.verb(options) or 0
    except MlffdError as error:
        print(f"mlffd: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"mlffd: {error.filename or 'file'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("mlffd: interrupted; what was begun goes on when the command is given again", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """All verbs and their options."""
    top = argparse.ArgumentParser(prog="mlffd", description=sys.modules["mlffd"].__doc__)
    verbs = top.add_subparsers(required=True, metavar="VERB")

    def verb(function, name: str, within=verbs) -> argparse.ArgumentParser:
        sub = within.add_parser(name, help=function.__doc__, description=function.__doc__)
        sub.set_defaults(verb=function)
        return sub

    sub = verb(run_distill, "distill")
    sub.add_argument("config", type=Path, help="TOML file; --init writes one")
    sub.add_argument("--status", action="store_true", help="only say how far it is")
    sub.add_argument("--init", type=Path, metavar="STRUCTURE", help="write a commented config to begin with")
    sub.add_argument("--teacher", help="for --init; see mlffd teachers")
    sub.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="for --init: teacher settings")
    sub.add_argument("--temperature", type=float, default=300.0, help="for --init: K (default %(default)s)")

    sub = verb(run_sample, "sample")
    sub.add_argument("config", type=Path, help="TOML file with stages; see mlffd/dataset/sample.py")
    sub.add_argument("-o", "--output", type=Path, required=True, help="extxyz file to write")

    sub = verb(run_teachers, "teachers")
    sub.add_argument("name", nargs="?", help="tell all about this one: facts, settings, how to install it")

    sub = verb(run_audit, "audit")
    sub.add_argument("frames", type=Path, help="structures, any file ASE reads")
    sub.add_argument("--teacher", help="name of the teacher they are for; it need not be installed")
    sub.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="teacher settings")

    sub = verb(run_explore, "explore")
    sub.add_argument("config", type=Path, help="TOML file: the settings of mlffd/explore.py")
    sub.add_argument("--student", nargs="+", required=True, help="bundle to run; with more, their committee")
    sub.add_argument("--known", type=Path, nargs="+", required=True, help="label files it was trained on")
    sub.add_argument("-o", "--output", type=Path, required=True, help="extxyz file to write")

    sub = verb(run_label, "label")
    sub.add_argument("frames", type=Path, help="structures, any file ASE reads")
    sub.add_argument("--teacher", required=True, help="see `mlffd teachers`, or module:factory")
    sub.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="teacher settings")
    sub.add_argument("--device", default="cpu", help="where the teacher runs (default %(default)s)")
    sub.add_argument("--workers", type=int, default=1, help="one-thread processes; or use mpiexec")
    sub.add_argument("--retry-failed", action="store_true", help="label again what has failed before")
    sub.add_argument(
        "--hessian-rows", type=int, default=0, metavar="K",
        help="of every frame, K random rows of the Hessian; each costs two evaluations more",
    )  # fmt: skip
    sub.add_argument("-o", "--output", type=Path, required=True, help="HDF5 label file")

    labels = verbs.add_parser("labels", help="Show label files; import and export them.").add_subparsers(
        required=True, metavar="VERB"
    )
    sub = verb(run_labels_show, "show", labels)
    sub.add_argument("labels", type=Path, help="HDF5 label file")
    sub = verb(run_labels_export, "export", labels)
    sub.add_argument("labels", type=Path, help="HDF5 label file")
    sub.add_argument("-o", "--output", type=Path, required=True, help="extxyz file to write")
    sub = verb(run_labels_import, "import", labels)
    sub.add_argument("frames", type=Path, help="structures with energies and forces, any file ASE reads")
    sub.add_argument("-o", "--output", type=Path, required=True, help="HDF5 label file to write")
    sub.add_argument("--teacher-name", dest="name", help="who made the labels")
    sub.add_argument("--teacher-version", dest="version", default="not stated")
    sub.add_argument("--licence", help="under which these labels may be used")
    sub.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings to be remembered")
    for what in ("energy", "forces", "stress", "virial"):
        sub.add_argument(f"--{what}-key", dest=what, metavar="KEY", help=f"name of the {what} in the file")
    sub.add_argument("--stress-unit", choices=["eV/A3", "GPa", "kbar", "bar"], help="(default eV/A3)")
    sub.add_argument(
        "--stress-sign", choices=["tension", "compression"],
        help="what a positive stress means (default tension, as in ASE)",
    )  # fmt: skip
    sub.add_argument("--no-stress", action="store_true", help="leave stresses and virials out")
    sub.add_argument("--skip-bad", action="store_true", help="record frames without a sound label as failed")

    sub = verb(run_train, "train")
    sub.add_argument("labels", type=Path, nargs="+", help="HDF5 label files")
    sub.add_argument("--config", type=Path, help="TOML file with tables [student], [train] and [bars]")
    sub.add_argument("--validation", type=Path, nargs="+", help="label files to validate with")
    sub.add_argument("--start-from", metavar="BUNDLE", help="student whose weights training starts from")
    sub.add_argument(
        "--committee", type=int, metavar="N", help="N students, OUTPUT-0.mlffd ..., seeds one after the other"
    )
    sub.add_argument("--tensorboard", action="store_true", help="metrics for TensorBoard as well")
    sub.add_argument("-o", "--output", type=Path, required=True, help="student bundle to write")

    sub = verb(run_sweep, "sweep")
    sub.add_argument("config", type=Path, help="TOML file; see mlffd/sweep.py")
    sub.add_argument("-o", "--output", type=Path, required=True, help="folder to write to")

    sub = verb(run_report, "report")
    sub.add_argument("bundle", help="student bundle, or name of a shipped student")
    sub.add_argument("labels", type=Path, nargs="+", help="HDF5 label files that it was not trained on")
    sub.add_argument("--config", type=Path, help="TOML file with tables [fidelity], [bars] and [teacher]")
    sub.add_argument("--teacher", help="default: that of the labels; none: leave out what needs one")
    sub.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="teacher settings")
    sub.add_argument("--into", type=Path, metavar="BUNDLE", help="write the student with its verdict here")
    sub.add_argument("-o", "--output", type=Path, required=True, help="folder of the report")

    sub = verb(run_evaluate, "evaluate")
    sub.add_argument("bundle", help="student bundle, or name of a shipped student")
    sub.add_argument("labels", type=Path, help="HDF5 label file")
    sub.add_argument("-o", "--output", type=Path, help="write the errors as JSON")

    for function, name in ((run_info, "info"), (run_check, "check")):
        verb(function, name).add_argument("bundle", help="student bundle, or name of a shipped student")

    sub = verb(run_repair, "repair")
    sub.add_argument("file", type=Path, help="bundle with wrong metadata, or PyTorch state dict")
    sub.add_argument("-o", "--output", type=Path, required=True, help="student bundle to write")
    sub.add_argument("--species", nargs="+", help="elements, in the order of the tensors")
    sub.add_argument("--cutoff", type=float, help="Å")
    sub.add_argument(
        "--labels", type=Path, nargs="+",
        help="all label files of its training, in that order: records for the guard what it saw",
    )  # fmt: skip

    sub = verb(run_ipi_input, "ipi-input")
    sub.add_argument("structure", type=Path, help="any file ASE reads; the last frame counts")
    sub.add_argument("--student", required=True, help="student bundle, or name of a shipped student")
    sub.add_argument("-o", "--output", type=Path, required=True, help="input to write; FILE.xyz beside it")
    sub.add_argument("--ensemble", default="nvt", help="nvt (default), pimd or npt")
    sub.add_argument("--temperature", type=float, default=300.0, help="K (default %(default)s)")
    sub.add_argument("--pressure", type=float, default=1.0, help="bar, for npt (default %(default)s)")
    sub.add_argument("--beads", type=int, help="default 32 for pimd, else 1; also for npt")
    sub.add_argument(
        "--timestep", type=float, dest="time_step", metavar="FS", help="default 0.5, with several beads 0.25"
    )
    sub.add_argument("--steps", type=int, default=10000, help="(default %(default)s)")
    sub.add_argument("--seed", type=int, default=20260704, help="of random numbers (default %(default)s)")
    sub.add_argument("--address", help="of the socket (default mlffd- and the student's name)")
    sub.add_argument(
        "--in-process", action="store_true", help="let i-PI load the student itself: no driver, no socket"
    )
    sub.add_argument("--force", action="store_true", help="write over files that are there")
    verb(run_ipi_pes_path, "ipi-pes-path")

    sub = verb(run_doctor, "doctor")
    sub.add_argument("bundle", nargs="?", help="student bundle, or name of a shipped student, to try as well")
    sub.add_argument("--lammps", type=Path, help="an lmp, or the folder of an environment or a build")
    sub.add_argument("--ranks", default="1,2,4", help="numbers of MPI ranks (default %(default)s)")
    sub.add_argument("--quick", action="store_true", help="one rank only")
    sub.add_argument("--time-limit", type=float, default=60.0, help="s of one LAMMPS (default %(default)s)")
    sub.add_argument("--json", type=Path, metavar="FILE", help="write the report; - for standard output")

    lammps = verbs.add_parser("lammps", help="Use a student in LAMMPS.").add_subparsers(
        required=True, metavar="VERB"
    )
    sub = verb(run_lammps_export, "export", lammps)
    sub.add_argument("bundle", help="student bundle, or name of a shipped student")
    sub.add_argument(
        "-o", "--output", type=Path, required=True,
        help="FILE.weights for pair_style mlffd, FILE.pt for pair_style mliap unified",
    )  # fmt: skip
    sub.add_argument("--device", help="mliap: torch device, default cpu (MLFFD_DEVICE overrides it)")
    sub.add_argument("--dtype", help="mliap: float32, the default, or float64 (MLFFD_DTYPE overrides it)")
    sub = verb(run_lammps_plugin, "plugin", lammps)
    sub.add_argument("--lammps", type=Path, help="an lmp, virtual environment, source tree or header folder")
    sub.add_argument("-o", "--output", type=Path, help="copy the plugin to this file")
    sub = verb(run_lammps_input, "input", lammps)
    sub.add_argument("structure", type=Path, help="any file ASE reads; the last frame counts")
    sub.add_argument("--student", required=True, help="student bundle, or name of a shipped student")
    sub.add_argument("-o", "--output", type=Path, required=True, help="input to write; FILE.data beside it")
    sub.add_argument("--ensemble", default="nvt", help="nve, nvt (default), npt or minimize")
    sub.add_argument("--temperature", type=float, default=300.0, help="K (default %(default)s)")
    sub.add_argument("--pressure", type=float, default=1.0, help="bar, for npt (default %(default)s)")
    sub.add_argument("--time-step", type=float, default=0.5, help="fs (default %(default)s)")
    sub.add_argument("--steps", type=int, default=10000, help="(default %(default)s)")
    sub.add_argument("--style", default="mlffd", help="mlffd, the plugin (default), or mliap")
    sub.add_argument("--seed", type=int, default=20260704, help="of the velocities (default %(default)s)")
    sub = verb(run_lammps_run, "run", lammps)
    sub.add_argument("input", type=Path, help="input for pair_style mliap unified or mlffd")
    sub.add_argument("--fix", choices=["external"], default="external", help="how the student moves atoms")
    sub.add_argument("--student", help="bundle or shipped student, in place of what the input names")
    sub.add_argument("-var", "--var", nargs="+", action="append", default=[], metavar=("NAME", "VALUE"))
    sub.add_argument("-log", "--log", help="log file (default log.lammps)")
    sub = verb(run_lammps_summary, "summary", lammps)
    sub.add_argument("log", type=Path, help="LAMMPS log file")
    sub.add_argument("--temperature", type=float, help="K; another one over the second half is an error")
    return top


# verbs import what they need when they run: `mlffd --help` starts without torch


def run_distill(options) -> int:
    """Distil a teacher into a student, from frames to a judged report; resumable."""
    from mlffd.distill import distill, status, write_config
    from mlffd.fidelity.report import summary

    if options.init:
        if not options.teacher:
            raise ConfigError("--init needs --teacher NAME: `mlffd teachers` lists them")
        teacher = {"name": options.teacher, **dict(setting(text) for text in options.set)}
        odd = write_config(options.config, options.init, teacher, options.temperature)
        print(*odd, sep="\n", end="\n" if odd else "", file=sys.stderr)
        print(f"wrote {options.config}: read it, then `mlffd distill {quote(str(options.config))}`")
        return 0
    if options.status:
        print(*status(options.config), sep="\n")
        return 0
    judged = distill(options.config, partial(load_calculator, directory=options.config.parent))
    print(*summary(judged), sep="\n")
    return 1 if judged["verdict"] == "failed" else 0


def run_sample(options) -> None:
    """Sample structures by molecular dynamics for a teacher to label."""
    from mlffd.config import read_toml
    from mlffd.dataset.sample import sample

    directory = options.config.parent
    load = partial(load_calculator, directory=directory)
    sample(read_toml(options.config), options.output, load, directory=directory)


def run_teachers(options) -> None:
    """List the teachers: installed or not, elements, cell, stress, licences, download."""
    from mlffd.teachers.listing import one, table

    print(one(options.name) if options.name else table())


def run_audit(options) -> int:
    """Look at frames before a teacher is paid for them; exit status 1 if some cannot be meant."""
    from mlffd.dataset.audit import audit
    from mlffd.dataset.frames import read_frames
    from mlffd.teachers import facts_of

    frames = read_frames(options.frames)
    facts = facts_of(options.teacher) if options.teacher else None
    findings = audit(frames, facts, dict(setting(text) for text in options.set))
    print(*findings, sep="\n", end="\n" if findings else "")
    n_errors = sum(finding.level == "error" for finding in findings)
    print(f"{len(frames)} frames: {n_errors} errors, {len(findings) - n_errors} warnings")
    return 1 if n_errors else 0


def run_explore(options) -> None:
    """Run a student and choose the frames that are new to it, for a teacher to label."""
    from mlffd.config import read_toml, settings_from
    from mlffd.dataset.store import read_labels
    from mlffd.explore import Exploration, explore

    settings = settings_from(read_toml(options.config), Exploration, str(options.config))
    known = [atoms for path in options.known for atoms in read_labels(path).structures]
    report = explore(options.student, settings, known, options.output, options.config.parent)
    print(json.dumps(report, indent=1))


def run_label(options) -> None:
    """Let a teacher label structures with energy, forces and stress; resumable; also under mpiexec."""
    from mlffd.dataset.label import label

    teacher = {"name": options.teacher, **dict(setting(text) for text in options.set)}
    content_hash = label(
        options.frames, teacher, options.output, workers=options.workers, device=options.device,
        retry_failed=options.retry_failed, hessian_rows=options.hessian_rows,
    )  # fmt: skip
    if content_hash is not None:  # under mpiexec the first rank speaks
        print(content_hash)


def run_labels_show(options) -> None:
    """Show what a label file holds, who made it, and which frames failed."""
    from mlffd.dataset.describe import describe

    print("\n".join(describe(options.labels)))


def run_labels_export(options) -> None:
    """Write a label file as extended XYZ, without loss."""
    from mlffd.dataset.extxyz import export_labels

    labels = export_labels(options.labels, options.output)
    print(f"wrote {options.output}: {len(labels)} frames")


def run_labels_import(options) -> None:
    """Make a label file of structures that were labelled elsewhere; signs and units are checked."""
    from dataclasses import fields

    from mlffd.dataset.import_labels import Origin, import_labels

    given = {field.name: getattr(options, field.name) for field in fields(Origin) if field.name != "settings"}
    origin = Origin(**given, settings=dict(setting(text) for text in options.set))
    print(import_labels(options.frames, options.output, origin))


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
    check_keys(config, ("student", "train", "bars"), str(options.config))
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
        teacher = {"name": options.teacher, **dict(setting(text) for text in options.set)}
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


def run_doctor(options) -> int:
    """Say what is here, and have LAMMPS run students on every route: is it right, on any number of ranks?"""
    from mlffd.drivers.doctor import Plan, run_doctor

    ranks = "1" if options.quick else options.ranks
    if not all(word.isdecimal() for word in ranks.split(",")):
        raise ConfigError(f"--ranks takes numbers such as 1,2,4, not {ranks!r}")
    plan = Plan(options.lammps, options.bundle, tuple(map(int, ranks.split(","))), options.time_limit)
    return run_doctor(plan, options.json)


def run_ipi_input(options) -> None:
    """Write a commented i-PI input for a structure and a student, and say how to run it."""
    from dataclasses import fields

    from mlffd.drivers.ipi.input import RunPlan, plan_run, write_input

    conditions = {field.name: getattr(options, field.name) for field in fields(RunPlan)}
    plan = plan_run(options.student, **conditions)
    files = write_input(options.structure, options.student, options.output, plan, options.force)
    written = f"{files.input}" + (f" and {files.structure}" if files.structure != options.structure else "")
    print(f"wrote {written}; run it here by", *files.commands(plan), sep="\n  ")


def run_ipi_pes_path(options) -> None:
    """Print where the file is that i-PI loads to hold a student itself: <pes_path> of <ffdirect>."""
    from mlffd.drivers.ipi import PES_FILE

    print(PES_FILE)


def run_lammps_export(options) -> None:
    """Write the file that LAMMPS' pair_style mlffd (FILE.weights) or mliap unified (FILE.pt) loads."""
    if options.output.suffix == ".weights":
        from mlffd.drivers.lammps_plugin import export_weights

        if options.device or options.dtype:
            raise ConfigError(
                "--device and --dtype are for pair_style mliap; in an input one says "
                "`pair_style mlffd precision float64`"
            )
        export_weights(options.bundle, options.output)
        return
    from mlffd.drivers.lammps_mliap import export

    export(options.bundle, options.output, device=options.device or "cpu", dtype=options.dtype or "float32")


def run_lammps_plugin(options) -> None:
    """Print the path of the plugin with pair_style mlffd, built for the LAMMPS here at first use."""
    from mlffd.drivers.lammps_plugin import build_plugin

    print(build_plugin(options.lammps, options.output))


def run_lammps_input(options) -> None:
    """Write a commented LAMMPS input and data file for a structure and a student."""
    from dataclasses import fields

    from mlffd.drivers.lammps_input import RunPlan, write_input

    plan = RunPlan(**{field.name: getattr(options, field.name) for field in fields(RunPlan)})
    data = write_input(options.structure, options.student, options.output, plan)
    name = quote(options.output.name)
    print(f"wrote {options.output} and {data}: run it by `lmp -in {name}` in its folder")


def run_lammps_run(options) -> int:
    """Run an input in a LAMMPS that has no ML-IAP with Python, such as the stock one; also under mpiexec."""
    from mlffd.drivers.lammps_run import run

    return run(options.input, options.student, options.var, options.log)


def run_lammps_summary(options) -> None:
    """One line about a finished LAMMPS run: ns/day, temperature, drift."""
    from mlffd.drivers.lammps_log import summarize

    print(summarize(options.log, options.temperature))


def load_calculator(spec, directory: Path):
    """What a sampling config names: the engine of ``{bundle = PATH}``, or a teacher's calculator."""
    if isinstance(spec, dict) and "bundle" in spec:
        from mlffd.dataset.plan import locate
        from mlffd.engine import Engine

        return Engine(locate(spec["bundle"], directory))
    from mlffd.teachers import load_teacher

    return load_teacher(spec, directory=directory).calculator


def setting(text: str) -> tuple[str, object]:
    """``key=value`` with the value read as JSON where it is JSON, else as text.

    Raises:
        ConfigError: no equals sign.
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set takes KEY=VALUE, not {text!r}")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


if __name__ == "__main__":
    sys.exit(main())
