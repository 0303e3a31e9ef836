# SPDX-License-Identifier: MIT
"""What `mlffd teachers` prints: a line for each teacher, or all about one."""

from mlffd.teachers import TEACHERS, facts_of, settings_of
from mlffd.teachers.facts import NOT_KNOWN

HEADER = ("teacher", "installed", "elements", "cell", "stress", "weights", "code", "download")
FEW = 20  # elements that are spelled out


def table() -> str:
    """A line for each name or pattern: installed or not, elements, cell, stress, licences, download."""
    rows = [HEADER, *(_row(name, facts) for name, facts in TEACHERS.items())]
    widths = [max(len(row[k]) for row in rows) for k in range(len(HEADER))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join([*lines, "", "`mlffd teachers NAME` tells all about one, and how to install it."])


def _row(name, facts):
    installed = facts.installed() if facts.package or facts.program else "with mlffd"
    return (
        name,
        _short(installed or "no"),
        _short(_count(facts)),
        facts.periodic,
        "yes" if facts.stress else "no",
        _short(facts.weights_licence),
        _short(facts.code_licence),
        "no" if facts.download.startswith("no") else "yes",
    )


def _short(text):
    """Without what stands in brackets; a path is enough to know that a program is there."""
    return "yes" if text.startswith("/") else text.partition(" (")[0].partition(" apart")[0].partition(",")[0]


def _count(facts):
    return str(len(facts.elements)) if facts.elements else facts.elements_note or NOT_KNOWN


def one(name: str) -> str:
    """All about one teacher or pattern.

    Raises:
        TeacherError: there is none of this name; it says the nearest.
    """
    facts = facts_of(name)
    lines = [(name, facts.about)]
    if facts.names and name not in facts.names:
        lines.append(("names", ", ".join(facts.names)))
    lines += [
        ("level of theory", facts.level),
        ("forces", _forces(facts.conservative)),
        ("elements", _elements(facts)),
        (
            "cell",
            {"required": "required: no isolated molecules", "never": "none"}.get(facts.periodic, "optional"),
        ),
        ("stress", "yes, for frames with a cell" if facts.stress else "no"),
    ]
    if facts.charged:
        lines.append(("charge, spin", "of each frame's info (charge, spin = 2S+1), else of the settings"))
    lines += [
        ("licence", f"code {facts.code_licence}; weights {facts.weights_licence}"),
        (
            "download",
            facts.download if facts.download.startswith("no") else f"at first use, {facts.download}",
        ),
        ("installed", _installed(facts)),
    ]
    lines += [("note", facts.note)] if facts.note else []
    lines += [("settings" if k == 0 else "", text) for k, text in enumerate(_settings(facts))]
    lines.append(("use", f"mlffd label FRAMES.xyz --teacher {_example(name, facts)} -o LABELS.h5"))
    width = max(len(title) for title, _ in lines[1:])
    return "\n".join([f"{name}: {facts.about}", *(f"  {t.ljust(width)}  {text}" for t, text in lines[1:])])


def _forces(conservative):
    return {
        True: "the gradient of its energy",
        False: "not the gradient of its energy; a student's are, so it follows them only so far",
        None: NOT_KNOWN,
    }[conservative]


def _elements(facts):
    if not facts.elements:
        return facts.elements_note or NOT_KNOWN
    from ase.data import atomic_numbers

    known = sorted(facts.elements, key=atomic_numbers.get)
    if facts.elements_note:
        return facts.elements_note
    if len(known) <= FEW:
        return " ".join(known)
    last = atomic_numbers[known[-1]]
    missing = [s for s, z in atomic_numbers.items() if 0 < z <= last and s not in facts.elements]
    return f"{len(known)}: H to {known[-1]}" + (f" without {', '.join(missing)}" if missing else "")


def _installed(facts):
    if not (facts.package or facts.program):
        return facts.install
    found = facts.installed()
    what = f"{facts.package or facts.program} {found}" if found else "no"
    hint = f"; {facts.install}; or label in another environment and bring the label file back"
    return what if found else what + hint


def _settings(facts):
    defaults = settings_of(facts)
    shown = {key: f" (default {value!r})" for key, value in defaults.items() if value is not None}
    return [f"{key}: {what}{shown.get(key, '')}" for key, what in facts.settings.items()] or ["none"]


def _example(name, facts):
    name = facts.names[0] if facts.names and name not in facts.names and "*" in name else name
    needed = [key for key in ("modal", "task") if key in facts.settings]
    return name + "".join(f" --set {key}=..." for key in needed)
