# SPDX-License-Identifier: MIT
"""Whether to believe a student: the lines of its fidelity report against bars, and the verdict it carries.

A bar is a number, which the magnitude of a line's value must not exceed (a pressure 5 GPa too low is as
wrong as one too high), or a table with ``at_most``, ``at_least`` or both, as a speedup has. What could not be
judged does not pass: neither a line whose ``doubt`` says why its value is not to be judged by, as that of a
run too short, nor one whose statistical error is larger than its bar. The verdict is computed from lines and
bars and from nothing else, each time it is asked for, also when a bundle is read: what a bundle says of
itself is compared with it.

A bundle's metadata holds, under ``fidelity``, what ``carried`` gives, and under ``bars`` those that were
written before its training.
"""

import hashlib
import json
import math
import re
import time

from ase.data import atomic_numbers

from mlffd.config import check_keys
from mlffd.errors import ConfigError

KEY = "fidelity"  # in a bundle's metadata
FORMAT = 1
PASSED, FAILED, NOT_JUDGED = "passed", "failed", "not judged"
BEFORE, AFTER = "before training", "after training"  # when bars were written
CLOSE = "within its error of the bar"  # a remark
EDITED = "; it was edited"
DOUBTFUL = "not to be judged by"
COARSE = "too short to judge: its error is larger than the bar"
BAR_KEYS = ("at_most", "at_least")
CARRIED = ("name", "value", "error", "unit", "doubt")  # of a line
MOST_NAMED = 4  # failed lines in a sentence
# line -> title, unit; those of PAIR_LINES are also there for pairs of elements, as in rdf_peak_position_O-H
LINES = {
    "force_mae": ("Force error on held-out frames, mean absolute", "meV/Å"),
    "force_rmse": ("Force error on held-out frames, root mean square", "meV/Å"),
    "energy_mae": ("Energy error on held-out frames, mean absolute", "meV/atom"),
    "stress_mae": ("Stress error on held-out frames, mean absolute", "GPa"),
    "teacher_md_force_mae": ("Force error along the teacher's trajectory, mean absolute", "meV/Å"),
    "rdf_peak_position": ("First peak of the RDFs, shift", "Å"),
    "rdf_peak_height": ("First peak of the RDFs, relative difference of heights", ""),
    "pressure_difference": ("Pressure, student minus teacher", "GPa"),
    "diffusion_ratio": ("Diffusion coefficient, student over teacher", ""),
    "energy_drift": ("Drift of the conserved energy at constant energy", "meV/atom/ns"),
    "cut_trajectories": ("Trajectories that blew up", ""),
    "cut_trajectories_hot": ("Trajectories that blew up while hotter", ""),
    "outside_training": ("Fraction of the student's own run outside its training", ""),
    "speedup": ("Speed, student over teacher", ""),
    "student_us_per_atom": ("Time of an evaluation, student", "µs/atom"),
    "teacher_us_per_atom": ("Time of an evaluation, teacher", "µs/atom"),
    "teachers_apart": ("Forces of a second teacher against the teacher's, mean absolute difference", "meV/Å"),
    "second_teacher_force_mae": (
        "Forces of the student against the second teacher's, mean absolute",
        "meV/Å",
    ),
    "teacher_gradient_error": ("Teacher's forces against the gradient of its energy, relative", ""),
}
PAIR_LINES = ("rdf_peak_position", "rdf_peak_height")
PAIR = re.compile(rf"({'|'.join(PAIR_LINES)})_[A-Z][a-z]?-[A-Z][a-z]?")


def check_bars(bars: dict, others: tuple[str, ...] = ()) -> dict[str, dict[str, float]]:
    """Bars as tables with ``at_most``, ``at_least`` or both, by the name of their line.

    Args:
        bars: a number (at most) or a table for each line, as in a config.
        others: names of lines to know beside ``LINES``.

    Raises:
        ConfigError: an unknown line (with the nearest known one), or a bar that is none.
    """
    known = (*LINES, *others)
    check_keys(bars, [*known, *(name for name in bars if PAIR.fullmatch(str(name)))], "bars")
    return {_in_order(name): _check_bar(name, bar) for name, bar in bars.items()}


