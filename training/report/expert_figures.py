"""How evenly the experts are used: load over the steps as heat maps, the worst expert, and the routers' biases."""

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

#: Columns of a heat map: the most that a panel of it can show.
_COLUMNS = 300
#: A third and three times the mean end the colours; black-or-white contrast beyond tells no more.
_LOWEST, _HIGHEST = 1 / 3, 3.0
_PANELS_A_ROW = 3
#: Points of all curves in one plot, shared between them: the layers of a large model stay a light page.
_ALL_POINTS = 12_000


def layer_label(layer: str) -> str:
    """``model.layers.3`` as a reader says it."""
    return layer.replace("model.layers.", "layer ")


def load_figure(records: Sequence[dict[str, Any]]) -> Figure:
    """A heat map for each layer: x step, y expert, colour the expert's load over the mean (1 is even)."""
    layers = expert_layers(records)
    figure, panels = _panels(len(layers), height=2.3)
    maps = []
    for axes, layer in zip(panels, layers, strict=True):
        maps.append(_draw_map(axes, *expert_rows(records, layer, "load")))
        axes.set_title(layer_label(layer))
    aspect = 18 if len(layers) <= _PANELS_A_ROW else 40
    bar = figure.colorbar(maps[0], ax=panels, extend="both", aspect=aspect, pad=0.01)
    bar.set_ticks([1 / 3, 1 / 2, 1, 2, 3], labels=["⅓", "½", "1", "2", "3"])
    bar.ax.minorticks_off()
    bar.set_label("load over the mean")
    _name_axes(panels, "expert")
    return figure


def _draw_map(axes: Axes, steps: Array, loads: Array) -> AxesImage:
    """One layer's ``loads`` [S, E], binned to what a panel can show."""
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
    """Load of the busiest expert over the mean, a line a layer; 1 is even."""
    layers = expert_layers(records)
    figure = Figure(figsize=(9.0, 2.8))
    axes = figure.subplots()
    points = min(MAX_POINTS, max(50, _ALL_POINTS // len(layers)))
    for layer, colour in zip(layers, _colours(len(layers)), strict=True):
        steps, peaks = expert_rows(records, layer, "max_over_mean")
        curve = thin(steps, smooth(peaks[:, 0]), points)
        axes.plot(*curve, color=colour, linewidth=1.1, label=layer_label(layer))
    axes.set(xlabel="step", title="Load of the busiest expert over the mean, moving average")
    axes.set_ylim(bottom=1)
    axes.margins(x=0.01)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="upper right", ncols=min(6, -(-len(layers) // 2)) if len(layers) > 3 else 3)
    return figure


def bias_figure(records: Sequence[dict[str, Any]]) -> Figure:
    """The bias of each expert in each layer's router, a line an expert; drawn as pixels, whatever their number."""
    layers = expert_layers(records)
    figure, panels = _panels(len(layers), height=2.1)
    for axes, layer in zip(panels, layers, strict=True):
        steps, biases = expert_rows(records, layer, "bias")
        chosen = np.unique(np.linspace(0, len(steps) - 1, _COLUMNS).astype(int))
        for expert, colour in enumerate(_colours(biases.shape[1])):
            axes.plot(steps[chosen], biases[chosen, expert], color=colour, linewidth=0.9, rasterized=True)
        axes.set_title(layer_label(layer))
        axes.margins(x=0.01)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    _name_axes(panels, "router bias")
    return figure


def _panels(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of panels, three a row; unused ones are taken out."""
    rows = -(-count // _PANELS_A_ROW)
    figure = Figure(figsize=(9.0, height * rows + 0.3))
    grid = figure.subplots(rows, min(count, _PANELS_A_ROW), squeeze=False, sharey=True)
    for spare in grid.flat[count:]:
        spare.remove()
    return figure, list(grid.flat[:count])


def _name_axes(panels: Sequence[Axes], name: str) -> None:
    """Label the left column's y axes and the x axes that have no panel below."""
    for index, axes in enumerate(panels):
        if index % _PANELS_A_ROW == 0:
            axes.set_ylabel(name)
        if index + _PANELS_A_ROW >= len(panels):
            axes.set_xlabel("step")


def _colours(count: int) -> list[Any]:
    """Distinct colours for a few lines, a scale for many."""
    if count <= len(COLORS):
        return list(COLORS[:count])
    positions: Array = np.linspace(0.1, 0.9, count)
    return [colormaps["turbo"](position) for position in positions]
