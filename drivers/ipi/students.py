# SPDX-License-Identifier: MIT
"""From the names of bundles to what answers: one student or a committee, with the guard."""

from collections.abc import Sequence

from mlffd.drivers.guard import guarded
from mlffd.drivers.ipi.committee import Committee
from mlffd.drivers.ipi.evaluator import Evaluate
from mlffd.drivers.ipi.report import say
from mlffd.engine import Engine
from mlffd.errors import ConfigError


def load_engines(
    bundles: Sequence[str], device: str, dtype: str, max_batch_atoms: int | None = None
) -> list[Engine]:
    """One engine a bundle, with the arguments of ``Engine``.

    Raises:
        ConfigError, BundleError: there is no bundle, or it cannot be read or run here.
    """
    if not bundles:
        raise ConfigError("name one student or more")
    return [Engine(bundle, device, dtype, max_batch_atoms=max_batch_atoms) for bundle in bundles]


def answering(engines: Sequence[Engine], names: Sequence[str], guard: str | None = None) -> Evaluate:
    """A student by itself, several as a committee; the guard looks at the first, with the policy ``guard``.

    Raises:
        ConfigError, BundleError: the guard's settings or the first student's training domain make no sense.
    """
    first = guarded(engines[0], guard, lambda line: say(f"guard: {line}"))
    members = [first, *(engine.evaluate for engine in engines[1:])]
    return first if len(members) == 1 else Committee(members, names)
