"""Style of the figures, as inline SVG in the page's text color or as PNG."""

import io
import re
from collections.abc import Callable
from html import escape

from matplotlib import rc_context
from matplotlib.figure import Figure

#: Readable on white and on black.
COLORS = ("#2f7fc1", "#e0762f", "#2f9e77", "#9a6fc4", "#d0505a", "#8a7a35")

#: Placeholder for the page's text color while matplotlib draws. No series uses it.
_INK = "#012345"

_COMMON = {
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.15,
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "figure.constrained_layout.use": True,
}


def inline_svg(draw: Callable[[], Figure], label: str) -> str:
    """The figure that ``draw`` returns, as an ``<svg>`` element without external references.

    ``label`` is its alternative text. Its identifiers depend on the label, so figures with different labels do not
    share clip paths.
    """
    inks = ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
    style = dict.fromkeys((*inks, "grid.color"), _INK) | {"svg.hashsalt": label}
    with rc_context(_COMMON | style):
        text = io.StringIO()
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        draw().savefig(text, format="svg", transparent=True, dpi=160, metadata=no_metadata)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)  # HTML does not need them, and they look like references
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # the same in every figure, and nothing refers to them
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "inherit", svg).replace(_INK, "currentColor")
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)


def png(draw: Callable[[], Figure]) -> bytes:
    """The figure that ``draw`` returns, as a PNG on white."""
    with rc_context(_COMMON):
        content = io.BytesIO()
        draw().savefig(content, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return content.getvalue()