def _in_order(name: str) -> str:
    """The name of a line with its pair of elements as reports have it, by atomic number: H-O for O-H."""
    if not PAIR.fullmatch(name):
        return name
    whole, _, pair = name.rpartition("_")
    elements = sorted(pair.split("-"), key=lambda symbol: atomic_numbers.get(symbol, 0))
    return f"{whole}_{'-'.join(elements)}"


def _check_bar(name: str, bar) -> dict[str, float]:
    table = bar if isinstance(bar, dict) else {"at_most": bar}
    check_keys(table, BAR_KEYS, f"bar {name}")
    if not table or not all(_is_finite(value) for value in table.values()):
        raise ConfigError(f"bar {name} must be a number, or {{at_most = ...}} or {{at_least = ...}}: {bar!r}")
    return {key: float(value) for key, value in table.items()}


def judge(report: dict, bars: dict, written: str = AFTER) -> dict:
    """The report with bars and a verdict.

    Every line gets ``bar`` (a table, None without one), ``passed`` (True, False, None without a bar) and
    ``remark``; a bar whose line is missing gets a line that fails. The report gets ``verdict``: ``passed`` if
    every bar's line was measured, is finite, not in doubt and within it, else ``failed``; ``not judged``
    without any bar.
    It also gets ``failed`` (names of lines), ``bars``, ``bars_written`` and, where it has none, ``date``.

    A bar on ``rdf_peak_position`` is for the line of this name where there is one, else for all its pairs'.

    Args:
        report: as mlffd.fidelity writes it; only ``lines`` is needed.
        bars: by name of line, see ``check_bars``.
        written: ``before training`` or ``after training``.

    Raises:
        ConfigError: an unknown line, or a bar that is none.
    """
    names = [line["name"] for line in report["lines"]]
    tables = check_bars(bars, tuple(names))
    lines = [_judged_line(line, _bar_of(line["name"], tables, names)) for line in report["lines"]]
    barred = {line["name"] for line in lines if line["bar"]}
    lines += [
        _judged_line(_missing(name), bar)
        for name, bar in tables.items()
        if name not in barred and not any(_is_pair_of(other, name) for other in barred)
    ]
    failed = [line["name"] for line in lines if line["passed"] is False]
    verdict = NOT_JUDGED if not tables else FAILED if failed else PASSED
    facts = {"verdict": verdict, "failed": failed, "bars": tables, "bars_written": written}
    return {"date": time.strftime("%Y-%m-%d", time.gmtime()), **report, "lines": lines, **facts}


def _bar_of(name: str, tables: dict, names: list[str]) -> dict | None:
    if name in tables:
        return tables[name]
    whole = next((whole for whole in PAIR_LINES if _is_pair_of(name, whole)), None)
    return tables.get(whole) if whole not in names else None


def _is_pair_of(name: str, whole: str) -> bool:
    found = PAIR.fullmatch(name)
    return bool(found) and found[1] == whole


def _missing(name: str) -> dict:
    title, unit = LINES.get(name, (name, ""))
    return {"name": name, "title": title, "value": None, "error": None, "unit": unit, "note": ""}


def _judged_line(line: dict, bar: dict | None) -> dict:
    value, error = line.get("value"), line.get("error")
    if not _is_finite(value):
        remark = "not measured" if value is None else "not a finite number"
        return {**line, "value": None, "bar": bar, "passed": None if bar is None else False, "remark": remark}
    if bar is None:
        return {**line, "bar": None, "passed": None, "remark": ""}
    doubt = line.get("doubt") or (COARSE if _is_coarse(error, bar) else "")
    if doubt:
        return {**line, "bar": bar, "passed": False, "remark": str(doubt)}
    distances = [abs(value) - bar.get("at_most", math.inf), bar.get("at_least", -math.inf) - value]
    passed = max(distances) <= 0.0
    close = _is_finite(error) and abs(max(distances)) < abs(error)
    return {**line, "bar": bar, "passed": passed, "remark": CLOSE if close else ""}


def _is_coarse(error, bar: dict) -> bool:
    """Whether a value within the bar would say nothing; a bar of zero is for counts."""
    return _is_finite(error) and abs(error) > abs(bar.get("at_most", 0.0)) > 0.0


