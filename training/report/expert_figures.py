"""Figures that show how evenly experts are used: heat maps of load over steps, max/mean load, and router biases."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from artefacts.pages.figures import COLORS
from training.report.series import MAX_POINTS, Array, bin_columns, expert_layers, expert_rows, smooth, thin

#: Maximum number of columns in a heat map. A panel cannot show more.
_COLUMNS = 300
#: Range of the color scale: from a third of the mean to three times the mean.
_LOWEST, _HIGHEST = 1 / 3, 3.0
_PANELS_PER_ROW = 3
#: Maximum total number of points in all curves of a plot, so that a large model's page stays small.
_ALL_POINTS = 12_000


def layer_label(layer: str) -> str:
    """Return a readable name for a layer such as ``model.layers.3``."""
    return layer.replace("model.layers.", "layer ")


def load_figure(records: Sequence[dict[str, Any]]) -> Figure:
    """Draw one heat map per layer: x is the step, y the expert, and color the expert's load divided by the mean."""
    layers = expert_layers(records)
    figure, panels = _panels(len(layers), height=2.3)
    maps = []
    for axes, layer in zip(panels, layers, strict=True):
        maps.append(_draw_map(axes, *expert_rows(records, layer, "load")))
        axes.set_title(layer_label(layer))
    aspect = 18 if len(layers) <= _PANELS_PER_ROW else 40
    bar = figure.colorbar(maps[0], ax=panels, extend="both", aspect=aspect, pad=0.01)
    bar.set_ticks([1 / 3, 1 / 2, 1, 2, 3], labels=["⅓", "½", "1", "2", "3"])
    bar.ax.minorticks_off()
    bar.set_label("load / mean")
    _name_axes(panels, "expert")
    return figure


def _draw_map(axes: Axes, steps: Array, loads: Array) -> AxesImage:
    """Draw one layer's ``loads`` [S, E], averaged over steps to fit the number of columns."""
    columns = bin_columns(steps, loads, min(_COLUMNS, len(steps)))
    image = axes.imshow(
        np.clip(columns.T, _LOWEST, _HIGHEST),
        aspect="auto",
        interpolation="nearest",
        origin="lower",
        cmap="RdBu_r",
        norm=LogNorm(_LOWEST, _HIGHEST),
        extent=(steps[0] - 0.5, steps[-1] + 0.5, -0.5, loads.shape[1] - 0.5),
    )
    axes.grid(False)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    return image


def balance_figure(records: Sequence[dict[str, Any]]) -> Figure:
    """Plot the busiest expert's load divided by the mean, one line per layer; 1 means perfectly balanced."""
    layers = expert_layers(records)
    figure = Figure(figsize=(9.0, 2.8))
    axes = figure.subplots()
    points = min(MAX_POINTS, max(50, _ALL_POINTS // len(layers)))
    for layer, color in zip(layers, _colors(len(layers)), strict=True):
        steps, peaks = expert_rows(records, layer, "max_over_mean")
        curve = thin(steps, smooth(peaks[:, 0]), points)
        axes.plot(*curve, color=color, linewidth=1.1, label=layer_label(layer))
    axes.set(xlabel="step", title="Maximum / mean expert load, moving average")
    axes.set_ylim(bottom=1)
    axes.margins(x=0.01)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="upper right", ncols=min(6, -(-len(layers) // 2)) if len(layers) > 3 else 3)
    return figure


def bias_figure(records: Sequence[dict[str, Any]]) -> Figure:
    """Plot every expert's router bias, one panel per layer. Lines are rasterized, because there may be many."""
    layers = expert_layers(records)
    figure, panels = _panels(len(layers), height=2.1)
    for axes, layer in zip(panels, layers, strict=True):
        steps, biases = expert_rows(records, layer, "bias")
        chosen = np.unique(np.linspace(0, len(steps) - 1, _COLUMNS).astype(int))
        for expert, color in enumerate(_colors(biases.shape[1])):
            axes.plot(steps[chosen], biases[chosen, expert], color=color, linewidth=0.9, rasterized=True)
        axes.set_title(layer_label(layer))
        axes.margins(x=0.01)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    _name_axes(panels, "router bias")
    return figure


def _panels(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """Create a figure with ``count`` panels, three per row."""
    rows = -(-count // _PANELS_PER_ROW)
    figure = Figure(figsize=(9.0, height * rows + 0.3))
    grid = figure.subplots(rows, min(count, _PANELS_PER_ROW), squeeze=False, sharey=True)
    for spare in grid.flat[count:]:
        spare.remove()
    return figure, list(grid.flat[:count])


def _name_axes(panels: Sequence[Axes], name: str) -> None:
    """Label the y axes in the left column, and the x axes of panels with no panel below them."""
    for index, axes in enumerate(panels):
        if index % _PANELS_PER_ROW == 0:
            axes.set_ylabel(name)
        if index + _PANELS_PER_ROW >= len(panels):
            axes.set_xlabel("step")


def _colors(count: int) -> list[Any]:
    """Return distinct colors for a few lines, or colors from a continuous colormap for many."""
    if count <= len(COLORS):
        return list(COLORS[:count])
    positions: Array = np.linspace(0.1, 0.9, count)
    return [colormaps["turbo"](position) for position in positions]
