# SPDX-License-Identifier: MIT
"""The page of a fidelity report: the verdict first, then what it rests on."""

import json
import math
from pathlib import Path

from mlffd.files import write_atomically
from mlffd.report import blocks
from mlffd.verdict import FAILED, NOT_JUDGED, PASSED, describe, describe_bar

MARKS = {True: "passed", False: "FAILED", None: ""}
KINDS = {PASSED: "passed", FAILED: "failed", NOT_JUDGED: "unknown"}
NO_BARS = "Not judged: no bars were given."


def write_page(report: dict, folder: Path) -> dict[str, Path]:
    """Write a report as ``report.md``, ``report.html``, ``report.json`` and figures (SVG) into ``folder``.

    Figures need matplotlib; without it the page says so and has tables only.

    Args:
        report: judged (see ``judge``), or not, which the page says.

    Returns:
        The files by what they are: ``markdown``, ``html``, ``json``.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        kind: folder / f"report.{end}"
        for kind, end in (("markdown", "md"), ("html", "html"), ("json", "json"))
    }
    content = page_of(report)
    write_atomically(files["json"], json.dumps(without_nan(report), indent=1, allow_nan=False) + "\n")
    write_atomically(files["markdown"], blocks.markdown(content))
    write_atomically(files["html"], blocks.html(content, title_of(report)))
    return files


def page_of(report: dict) -> list:
    """The page's blocks, in order."""
    return [
        blocks.Heading(title_of(report), level=1),
        verdict_of(report),
        blocks.Heading("Lines"),
        lines_of(report),
    ]


def title_of(report: dict) -> str:
    student, teacher = (report.get(who, {}).get("name") or who for who in ("student", "teacher"))
    return f"Fidelity report: {student} against {teacher}"


def verdict_of(report: dict) -> blocks.Verdict:
    """The verdict in a sentence that names the failed lines."""
    verdict = report.get("verdict", NOT_JUDGED)
    if verdict == NOT_JUDGED:
        return blocks.Verdict(NO_BARS, KINDS[verdict])
    lines = [line for line in report["lines"] if line["bar"]]
    if verdict == PASSED:
        return blocks.Verdict(f"Passed: {len(lines)} of {len(lines)} bars hold.", KINDS[verdict])
    failed = [line for line in lines if not line["passed"]]
    named = "; ".join(map(describe, failed))
    return blocks.Verdict(f"FAILED {len(failed)} of {len(lines)} bars: {named}.", KINDS[verdict])


def lines_of(report: dict) -> blocks.Table:
    """Every line with its error, its bar and whether it holds."""
    rows = [
        [
            line.get("title") or line["name"],
            with_error(line),
            line.get("unit") or "",
            describe_bar(line["bar"]) if line.get("bar") else "",
            MARKS[line.get("passed")],
            "; ".join(filter(None, (line.get("remark"), line.get("note")))),
        ]
        for line in report["lines"]
    ]
    failed = {k for k, line in enumerate(report["lines"]) if line.get("passed") is False}
    return blocks.Table(["", "value", "unit", "bar", "", "note"], rows, {1}, failed)


def with_error(line: dict) -> str:
    """The value, rounded as its error tells."""
    value, error = line.get("value"), line.get("error")
    if value is None:
        return "not measured"
    return f"{value:.4g}" if error is None else f"{value:.4g} ± {error:.2g}"


def without_nan(value):
    """Content for JSON, which knows no NaN and no infinity: they become null."""
    if isinstance(value, dict):
        return {key: without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
