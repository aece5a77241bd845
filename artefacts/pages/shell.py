"""The frame of every page: one HTML document that loads nothing."""

from pathlib import Path

from artefacts.pages import markup

_STYLE = Path(__file__).with_name("page.css")

#: The browser loads and runs nothing, whatever a sample or a name contains.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(name: str, kind: str, header: str, body: str) -> str:
    """A complete page.

    Args:
        name: the heading; plain text.
        kind: the kind of page, for its title; plain text.
        header: finished markup below the heading.
        body: finished markup of the sections.
    """
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{markup.text(name)} · {markup.text(kind)}</title>
<style>
{_STYLE.read_text(encoding="utf-8")}</style>
</head>
<body>
<header>
<h1>{markup.text(name)}</h1>
{header}
</header>
<main>
{body}
</main>
</body>
</html>
"""
