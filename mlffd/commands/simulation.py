# SPDX-License-Identifier: MIT
"""The verbs that bring students into LAMMPS and i-PI."""

from pathlib import Path
from shlex import quote

from mlffd.commands.arguments import add_verb
from mlffd.errors import ConfigError


def add_verbs(verbs) -> None:
    """Their options."""
    sub = add_verb(verbs, run_ipi_input, "ipi-input")
    sub.add_argument("structure", type=Path, help="any file ASE reads; the last frame counts")
    sub.add_argument("--student", required=True, help="student bundle, or name of a shipped student")
    sub.add_argument("-o", "--output", type=Path, required=True, help="input to write; FILE.xyz beside it")
    sub.add_argument("--ensemble", default="nvt", help="nvt (default), pimd or npt")
    sub.add_argument("--temperature", type=float, default=300.0, help="K (default %(default)s)")
    sub.add_argument("--pressure", type=float, default=1.0, help="bar, for npt (default %(default)s)")
    sub.add_argument("--beads", type=int, help="default 32 for pimd, else 1; also for npt")
    sub.add_argument(
        "--timestep", "--time-step", type=float, dest="time_step", metavar="FS",
        help="default 0.5, with several beads 0.25",
    )  # fmt: skip
    sub.add_argument("--steps", type=int, default=10000, help="(default %(default)s)")
    sub.add_argument("--seed", type=int, default=20260704, help="of random numbers (default %(default)s)")
    sub.add_argument("--address", help="of the socket (default mlffd- and the student's name)")
    sub.add_argument(
        "--in-process", action="store_true", help="let i-PI load the student itself: no driver, no socket"
    )
    sub.add_argument("--force", action="store_true", help="write over files that are there")
    add_verb(verbs, run_ipi_pes_path, "ipi-pes-path")

    sub = add_verb(verbs, run_doctor, "doctor")
    sub.add_argument("bundle", nargs="?", help="student bundle, or name of a shipped student, to try as well")
    sub.add_argument("--lammps", type=Path, help="an lmp, or the folder of an environment or a build")
    sub.add_argument("--ranks", default="1,2,4", help="numbers of MPI ranks (default %(default)s)")
    sub.add_argument("--quick", action="store_true", help="one rank only")
    sub.add_argument("--time-limit", type=float, default=60.0, help="s of one LAMMPS (default %(default)s)")
    sub.add_argument("--json", type=Path, metavar="FILE", help="write the report; - for standard output")

    lammps = verbs.add_parser("lammps", help="Use a student in LAMMPS.").add_subparsers(
        required=True, metavar="VERB"
    )
    sub = add_verb(lammps, run_lammps_export, "export")
    sub.add_argument("bundle", help="student bundle, or name of a shipped student")
    sub.add_argument(
        "-o", "--output", type=Path, required=True,
        help="FILE.weights for pair_style mlffd, FILE.pt for pair_style mliap unified",
    )  # fmt: skip
    sub.add_argument("--device", help="mliap: torch device, default cpu (MLFFD_DEVICE overrides it)")
    sub.add_argument("--dtype", help="mliap: float32, the default, or float64 (MLFFD_DTYPE overrides it)")
    sub = add_verb(lammps, run_lammps_plugin, "plugin")
    sub.add_argument("--lammps", type=Path, help="an lmp, virtual environment, source tree or header folder")
    sub.add_argument("-o", "--output", type=Path, help="copy the plugin to this file")
    sub = add_verb(lammps, run_lammps_input, "input")
    sub.add_argument("structure", type=Path, help="any file ASE reads; the last frame counts")
    sub.add_argument("--student", required=True, help="student bundle, or name of a shipped student")
    sub.add_argument("-o", "--output", type=Path, required=True, help="input to write; FILE.data beside it")
    sub.add_argument("--ensemble", default="nvt", help="nve, nvt (default), npt or minimize")
    sub.add_argument("--temperature", type=float, default=300.0, help="K (default %(default)s)")
    sub.add_argument("--pressure", type=float, default=1.0, help="bar, for npt (default %(default)s)")
    sub.add_argument(
        "--timestep", "--time-step", type=float, default=0.5, dest="time_step", metavar="FS",
        help="(default %(default)s)",
    )  # fmt: skip
    sub.add_argument("--steps", type=int, default=10000, help="(default %(default)s)")
    sub.add_argument("--style", default="mlffd", help="mlffd, the plugin (default), or mliap")
    sub.add_argument("--seed", type=int, default=20260704, help="of the velocities (default %(default)s)")
    sub.add_argument("--force", action="store_true", help="write over files that are there")
    sub = add_verb(lammps, run_lammps_run, "run")
    sub.add_argument("input", type=Path, help="input for pair_style mliap unified or mlffd")
    sub.add_argument("--fix", choices=["external"], default="external", help="how the student moves atoms")
    sub.add_argument("--student", help="bundle or shipped student, in place of what the input names")
    sub.add_argument("-var", "--var", nargs="+", action="append", default=[], metavar=("NAME", "VALUE"))
    sub.add_argument("-log", "--log", help="log file (default log.lammps)")
    sub = add_verb(lammps, run_lammps_summary, "summary")
    sub.add_argument("log", type=Path, help="LAMMPS log file")
    sub.add_argument("--temperature", type=float, help="K; another one over the second half is an error")


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


def run_doctor(options) -> int:
    """Say what is here, and have LAMMPS run students on every route: is it right, on any number of ranks?"""
    from mlffd.drivers.doctor import Plan, run_doctor

    ranks = "1" if options.quick else options.ranks
    if not all(word.isdecimal() for word in ranks.split(",")):
        raise ConfigError(f"--ranks takes numbers such as 1,2,4, not {ranks!r}")
    plan = Plan(options.lammps, options.bundle, tuple(map(int, ranks.split(","))), options.time_limit)
    return run_doctor(plan, options.json)


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
    data = write_input(options.structure, options.student, options.output, plan, options.force)
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
