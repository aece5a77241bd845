"""The style of figures, and functions that render them as PNG or as inline SVG in the page's text color."""

import io
import re
from collections.abc import Callable
from html import escape

from matplotlib import rc_context
from matplotlib.figure import Figure

#: Series colors, readable on both white and black.
COLORS = ("#2f7fc1", "#e0762f", "#2f9e77", "#9a6fc4", "#d0505a", "#8a7a35")

#: Placeholder for the page's text color while matplotlib draws. No series has this color.
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
    """Render the figure that ``draw`` returns as an ``<svg>`` element without external references.

    ``label`` is the alternative text. The IDs within the SVG are derived from the label, so figures with different
    labels do not share clip paths.
    """
    inks = ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
    style = dict.fromkeys((*inks, "grid.color"), _INK) | {"svg.hashsalt": label}
    with rc_context(_COMMON | style):
        text = io.StringIO()
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        draw().savefig(text, format="svg", transparent=True, dpi=160, metadata=no_metadata)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)  # not needed in HTML, and they look like external references
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # identical in every figure, and never referenced
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "inherit", svg).replace(_INK, "currentColor")
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)


def png(draw: Callable[[], Figure]) -> bytes:
    """Render the figure that ``draw`` returns as a PNG with a white background."""
    with rc_context(_COMMON):
        content = io.BytesIO()
        draw().savefig(content, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return content.getvalue()
