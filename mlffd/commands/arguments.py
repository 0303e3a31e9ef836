# SPDX-License-Identifier: MIT
"""What verbs have in common: how they are added, and how settings and calculators are given."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from mlffd.errors import ConfigError


def add_verb(verbs, function: Callable, name: str) -> argparse.ArgumentParser:
    """A parser for a verb that ``function`` does, whose docstring helps."""
    sub = verbs.add_parser(name, help=function.__doc__, description=function.__doc__)
    sub.set_defaults(verb=function)
    return sub


def add_settings(sub: argparse.ArgumentParser, help: str) -> None:
    """``--set KEY=VALUE``, any number of them, however they are spread over the line."""
    sub.add_argument("--set", nargs="*", action="extend", default=[], metavar="KEY=VALUE", help=help)


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


def load_calculator(spec, directory: Path):
    """What a sampling config names: the engine of ``{bundle = PATH}``, or a teacher's calculator."""
    if isinstance(spec, dict) and "bundle" in spec:
        from mlffd.dataset.plan import locate
        from mlffd.engine import Engine

        return Engine(locate(spec["bundle"], directory))
    from mlffd.teachers import load_teacher

    return load_teacher(spec, directory=directory).calculator


def given_settings(options) -> dict:
    """What ``--set`` gave."""
    return dict(setting(text) for text in options.set)


def given_teacher(options) -> dict:
    """What ``--teacher`` and ``--set`` gave, as ``load_teacher`` takes it."""
    return {"name": options.teacher, **given_settings(options)}
