"""Heat maps of attention weights, with queries as rows and keys as columns."""

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from numpy.typing import NDArray

from training.evaluate.attention.collect import AttentionMap

#: Largest number of positions for which the values in the cells are legible.
VALUES_UP_TO = 16
_COLORMAP = "Blues"


def head_figure(attention: AttentionMap, head: int, queries: Sequence[str], keys: Sequence[str]) -> Figure:
    """Draw one head's weights [T, L], with tokens on both axes and, in small maps, the values."""
    weights_TL = attention.weights_NTL[head]
    values = max(weights_TL.shape) <= VALUES_UP_TO
    cell = 0.42 if values else 0.2
    size = (1.9 + cell * len(keys), 1.4 + cell * len(queries))
    figure = Figure(figsize=(max(size[0], 3.6), max(size[1], 2.6)))
    axes = figure.subplots()
    image = _draw(axes, weights_TL)
    small = 8 if len(queries) <= 64 else 6
    axes.set_xticks(range(len(keys)), _drawable(keys), rotation=90, fontsize=small, parse_math=False)
    axes.set_yticks(range(len(queries)), _drawable(queries), fontsize=small, parse_math=False)
    axes.set(xlabel="attended to", ylabel="token", title=f"Layer {attention.name}, head {head}")
    if values:
        for (row, column), weight in np.ndenumerate(weights_TL):
            if not weight:
                continue  # masked
            color = "white" if weight > 0.6 else "black"
            axes.text(column, row, f"{weight:.2f}", ha="center", va="center", fontsize=6.5, color=color)
    figure.colorbar(image, ax=axes, fraction=0.05)
    return figure


def layer_figure(attention: AttentionMap) -> Figure:
    """Draw all heads of a layer, each in a small panel."""
    columns = math.ceil(math.sqrt(attention.heads))
    rows = -(-attention.heads // columns)
    figure = Figure(figsize=(1.0 + 1.9 * columns, 0.7 + 2.0 * rows))
    grid = figure.subplots(rows, columns, squeeze=False)
    for head, axes in enumerate(grid.flat):
        if head >= attention.heads:
            axes.set_axis_off()
            continue
        image = _draw(axes, attention.weights_NTL[head])
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title(f"head {head}", fontsize=8)
    figure.suptitle(f"Layer {attention.name}: queries from top to bottom, keys from left to right", fontsize=9)
    figure.colorbar(image, ax=grid, fraction=0.04)
    return figure


def _draw(axes: Axes, weights_TL: NDArray[np.float32]) -> Any:
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return axes.imshow(weights_TL, cmap=_COLORMAP, vmin=0.0, vmax=1.0, aspect="auto", interpolation="nearest")


def _drawable(labels: Sequence[str]) -> list[str]:
    """Replace characters that the font does not have with their code points."""
    return ["".join(c if _in_font(c) else f"U+{ord(c):04X}" for c in label) for label in labels]


@cache
def _in_font(character: str) -> bool:
    return bool(get_font(findfont("DejaVu Sans")).get_char_index(ord(character)))
