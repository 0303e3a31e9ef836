# SPDX-License-Identifier: MIT
"""The page of a sweep: which student was chosen, among which, and how error and speed trade off."""

from pathlib import Path

from mlffd.files import write_atomically
from mlffd.report import blocks
from mlffd.report.figures import NO_MATPLOTLIB, has_matplotlib, pareto_figure


def write_sweep_page(result: dict, folder: Path) -> None:
    """Write ``sweep.md``, ``sweep.html`` and, with matplotlib, ``sweep.svg`` into ``folder``.

    Args:
        result: what ``mlffd.sweep.sweep`` has found.
    """
    content = page_of(result)
    for figure in (block for block in content if isinstance(block, blocks.Figure)):
        write_atomically(folder / figure.file, figure.svg)
    title = f"Sweep: {result['name']}"
    write_atomically(folder / "sweep.md", blocks.markdown(content))
    write_atomically(folder / "sweep.html", blocks.html(content, title))


def page_of(result: dict) -> list:
    """The page's blocks, in order."""
    kind = "passed" if result["chosen"] else "failed"
    return [
        blocks.Heading(f"Sweep: {result['name']}", level=1),
        blocks.Verdict(sentence(result), kind),
        blocks.Text(
            f"{result['labels']['n_frames']} frames labelled by {result['teacher']['name']} to train on, "
            f"{result['held_out']['n_frames']} held out. The held-out frames have chosen the student: "
            "judge it on others."
        ),
        figure_of(result),
        table_of(result),
        *failures_of(result),
        blocks.Heading("How it was measured"),
        blocks.Items(conditions_of(result)),
    ]


def sentence(result: dict) -> str:
    """What came out, in one line."""
    rows = {row["name"]: row for row in result["candidates"]}
    bar = f"{result['force_mae_at_most']:g} meV/Å"
    row = rows[result["chosen"] or result["most_accurate"]]
    figures = f"{row['force_mae']:.3g} meV/Å, {row['us_per_atom']:.3g} µs/atom"
    if result["chosen"]:
        return f"{row['name']} is the fastest within {bar}: {figures}"
    return f"No student is within {bar}; the most accurate is {row['name']}: {figures}"


def figure_of(result: dict) -> blocks.Figure | blocks.Text:
    """The Pareto figure, or why there is none."""
    if not has_matplotlib():
        return blocks.Text(NO_MATPLOTLIB)
    caption = (
        "Force error against time of an evaluation, with the lowest and highest times of several runs; the "
        "line joins those that nothing beats in both."
    )
    return blocks.Figure(Path("sweep.svg"), pareto_figure(result), caption)


def table_of(result: dict) -> blocks.Table:
    """Candidates that were trained, the fastest first."""
    rows = sorted((r for r in result["candidates"] if "failed" not in r), key=lambda r: r["us_per_atom"])
    columns = ["student", "µs/atom", "lowest to highest", "force MAE, meV/Å", "energy MAE, meV/atom",
               "stress MAE, GPa", "parameters", ""]  # fmt: skip
    cells = [
        [
            row["name"],
            f"{row['us_per_atom']:.3g}",
            f"{row['timing']['lowest']:.3g} to {row['timing']['highest']:.3g}",
            f"{row['force_mae']:.3g}",
            f"{row['energy_mae']:.3g}",
            "" if row["stress_mae"] is None else f"{row['stress_mae']:.3g}",
            str(row["parameters"]),
            remark(row, result),
        ]
        for row in rows
    ]
    return blocks.Table(columns, cells, set(range(1, 7)))


def remark(row: dict, result: dict) -> str:
    """What there is to say of a candidate."""
    words = {
        "chosen": row["name"] == result["chosen"],
        "most accurate": row["name"] == result["most_accurate"],
        "on the front": row["on_front"],
        "not within the error": row["force_mae"] > result["force_mae_at_most"],
    }
    return ", ".join(word for word, holds in words.items() if holds)


def failures_of(result: dict) -> list:
    """Candidates that could not be trained, and why."""
    failed = [f"{row['name']}: {row['failed']}" for row in result["candidates"] if "failed" in row]
    return [blocks.Text("These could not be trained:"), blocks.Items(failed)] if failed else []


def conditions_of(result: dict) -> list[str]:
    """With what the times were taken."""
    here, timing = result["environment"], next(r["timing"] for r in result["candidates"] if "timing" in r)
    versions = ", ".join(f"{name} {version}" for name, version in here["versions"].items() if version)
    return [
        f"{here['device']}, {here['processor']}, {here['threads']} thread(s), load {here['load']}",
        f"one structure of {timing['n_atoms']} atoms that moved in each evaluation, neighbor lists included; "
        f"median of {timing['n_runs']} runs, in which the students took turns",
        f"{versions}, commit {here['commit'] or 'unknown'}",
        "training: " + ", ".join(f"{key} = {value}" for key, value in result["train"].items()),
    ]
