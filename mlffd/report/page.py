# SPDX-License-Identifier: MIT
"""The page of a fidelity report: the verdict first, then what it rests on."""

import json
import math
from pathlib import Path

from mlffd.files import write_atomically
from mlffd.report import blocks
from mlffd.report.figures import NO_MATPLOTLIB, curves_figure, errors_figure, has_matplotlib
from mlffd.verdict import BEFORE, CLOSE, FAILED, NOT_JUDGED, PAIR, PASSED, but_close, describe, describe_bar

MARKS = {True: "✓ passed", False: "✗ FAILED", None: ""}
KINDS = {PASSED: "passed", FAILED: "failed", NOT_JUDGED: "unknown"}
COLUMNS = ["line", "", "value", "unit", "bar", "", "note"]
# the first word of a curve's name -> what its figure is called
CURVES = {
    "rdf": "Radial distribution functions",
    "distances": "Distances between atoms",
    "bonds": "Bond lengths",
    "angles": "Bond angles",
    "displacement": "Mean squared displacements",
}
EXPECTED = (("rdf", "distances"), ("bonds",), ("angles",), ("displacement",))  # one of each
FORCE_ERRORS = "Force errors"  # tables whose titles begin so are drawn as well
MOST_PANELS = 12  # of a figure
BANDS = "Below: student minus teacher. The bands are standard errors."


def write_page(report: dict, folder: Path) -> dict[str, Path]:
    """Write a report into ``folder``: ``report.md``, ``report.html``, ``report.json`` and ``figures/*.svg``.

    Figures need matplotlib; without it the page says so and has tables only.

    Args:
        report: judged (see ``judge``), or not, which the page says.

    Returns:
        The files by what they are: ``markdown``, ``html``, ``json``.
    """
    folder = Path(folder)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    ends = {"markdown": "md", "html": "html", "json": "json"}
    files = {kind: folder / f"report.{end}" for kind, end in ends.items()}
    content = page_of(report)
    for figure in (block for block in content if isinstance(block, blocks.Figure)):
        write_atomically(folder / figure.file, figure.svg)
    write_atomically(files["markdown"], blocks.markdown(content))
    write_atomically(files["html"], blocks.html(content, title_of(report)))
    write_atomically(files["json"], json.dumps(without_nan(report), indent=1, allow_nan=False) + "\n")
    return files


def page_of(report: dict) -> list:
    """The page's blocks, in order."""
    return [
        blocks.Heading(title_of(report), level=1),
        verdict_of(report),
        *remarks_of(report),
        blocks.Heading("What was judged and measured"),
        lines_of([line for line in report["lines"] if not PAIR.fullmatch(line["name"]) or line.get("bar")]),
        *figures_of(report),
        *details_of(report),
        *origin_of(report),
    ]


def title_of(report: dict) -> str:
    """Who is compared with whom."""
    student, teacher = (report.get(who, {}).get("name") or who for who in ("student", "teacher"))
    return f"Fidelity of {student} to {teacher}"


def verdict_of(report: dict) -> blocks.Verdict:
    """The verdict in a sentence that names the failed lines."""
    verdict = report.get("verdict", NOT_JUDGED)
    lines = [line for line in report["lines"] if line.get("bar")]
    if verdict == NOT_JUDGED:
        return blocks.Verdict("Not judged: no bars were given.", KINDS[verdict])
    if verdict == PASSED:
        return blocks.Verdict(
            f"Passed: {len(lines)} of {len(lines)} bars hold{but_close(lines)}.", KINDS[verdict]
        )
    failed = [describe(line) for line in lines if not line["passed"]]
    return blocks.Verdict(f"FAILED {len(failed)} of {len(lines)} bars: {'; '.join(failed)}.", KINDS[verdict])


def remarks_of(report: dict) -> list:
    """What qualifies the verdict: when the bars were written, what was too close to call or not measured."""
    remarks = []
    if report.get("verdict", NOT_JUDGED) != NOT_JUDGED:
        when = report["bars_written"]
        doubt = "" if when == BEFORE else ", by somebody who may have known the outcome"
        remarks.append(f"The bars were written {when}{doubt}; the verdict is computed from the lines below.")
        remarks.append("At most is meant of magnitudes: a value too low by more than its bar fails as well.")
        remarks.append("What could not be judged, as a run was too short for it, does not pass.")
    close = [line["name"] for line in report["lines"] if line.get("remark") == CLOSE]
    missing = [line["name"] for line in report["lines"] if line.get("value") is None]
    if close:
        remarks.append(f"Too close to the bar for its statistical error: {', '.join(close)}.")
    if missing:
        remarks.append(f"Not measured: {', '.join(missing)}.")
    return [blocks.Items(remarks)] if remarks else []


def lines_of(lines: list[dict]) -> blocks.Table:
    """Lines with their errors and bars: failed ones first, then the others with a bar, then the rest."""
    order = {False: 0, True: 1, None: 2}
    lines = sorted(lines, key=lambda line: order[line.get("passed")])
    rows = [
        [
            line["name"],
            line.get("title", ""),
            with_error(line.get("value"), line.get("error")),
            line.get("unit") or "",
            describe_bar(line["bar"]) if line.get("bar") else "",
            MARKS[line.get("passed")],
            notes_of(line),
        ]
        for line in lines
    ]
    failed = {place for place, line in enumerate(lines) if line.get("passed") is False}
    return blocks.Table(COLUMNS, rows, {2}, failed)


