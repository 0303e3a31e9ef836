# SPDX-License-Identifier: MIT
"""From the names of bundles to what answers: one student or a committee, with the guard."""

from collections.abc import Sequence

from ase import Atoms

from mlffd.drivers.guard import guarded
from mlffd.drivers.ipi.committee import Committee, errors_of
from mlffd.drivers.ipi.evaluator import Evaluate
from mlffd.drivers.ipi.report import say
from mlffd.drivers.verdict import say_verdict
from mlffd.engine import Engine
from mlffd.errors import ConfigError
from mlffd.students.student import check_species


def load_engines(
    bundles: Sequence[str],
    templates: Sequence[Atoms],
    device: str,
    dtype: str,
    max_batch_atoms: int | None = None,
) -> list[Engine]:
    """One engine a bundle, with the arguments of ``Engine``.

    How many atoms are evaluated together is found by trial with the templates, unless it is given.

    Raises:
        ConfigError, BundleError: there is no bundle, or it cannot be read or run here.
        StructureError, NonFiniteResultError: a student cannot evaluate the templates.
    """
    if not bundles:
        raise ConfigError("name one student or more")
    engines = [Engine(bundle, device, dtype, max_batch_atoms=max_batch_atoms) for bundle in bundles]
    if max_batch_atoms is None:
        for engine, name in zip(engines, bundles):
            with errors_of(name):
                engine.tune_batch(templates)
    for engine, name in zip(engines, bundles):
        with errors_of(name):
            for template in templates:
                check_species(template.numbers.tolist(), engine.species)
        say_verdict(engine, say)
    return engines


def answering(engines: Sequence[Engine], names: Sequence[str], guard: str | None = None) -> Evaluate:
    """A student by itself, several as a committee; the guard looks at the first, with the policy ``guard``.

    Raises:
        ConfigError, BundleError: the guard's settings or the first student's training domain make no sense.
    """
    first = guarded(engines[0], guard, lambda line: say(f"guard: {line}"))
    members = [first, *(engine.evaluate for engine in engines[1:])]
    return first if len(members) == 1 else Committee(members, names)
