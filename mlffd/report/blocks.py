# SPDX-License-Identifier: MIT
"""What a page consists of, and how that looks in Markdown and in HTML. Texts are plain, without markup."""

from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from urllib.parse import quote

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; color: #222 }
h1, h2 { line-height: 1.2 } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd; padding-bottom: .2rem }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .8rem; border-bottom: 1px solid #e5e5e5; text-align: left; vertical-align: top }
th { border-bottom: 2px solid #999 } tr.failed td { background: #fdeaea } td.number { text-align: right }
.verdict { font-size: 1.3rem; font-weight: 600; padding: .8rem 1rem; border-left: .5rem solid #888 }
.passed { border-color: #1a7f37; background: #eaf6ec } .failed { border-color: #b3261e; background: #fdeaea }
.unknown { border-color: #9a6700; background: #fff5dc }
figure { margin: 1rem 0 } figure svg { max-width: 100%; height: auto } figcaption { color: #555 }
pre { background: #f5f5f5; padding: .8rem; overflow-x: auto } code { font-size: .9em }
""".strip()


@dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2

    def markdown(self) -> str:
        return f"{'#' * self.level} {plain(self.text)}"

    def html(self) -> str:
        return f"<h{self.level}>{escape(self.text)}</h{self.level}>"


@dataclass(frozen=True)
class Verdict:
    """The sentence that a reader sees first; ``kind`` is passed, failed or unknown."""

    text: str
    kind: str

    def markdown(self) -> str:
        return f"**{plain(self.text)}**"

    def html(self) -> str:
        return f'<p class="verdict {self.kind}">{escape(self.text)}</p>'


@dataclass(frozen=True)
class Text:
    text: str

    def markdown(self) -> str:
        return plain(self.text)

    def html(self) -> str:
        return f"<p>{escape(self.text)}</p>"


@dataclass(frozen=True)
class Items:
    """A list."""

    texts: list[str]

    def markdown(self) -> str:
        return "\n".join(f"- {plain(text)}" for text in self.texts)

    def html(self) -> str:
        return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in self.texts) + "</ul>"


@dataclass(frozen=True)
class Links:
    """Files beside the page, by what they are."""

    files: dict[str, str]

    def markdown(self) -> str:
        return "\n".join(
            f"- {plain(name)}: [{plain(file)}]({quote(file)})" for name, file in self.files.items()
        )

    def html(self) -> str:
        # a quoted path cannot be anything but a file: no scheme, no script
        items = (f'<li>{escape(name)}: <a href="./{quote(file)}">{escape(file)}</a></li>'
                 for name, file in self.files.items())  # fmt: skip
        return f"<ul>{''.join(items)}</ul>"


@dataclass(frozen=True)
class Command:
    text: str

    def markdown(self) -> str:
        return "\n".join(f"    {line}" for line in self.text.splitlines())

    def html(self) -> str:
        return f"<pre><code>{escape(self.text)}</code></pre>"


@dataclass(frozen=True)
class Table:
    """``failed`` are the rows to point at; ``numbers`` the columns to align on the right."""

    columns: list[str]
    rows: list[list[str]]
    numbers: set[int] = field(default_factory=set)
    failed: set[int] = field(default_factory=set)

    def markdown(self) -> str:
        ruler = ["--:" if k in self.numbers else "---" for k in range(len(self.columns))]
        rows = [map(cell, self.columns), ruler, *(map(cell, row) for row in self.rows)]
        return "\n".join("| " + " | ".join(row) + " |" for row in rows)

    def html(self) -> str:
        head = "".join(f"<th>{escape(name)}</th>" for name in self.columns)
        body = "".join(self._html_row(k, row) for k, row in enumerate(self.rows))
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def _html_row(self, place: int, row: list[str]) -> str:
        kinds = [' class="number"' if k in self.numbers else "" for k in range(len(row))]
        cells = "".join(f"<td{kind}>{escape(text)}</td>" for kind, text in zip(kinds, row))
        return f'<tr class="failed">{cells}</tr>' if place in self.failed else f"<tr>{cells}</tr>"


@dataclass(frozen=True)
class Figure:
    """An SVG, in a file of its own for Markdown, and within the page in HTML."""

    file: Path  # relative to the page
    svg: str  # one <svg> element
    caption: str

    def markdown(self) -> str:
        return f"![{plain(self.caption)}]({self.file.as_posix()})"

    def html(self) -> str:
        return f"<figure>{self.svg}<figcaption>{escape(self.caption)}</figcaption></figure>"


def plain(text: str) -> str:
    """Text in which Markdown and HTML see no markup, on one line."""
    text = escape(" ".join(text.split()), quote=False)
    return "".join(f"\\{letter}" if letter in "\\`*[]" else letter for letter in text)


def cell(text: str) -> str:
    """The same for a cell of a table."""
    return plain(text).replace("|", "\\|")


def markdown(blocks: list) -> str:
    """The page in Markdown."""
    return "\n\n".join(block.markdown() for block in blocks) + "\n"


def html(blocks: list, title: str) -> str:
    """The page in one file of HTML, without scripts."""
    body = "\n".join(block.html() for block in blocks)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f"<style>\n{STYLE}\n</style></head>\n<body>\n{body}\n</body></html>\n"
    )
