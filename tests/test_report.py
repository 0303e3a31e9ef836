# SPDX-License-Identifier: MIT
"""The page of a report: a chemist sees the verdict first, and what is missing is said."""

import json
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest

from mlffd.report import judge, write_page
from mlffd.report.page import with_error

COLUMNS = ["element", "atoms", "teacher RMS, meV/Å", "MAE, meV/Å", "RMSE, meV/Å"]
ERRORS = {
    "title": "Force errors by element",
    "columns": COLUMNS,
    "rows": [["H", 2, 9.0, 1.0, 1.5], ["O", 0, *[None] * 3]],
}


def line(name: str, value, error=None, note: str = "") -> dict:
    return {
        "name": name,
        "title": f"what {name} is",
        "value": value,
        "error": error,
        "unit": "Å",
        "note": note,
    }


def curve(name: str, **others) -> dict:
    both = {"teacher": [0.0, 1.5, 1.0], "student": [0.0, 1.4, None]}
    errors = {f"{who}_error": [0.0, 0.1, 0.1] for who in both}
    return {
        "name": name,
        "x": [1.0, 2.0, 3.0],
        "x_label": "r, Å",
        "y_label": "g(r)",
        **both,
        **errors,
        **others,
    }


def report(**others) -> dict:
    facts = {
        "student": {"name": "water", "weights_sha256": "ab" * 32},
        "teacher": {"name": "7net-0", "settings": {"modal": "R2SCAN"}},
        "command": "mlffd report water.mlffd test.h5",
        "environment": {"versions": {"torch": "2.13"}, "commit": "120f274"},
        "lines": [
            line("force_mae", 17.8312, 0.4132),
            line("energy_mae", 0.12),
            line("rdf_peak_height_O-O", 0.01),
        ],
        "curves": [
            curve("rdf O-O"),
            curve("rdf H-O", student=None, student_error=None),
            curve("angles H-O-H"),
        ],
        "tables": [ERRORS],
        "files": {"worst": "worst frames.xyz"},
    }
    return {**facts, **others}


def test_the_verdict_comes_first_with_the_lines_that_failed(tmp_path):
    bars = {"force_mae": 15, "energy_mae": 0.2, "speedup": {"at_least": 10}}
    files = write_page(judge(report(), bars, "before training"), tmp_path)
    page = files["markdown"].read_text()
    assert page.splitlines()[2] == (
        "**FAILED 2 of 3 bars: force_mae 17.83 (at most 15 Å); speedup not measured (at least 10).**"
    )
    rows = [row for row in page.splitlines() if row.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows[2:5]] == ["| force_mae", "| speedup", "| energy_mae"]
    assert "| 17.83 ± 0.41 | Å | at most 15 | ✗ FAILED |" in rows[2]
    assert "written before training" in page
    assert "Not measured: speedup" in page


def test_a_page_that_passed_and_one_without_bars(tmp_path):
    passed = write_page(judge(report(), {"force_mae": 18}), tmp_path)
    text = passed["markdown"].read_text()
    assert "**Passed: 1 of 1 bars hold, 1 of them by less than the statistical error.**" in text
    assert "somebody who may have known the outcome" in text
    assert "Too close to the bar for its statistical error: force_mae" in text
    unjudged = write_page(report(), tmp_path)
    assert "**Not judged: no bars were given.**" in unjudged["markdown"].read_text()


def test_figures_are_there_and_missing_ones_are_named(tmp_path):
    """Seen to catch: a kind of curve without a figure; missing kinds passed over."""
    pytest.importorskip("matplotlib")
    page = write_page(report(), tmp_path)["markdown"].read_text()
    named = re.findall(r"!\[.*\]\((.*)\)", page)
    assert named == ["figures/rdf.svg", "figures/angles.svg", "figures/force_errors.svg"]
    for name in named:
        assert ElementTree.parse(tmp_path / name).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert "Not in this report: bond lengths, mean squared displacements." in page
    assert "Of one of the two only: rdf H-O." in page
    without = write_page(report(curves=[], tables=[]), tmp_path)["markdown"].read_text()
    assert "Not in this report: radial distribution functions, bond lengths, bond angles" in without
    assert "force errors." in without


def test_a_figure_has_room_for_some_curves_only(tmp_path, monkeypatch):
    """Seen to catch: a curve without points, of which there is no last one."""
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("mlffd.report.page.MOST_PANELS", 1)
    curves = [curve("angles H-O-H"), curve("angles O-H-O"), curve("angles", x=[], teacher=[], student=[])]
    page = write_page(report(curves=curves), tmp_path)["markdown"].read_text()
    assert "Not drawn, but in report.json: angles O-H-O." in page


def test_without_matplotlib_there_are_tables_and_a_line_that_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("mlffd.report.page.has_matplotlib", lambda: False)
    page = write_page(report(), tmp_path)["markdown"].read_text()
    assert "matplotlib is not installed" in page
    assert "![" not in page
    assert "| H | 2 | 9 | 1 | 1.5 |" in page


def test_the_page_stands_alone_and_holds_no_script(tmp_path):
    """Names and notes are text, whatever they hold. Seen to catch: a cell that was not escaped."""
    evil = "<script>alert(1)</script>|`x` [a](b)"
    others = {
        "student": {"name": evil},
        "command": evil,
        "conditions": {evil: evil},
        "files": {evil: "javascript:alert(1)"},
        "lines": [line("force_mae", 1.0, note=evil)],
        "tables": [{"title": evil, "columns": [evil], "rows": [[evil]]}],
    }
    files = write_page(judge(report(**others), {"force_mae": 2}), tmp_path)
    html = files["html"].read_text()
    assert "<script" not in html
    assert 'href="javascript:' not in html
    outside = re.findall(r'(?:src|href)="(?!#|\./)([^"]*)"', html)
    assert outside == [], "nothing is loaded from elsewhere"
    page = files["markdown"].read_text()
    assert "<script" not in page.replace("    <script", "")  # indented: code
    assert all(
        row.count("|") - row.count("\\|") == 8 for row in page.splitlines() if row.startswith("| force_mae")
    )


def test_the_json_is_strict_and_the_same_report_gives_the_same_bytes(tmp_path):
    lines = [line("force_mae", math.nan), line("speedup", math.inf)]
    curves = [curve("rdf O-O", teacher=[0.0, 1.0, math.nan])]
    judged = judge(report(lines=lines, curves=curves), {"force_mae": 18})
    first = {kind: path.read_bytes() for kind, path in write_page(judged, tmp_path / "a").items()}
    second = {kind: path.read_bytes() for kind, path in write_page(judged, tmp_path / "b").items()}
    assert first == second

    def refuse(text):
        raise AssertionError(text)

    written = json.loads(first["json"], parse_constant=refuse)
    assert written["verdict"] == "failed"
    assert [entry["value"] for entry in written["lines"]] == [None, None]


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (17.8312, 0.4132, "17.83 ± 0.41"),
        (0.0123, 0.00456, "0.0123 ± 0.0046"),
        (680.4, 31.2, "680 ± 31"),
        (123456.0, 7890.0, "123500 ± 7900"),
        (1.23456, None, "1.235"),
        (2.0, 0.0, "2"),
        (None, 0.1, "not measured"),
        (math.nan, None, "not measured"),
    ],
)
def test_values_are_rounded_as_their_errors_tell(value, error, text):
    assert with_error(value, error) == text


def test_reports_are_written_where_there_is_no_torch():
    code = "import sys; sys.modules['torch'] = None; import mlffd.report, mlffd.report.pareto; print('fine')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.stdout == "fine\n", run.stderr