def notes_of(line: dict) -> str:
    """What there is to say of a line that its other columns do not say."""
    remark, note = line.get("remark", ""), line.get("note") or ""
    return "; ".join(filter(None, ("" if remark == "not measured" or remark in note else remark, note)))


def with_error(value: float | None, error: float | None) -> str:
    """A value rounded to two digits of its error, or to four of its own: ``17.83 ± 0.41``."""
    if value is None or not math.isfinite(value):
        return "not measured"
    if error is None or not math.isfinite(error) or error <= 0.0:
        return f"{value:.4g}"
    decimals = 1 - math.floor(math.log10(error))
    if decimals > 6:
        return f"{value:.4g} ± {error:.2g}"
    value, error, decimals = round(value, decimals), round(error, decimals), max(decimals, 0)
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def figures_of(report: dict) -> list:
    """Every kind of curve, and the force errors; what is missing is named."""
    if not has_matplotlib():
        return [blocks.Heading("Figures"), blocks.Text(NO_MATPLOTLIB)]
    kinds: dict[str, list[dict]] = {}
    for curve in (curve for curve in report.get("curves", []) if len(curve["x"]) > 1):
        kinds.setdefault(curve["name"].partition(" ")[0], []).append(curve)
    found = [block for kind in sorted(kinds, key=_rank) for block in curves_of(kind, kinds[kind])]
    tables = [table for table in report.get("tables", []) if table["title"].startswith(FORCE_ERRORS)]
    if tables:
        caption = "Force errors on held-out frames, by component."
        figure = blocks.Figure(Path("figures/force_errors.svg"), errors_figure(tables), caption)
        found += [blocks.Heading(FORCE_ERRORS), figure]
    missing = [CURVES[wanted[0]] for wanted in EXPECTED if not kinds.keys() & set(wanted)]
    missing += [] if tables else [FORCE_ERRORS]
    return [*found, blocks.Text(f"Not in this report: {', '.join(missing).lower()}.")] if missing else found


def _rank(kind: str) -> int:
    return list(CURVES).index(kind) if kind in CURVES else len(CURVES)


def curves_of(kind: str, curves: list[dict]) -> list:
    """A heading and the figure of one kind of curve."""
    title = CURVES.get(kind, kind)
    curves, left_out = curves[:MOST_PANELS], [curve["name"] for curve in curves[MOST_PANELS:]]
    alone = [
        curve["name"] for curve in curves if curve.get("teacher") is None or curve.get("student") is None
    ]
    without = f" Of one of the two only: {', '.join(alone)}." if alone else ""
    more = f" Not drawn, but in report.json: {', '.join(left_out)}." if left_out else ""
    file = Path("figures") / f"{''.join(letter if letter.isalnum() else '_' for letter in kind)}.svg"
    caption = f"{title} of the teacher and of the student. {BANDS}{without}{more}"
    return [blocks.Heading(title), blocks.Figure(file, curves_figure(curves), caption)]


def details_of(report: dict) -> list:
    """Pairs of elements one by one, and all tables."""
    pairs = [line for line in report["lines"] if PAIR.fullmatch(line["name"]) and not line.get("bar")]
    found = [blocks.Heading("In detail")] if pairs or report.get("tables") else []
    found += [lines_of(pairs)] if pairs else []
    for table in report.get("tables", []):
        numbers = {
            place for place in range(1, len(table["columns"]))
            if all(row[place] is None or isinstance(row[place], int | float) for row in table["rows"])
        }  # fmt: skip
        rows = [[in_cell(value) for value in row] for row in table["rows"]]
        found += [blocks.Heading(table["title"], level=3), blocks.Table(table["columns"], rows, numbers)]
    return found


def in_cell(value) -> str:
    """A number with four digits, nothing for None."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def origin_of(report: dict) -> list:
    """How the report came about: command, students, conditions, machine, files."""
    found = [blocks.Heading("How it was made")]
    if report.get("command"):
        found.append(blocks.Command(report["command"]))
    for part in ("student", "teacher", "conditions", "environment"):
        if report.get(part):
            rows = [[name, value] for name, value in flat(report[part])]
            found += [blocks.Heading(part.capitalize(), level=3), blocks.Table(["", ""], rows)]
    if report.get("files"):
        found += [
            blocks.Heading("Files", level=3),
            blocks.Links({k: str(v) for k, v in flat(report["files"])}),
        ]
    return [*found, blocks.Text(f"Written on {report['date']}.")] if report.get("date") else found


def flat(table: dict, above: str = "") -> list[tuple[str, str]]:
    """Names and values, those of tables within as ``table.name``."""
    found = []
    for name, value in table.items():
        if isinstance(value, dict):
            found += flat(value, f"{above}{name}.")
        else:
            words = ", ".join(map(in_cell, value)) if isinstance(value, list | tuple) else in_cell(value)
            found.append((f"{above}{name}", words))
    return found


def without_nan(value):
    """Content for JSON, which knows no NaN and no infinity: they become null."""
    if isinstance(value, dict):
        return {key: without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
