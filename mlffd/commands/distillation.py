# SPDX-License-Identifier: MIT
"""The verbs of a whole distillation, and of how it finds frames."""

import json
import sys
from functools import partial
from pathlib import Path
from shlex import quote

from mlffd.commands.arguments import add_verb, given_teacher, load_calculator
from mlffd.errors import ConfigError


def add_verbs(verbs) -> None:
    """Their options."""
    sub = add_verb(verbs, run_distill, "distill")
    sub.add_argument("config", type=Path, help="TOML file; --init writes one")
    sub.add_argument("--status", action="store_true", help="only say how far it is")
    sub.add_argument("--init", type=Path, metavar="STRUCTURE", help="write a commented config to begin with")
    sub.add_argument("--teacher", help="for --init; see mlffd teachers")
    sub.add_argument(
        "--set",
        nargs="*",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="for --init: teacher settings",
    )
    sub.add_argument("--temperature", type=float, help="for --init: K (default 300)")

    sub = add_verb(verbs, run_sample, "sample")
    sub.add_argument("config", type=Path, help="TOML file with stages; see mlffd/dataset/sample.py")
    sub.add_argument("-o", "--output", type=Path, required=True, help="extxyz file to write")

    sub = add_verb(verbs, run_explore, "explore")
    sub.add_argument("config", type=Path, help="TOML file: the settings of mlffd/explore.py")
    sub.add_argument("--student", nargs="+", required=True, help="bundle to run; with more, their committee")
    sub.add_argument("--known", type=Path, nargs="+", required=True, help="label files it was trained on")
    sub.add_argument("-o", "--output", type=Path, required=True, help="extxyz file to write")


def run_distill(options) -> int:
    """Distil a teacher into a student, from frames to a judged report; resumable."""
    from mlffd.distill import distill, status, write_config
    from mlffd.fidelity.report import summary

    if options.init:
        if not options.teacher:
            raise ConfigError("--init needs --teacher NAME: `mlffd teachers` lists them")
        teacher = given_teacher(options)
        odd = write_config(options.config, options.init, teacher, options.temperature or 300.0)
        print(*odd, sep="\n", end="\n" if odd else "", file=sys.stderr)
        print(f"wrote {options.config}: read it, then `mlffd distill {quote(str(options.config))}`")
        return 0
    if options.teacher or options.set or options.temperature is not None:
        raise ConfigError("--teacher, --set and --temperature are for --init; else the config says it")
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


def run_explore(options) -> None:
    """Run a student and choose the frames that are new to it, for a teacher to label."""
    from mlffd.config import read_toml, settings_from
    from mlffd.dataset.store import read_labels
    from mlffd.explore import Exploration, explore

    settings = settings_from(read_toml(options.config), Exploration, str(options.config))
    known = [atoms for path in options.known for atoms in read_labels(path).structures]
    report = explore(options.student, settings, known, options.output, options.config.parent)
    print(json.dumps(report, indent=1))
