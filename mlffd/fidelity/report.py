# SPDX-License-Identifier: MIT
"""From a student to its judged report: measure, judge, write the page, let the bundle carry the verdict."""

from collections.abc import Sequence
from pathlib import Path

from mlffd.bundle import read_bundle, write_bundle
from mlffd.dataset.store import LabelledSet
from mlffd.errors import ConfigError, TeacherError
from mlffd.fidelity.config import FidelityConfig
from mlffd.fidelity.measure import measure
from mlffd.report import check_bars, judge, write_page
from mlffd.teachers import facts_of, settings_of
from mlffd.verdict import AFTER, BEFORE, FAILED, describe

NONE = "none"  # in place of a teacher's name
NAMES_OF_FILES = ("weights", "command")  # settings of teachers that name files or programs


def report(
    bundle_path: str | Path,
    held_out: LabelledSet,
    teacher: dict | str | None,
    settings: FidelityConfig,
    bars: dict | None,
    folder: str | Path,
    directory: str | Path = ".",
    into: str | Path | None = None,
    command: str | None = None,
) -> dict:
    """Measure, judge and write ``report.md``, ``report.html`` and ``report.json`` into ``folder``.

    Args:
        teacher: None: that of the held-out labels; "none": there is none here, see ``measure``.
        bars: None: those that the bundle carries from before its training.
        into: write the student with this verdict to this file; it may be where the student came from.

    Returns:
        The judged report, see ``judge``.

    Raises:
        ConfigError: an unknown bar; what ``measure`` raises.
    """
    bundle = read_bundle(bundle_path)
    written_before = bundle.metadata.get("bars", {})
    bars = written_before if bars is None else bars
    before = bool(bars) and check_bars(bars) == check_bars(written_before)
    measured = measure(
        bundle_path, held_out, teacher_of(held_out, teacher), settings, folder, directory, command
    )
    judged = judge(measured, bars, BEFORE if before else AFTER)
    write_page(judged, Path(folder))
    if into is not None:
        write_bundle(into, bundle.student, bundle.with_report(judged).metadata)
    return judged


def teacher_of(held_out: LabelledSet, teacher: dict | str | None) -> dict | str | None:
    """What ``measure`` takes for a teacher."""
    if teacher == NONE or (isinstance(teacher, dict) and teacher.get("name") == NONE):
        return None
    if teacher is not None:
        return teacher
    name, used = held_out.metadata["teacher"]["name"], held_out.metadata["teacher"].get("settings", {})
    try:
        known = settings_of(facts_of(name))
    except TeacherError as error:  # labels that were made elsewhere
        raise ConfigError(
            f"the held-out labels are by {name!r}, which cannot be run here: with --teacher none all is left "
            "out that needs it"
        ) from error
    # code and files are run because a user names them, never because a label file does
    if ":" in name or any(key not in known or key in NAMES_OF_FILES for key in used):
        raise ConfigError(
            f"the held-out labels are by {name!r} with {used or 'no settings'}: as that may run code or read "
            "files, name it by --teacher and --set; or --teacher none"
        )
    return {"name": name, **used}


def summary(judged: dict) -> Sequence[str]:
    """The verdict, and what failed, in lines for a terminal."""
    failed = [describe(line) + _reason(line) for line in judged["lines"] if line["passed"] is False]
    n_bars = sum(line["bar"] is not None for line in judged["lines"])
    if judged["verdict"] == FAILED:
        return [f"FAILED {len(failed)} of {n_bars} bars", *failed]
    return [f"{judged['verdict']} ({n_bars} bars)"]


def _reason(line: dict) -> str:
    """Why a failed line was not measured."""
    return f": {line['note']}" if line["value"] is None and line["note"] else ""
