"""demo/output/index.html: everything the demo made, on one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

Table = Sequence[Sequence[str]]
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1400px; padding: 0 1rem; color: #222 }
h1, h2 { line-height: 1.2 } img { max-width: 100%; border: 1px solid #ddd }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .3rem .9rem; text-align: left }
tr + tr { border-top: 1px solid #ddd } figure { margin: 1.5rem 0 } figcaption { color: #666 }
"""


@dataclass(frozen=True)
class Section:
    """A part of the page: a picture, a table, or both."""

    title: str
    caption: str
    picture: Path | None = None
    table: Table = ()


def write_page(sections: Sequence[Section], path: Path) -> Path:
    """Writes the page beside its pictures and returns where."""
    body = "\n".join(_section(section, path.parent) for section in sections)
    page = (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>Semblance: the demo</title>\n'
        f"<style>{STYLE}</style>\n<h1>Semblance: the demo</h1>\n{body}\n</html>\n"
    )
    path.write_text(page, encoding="utf-8")
    return path


def text_table(table: Table) -> str:
    """The table for a terminal, in columns."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table)


def _section(section: Section, folder: Path) -> str:
    parts = [f"<h2>{escape(section.title)}</h2>"]
    if section.picture is not None:
        name = section.picture.relative_to(folder).as_posix()
        parts.append(f'<figure><img src="{escape(name)}" alt="{escape(section.title)}">')
        parts.append(f"<figcaption>{escape(section.caption)}</figcaption></figure>")
    if section.table:
        heads, *rows = section.table
        parts.append("<table>" + _row("th", heads) + "".join(_row("td", row) for row in rows) + "</table>")
        if section.picture is None:
            parts.append(f"<p>{escape(section.caption)}</p>")
    return "\n".join(parts)


def _row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"
