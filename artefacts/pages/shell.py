"""The frame of every page: a single HTML document that loads no other files."""

from pathlib import Path

from artefacts.pages import markup

_STYLE = Path(__file__).with_name("page.css")

#: Keeps the browser from loading or running anything, no matter what a sample or a name contains.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(name: str, kind: str, header: str, body: str) -> str:
    """Return a complete page.

    Args:
        name: the heading, as plain text.
        kind: the kind of page, for its title, as plain text.
        header: HTML below the heading.
        body: HTML of the sections.
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
