# SPDX-License-Identifier: MIT
"""Figures as SVG. matplotlib is imported when one is drawn, and may be missing."""

import math
import re
from collections.abc import Callable
from importlib.util import find_spec
from io import BytesIO, StringIO

NO_MATPLOTLIB = (
    "No figures: matplotlib is not installed. `pip install mlffd[report]` and write the page again."
)
TEACHER, STUDENT, GRAY, BAR = "#444444", "#d1495b", "#9aa5b1", "#00798c"
STYLE = {
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.grid": True,
    "grid.color": "#ececec",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.fonttype": "path",  # looks the same wherever it is seen
    "svg.hashsalt": "mlffd",  # the same figure has the same bytes
}
HIGHEST_PEAK, LIMIT_OF_CUT = 6.0, 3.0  # of an RDF: one that goes higher is cut
WIDTH, PANEL_HEIGHT, N_COLUMNS = 8.0, 2.7, 3  # inches


def has_matplotlib() -> bool:
    """Whether figures can be drawn here."""
    return find_spec("matplotlib") is not None


def drawn(draw: Callable, width: float = WIDTH, height: float = 3.2, kind: str = "svg"):
    """The figure that ``draw(figure)`` makes: one <svg> element as text, or the bytes of a PNG."""
    import matplotlib
    from matplotlib.figure import Figure  # without pyplot there is no display to look for

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        if kind == "png":
            file = BytesIO()
            figure.savefig(file, format="png", dpi=110)
            return file.getvalue()
        file = StringIO()
        figure.savefig(file, format="svg")
    text = re.sub(r"\b([1-9]\d*\.\d\d)\d+", r"\1", file.getvalue())  # hundredths of a pixel are enough
    # the metadata name the date, and places elsewhere
    return re.sub(r"<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], flags=re.DOTALL)


def numbers(values: list) -> list[float]:
    """Values of a curve, with nan where there is none."""
    return [math.nan if value is None else float(value) for value in values]


def pareto_figure(result: dict, kind: str = "svg"):
    """Force error against time for every candidate of a sweep, both logarithmic."""
    rows = sorted((r for r in result["candidates"] if "failed" not in r), key=lambda r: r["us_per_atom"])
    families = sorted({row["student"]["family"] for row in rows})
    colors = dict(zip(families, (BAR, STUDENT, TEACHER)))

    def draw(figure) -> None:
        axes = figure.add_subplot()
        axes.set(xscale="log", yscale="log", xlabel="time of an evaluation, µs/atom")
        axes.set_ylabel("force error on held-out frames, MAE, meV/Å")
        front = [row for row in rows if row["on_front"]]
        axes.plot(*_places(front), color=GRAY, linewidth=1.0, zorder=1)
        for family in families:
            mine = [row for row in rows if row["student"]["family"] == family]
            x, y = _places(mine)
            spread = [[row["us_per_atom"] - row["timing"]["lowest"] for row in mine],
                      [row["timing"]["highest"] - row["us_per_atom"] for row in mine]]  # fmt: skip
            axes.errorbar(
                x, y, xerr=spread, fmt="o", color=colors[family], markersize=5, elinewidth=0.8, label=family
            )
        for row in front:
            axes.annotate(
                short_title(row, rows), (row["us_per_atom"], row["force_mae"]),
                xytext=(6, 6), textcoords="offset points", fontsize=7.5,
            )  # fmt: skip
        axes.axhline(
            result["force_mae_at_most"], color=TEACHER, linewidth=0.9, linestyle="--", label="asked for"
        )
        chosen = [row for row in rows if row["name"] == result["chosen"]]
        axes.plot(
            *_places(chosen),
            "o",
            markersize=11,
            fillstyle="none",
            color=TEACHER,
            label="chosen" if chosen else None,
        )
        _plain_ticks(axes)
        figure.legend(loc="outside right upper")

    return drawn(draw, height=4.2, kind=kind)


def short_title(row: dict, rows: list[dict]) -> str:
    """Of a candidate, what tells it from others of its family."""
    family = [
        set(other["name"].split("-"))
        for other in rows
        if other["student"]["family"] == row["student"]["family"]
    ]
    common = set.intersection(*family) if len(family) > 1 else set()
    words = [word for word in row["name"].split("-") if word not in common]
    return " ".join(words) if len(family) > 1 else row["student"]["family"]


def _places(rows: list[dict]) -> tuple[list[float], list[float]]:
    return [row["us_per_atom"] for row in rows], [row["force_mae"] for row in rows]


def _plain_ticks(axes) -> None:
    """Numbers as one says them, where a logarithmic axis spans less than a decade or two."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 100 else (1.0,)))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())


def curves_figure(curves: list[dict], kind: str = "svg"):
    """Small multiples of a kind of curve: teacher and student, below their difference; errors as bands."""
    n_columns = min(N_COLUMNS, len(curves))
    n_rows = math.ceil(len(curves) / n_columns)
    width = WIDTH * (0.45 + 0.55 * n_columns / N_COLUMNS)

    def draw(figure) -> None:
        grid = figure.subplots(2 * n_rows, n_columns, squeeze=False, height_ratios=[3.0, 1.0] * n_rows)
        for place in range(n_rows * n_columns):
            row, column = divmod(place, n_columns)
            panels = grid[2 * row, column], grid[2 * row + 1, column]
            if place < len(curves):
                _draw_curve(*panels, curves[place], with_label=column == 0)
            else:
                for axes in panels:
                    axes.set_axis_off()
        figure.align_ylabels(grid[:, 0])
        figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper right", ncols=2)

    return drawn(draw, width, 0.35 + PANEL_HEIGHT * n_rows, kind)


def _draw_curve(axes, below, curve: dict, with_label: bool) -> None:
    """One curve: a panel with both, and one with student minus teacher."""
    x, of = numbers(curve["x"]), {}
    for who, color, line_width in (("teacher", TEACHER, 2.2), ("student", STUDENT, 1.1)):
        if curve.get(who) is None:
            continue
        of[who] = numbers(curve[who]), numbers(curve.get(f"{who}_error") or [0.0] * len(x))
        _draw_band(axes, x, *of[who], color=color, linewidth=line_width, label=who)
    if len(of) == 2:
        difference = [s - t for t, s in zip(of["teacher"][0], of["student"][0])]
        error = [math.hypot(t, s) for t, s in zip(of["teacher"][1], of["student"][1])]
        _draw_band(below, x, difference, error, color=BAR, linewidth=1.0)
        below.axhline(0.0, color=TEACHER, linewidth=0.6)
    if curve["y_label"] == "g(r)" and len(of) == 2:
        _cut_high_peak(axes, below, of)
    left = next((place for place, values in zip(x, zip(*(y for y, _ in of.values()))) if any(values)), x[0])
    for panel in (axes, below):
        panel.set_xlim(left if left > 0.2 * x[-1] else x[0], x[-1])
    axes.set(
        title=curve["name"].partition(" ")[2] or curve["name"], ylabel=curve["y_label"] if with_label else ""
    )
    axes.tick_params(labelbottom=False)
    below.set(xlabel=curve["x_label"], ylabel="difference" if with_label else "")


def _cut_high_peak(axes, below, of: dict) -> None:
    """Leave out the top of a peak of bonded atoms, beside which all that is not bonded would lie flat."""
    top = max(y for values, _ in of.values() for y in values if math.isfinite(y))
    if top <= HIGHEST_PEAK:
        return
    axes.set_ylim(-0.05 * LIMIT_OF_CUT, LIMIT_OF_CUT)
    axes.annotate(
        f"peak: {top:.3g}", (0.97, 0.97), xycoords="axes fraction", ha="right", va="top", fontsize=7.5
    )
    (teacher, _), (student, _) = of["teacher"], of["student"]
    shown = [abs(s - t) for t, s in zip(teacher, student) if max(t, s) < LIMIT_OF_CUT]
    below.set_ylim(-1.5 * max(shown, default=1.0), 1.5 * max(shown, default=1.0))


def _draw_band(axes, x: list, y: list, error: list, **style) -> None:
    """A line within a band of its error."""
    low, high = ([value + sign * e for value, e in zip(y, error)] for sign in (-1, 1))
    axes.fill_between(x, low, high, color=style["color"], alpha=0.25, linewidth=0)
    axes.plot(x, y, **style)


def errors_figure(tables: list[dict], kind: str = "svg"):
    """Bars of force errors, one panel a table: its first column says of what, others hold MAE and RMSE."""

    def draw(figure) -> None:
        panels = figure.subplots(1, len(tables), squeeze=False)[0]
        for axes, table in zip(panels, tables):
            _draw_errors(axes, table)
        panels[0].set_ylabel("force error, meV/Å")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=2)

    return drawn(draw, kind=kind)


def _draw_errors(axes, table: dict) -> None:
    columns = {name.partition(",")[0]: place for place, name in enumerate(table["columns"])}
    rows = [row for row in table["rows"] if row[columns["MAE"]] is not None]
    places = range(len(rows))
    axes.bar(places, [row[columns["MAE"]] for row in rows], color=BAR, width=0.65, label="MAE")
    axes.plot(places, [row[columns["RMSE"]] for row in rows], "_", color=TEACHER, markersize=14, label="RMSE")
    axes.set_xticks(list(places), [str(row[0]) for row in rows], rotation=30 if len(rows) > 4 else 0)
    axes.set(title=table["title"].removeprefix("Force errors "), xlabel=table["columns"][0])
    axes.grid(visible=False, axis="x")