def _is_finite(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def carried(judged: dict) -> dict:
    """What a bundle carries of a judged report; ``sha256``, over all else, tells of a changed word."""
    entry = {
        "format": FORMAT,
        "verdict": judged["verdict"],
        "lines": [{key: line.get(key) for key in (*CARRIED, "bar", "passed")} for line in judged["lines"]],
        "bars": judged["bars"],
        "bars_written": judged["bars_written"],
        "weights_sha256": judged["student"]["weights_sha256"],
        "date": judged["date"],
    }
    return {**entry, "sha256": _digest(entry)}


def _digest(entry: dict) -> str:
    content = {key: value for key, value in entry.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sentence(metadata: dict, weights_sha256: str) -> str:
    """One line on what a bundle's report says of it, computed from the lines it carries; never raises.

    Args:
        metadata: the bundle's.
        weights_sha256: of the weights that are there now, see ``Bundle.weights_sha256``.
    """
    if KEY not in metadata:
        return "no report, never judged against its teacher"
    entry = metadata[KEY]
    try:
        if entry["weights_sha256"] != weights_sha256:
            return "NOT JUDGED: its report belongs to other weights"
        again = judge({"lines": entry["lines"], "date": entry["date"]}, entry["bars"], entry["bars_written"])
        return _sentence(again, _doubts(entry, again, metadata))
    except (ConfigError, KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError):
        return "NOT JUDGED: its report is damaged"


def _doubts(entry: dict, again: dict, metadata: dict) -> str:
    """What is wrong with the report that a bundle carries, beside its verdict."""
    if entry["verdict"] != again["verdict"]:
        return f"{EDITED}: the verdict in the file is {str(entry['verdict'])[:40]!r}"
    if _digest(entry) != entry["sha256"]:
        return EDITED
    if again["bars_written"] != BEFORE:
        return "; its bars were written after training"
    first = metadata.get("bars", {})
    if check_bars(first, tuple(first)) != again["bars"]:
        return "; its bars are not those that were written before training"
    return ""


def _sentence(judged: dict, doubts: str) -> str:
    date = str(judged["date"])[:20]
    if judged["verdict"] == NOT_JUDGED:
        return f"NOT JUDGED: its report of {date} has no bars{doubts}"
    if judged["verdict"] == PASSED and doubts.startswith(EDITED):
        return f"NOT JUDGED: its report of {date} would pass{doubts}"
    lines = [line for line in judged["lines"] if line["bar"]]
    if judged["verdict"] == PASSED:
        return f"passed, {len(lines)} of {len(lines)} bars of its report of {date}{but_close(lines)}{doubts}"
    failed = [describe(line) for line in lines if not line["passed"]]
    more = f" and {len(failed) - MOST_NAMED} more" if len(failed) > MOST_NAMED else ""
    named = ", ".join(failed[:MOST_NAMED])
    return f"FAILED, {len(failed)} of {len(lines)} bars of its report of {date}: {named}{more}{doubts}"


def but_close(lines: list[dict]) -> str:
    """What to add where bars hold, or do not, by less than the statistical error."""
    n_close = sum(line["remark"] == CLOSE for line in lines)
    return f", {n_close} of them by less than the statistical error" if n_close else ""


def describe(line: dict) -> str:
    """A judged line in words: ``force_mae 27.1 (at most 18 meV/Å)``."""
    value = line["remark"] if line["value"] is None else f"{line['value']:.4g}"
    unit = f" {line['unit']}" if line.get("unit") else ""
    doubt = f", {DOUBTFUL}" if line["remark"] not in ("", CLOSE) and line["value"] is not None else ""
    size = " in magnitude" if (line["value"] or 0.0) < 0.0 and "at_most" in line["bar"] else ""
    return f"{line['name']} {value} ({describe_bar(line['bar'])}{unit}{size}{doubt})"


def describe_bar(bar: dict) -> str:
    """``at most 18``."""
    return ", ".join(f"{key.replace('_', ' ')} {bar[key]:.4g}" for key in BAR_KEYS if key in bar)
