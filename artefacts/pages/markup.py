"""HTML building blocks. Text is escaped, because it may come from files."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape


def text(value: object) -> str:
    """Return a value as HTML-escaped text."""
    return escape(str(value))


def section(identifier: str, title: str, *parts: str) -> str:
    """Return a section with a heading. ``parts`` are HTML. Returns "" if all parts are empty."""
    body = "\n".join(part for part in parts if part)
    return f'<section id="{identifier}">\n<h2>{text(title)}</h2>\n{body}\n</section>' if body else ""


def figure(svg: str, caption: str = "") -> str:
    """Return a figure with an optional caption (plain text)."""
    below = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    return f"<figure>{svg}{below}</figure>"


def note(sentence: str) -> str:
    """Return a short note in small print."""
    return f'<p class="note">{text(sentence)}</p>'


def facts(values: Mapping[str, str]) -> str:
    """Return a row of headline numbers, each with its name above it."""
    items = "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in values.items())
    return f'<dl class="facts">{items}</dl>' if items else ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "", texts: bool = False) -> str:
    """Return a table. The first column names the row, and the others hold numbers. Returns "" if there are no rows.

    With ``texts``, the last column holds texts, whose line breaks are kept.
    """
    lines = ["".join(f"<td>{text(cell)}</td>" for cell in row) for row in rows]
    if not lines:
        return ""
    names = "".join(f"<th>{text(name)}</th>" for name in head)
    title = f"<caption>{text(caption)}</caption>" if caption else ""
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    kind = ' class="texts"' if texts else ""
    return f'<div class="scroll"><table{kind}>{title}<thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>'


def details(summary: str, content: str) -> str:
    """Return escaped, preformatted text that unfolds when its summary is clicked."""
    return f"<details><summary>{text(summary)}</summary><pre>{text(content)}</pre></details>"
