"""Plots of a run's metrics over its steps: loss, learning rate, gradient norm, throughput and memory."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import EngFormatter, MaxNLocator

from artefacts.metrics_log import Metrics
from artefacts.pages.figures import COLORS
from training.report.series import Array, column, smooth, thin


@dataclass(frozen=True)
class LossScale:
    """The unit of a loss plot.

    Attributes:
        label: the unit's name.
        train: factor that converts a training loss from nats.
        validation: factor that converts a validation loss from nats.
    """

    label: str = "nats per token"
    train: float = 1.0
    validation: float = 1.0

    @classmethod
    def bits_per_byte(cls, train_bytes_per_token: float, validation_bytes_per_token: float) -> "LossScale":
        return cls(
            "bits per byte",
            1 / (math.log(2) * train_bytes_per_token),
            1 / (math.log(2) * validation_bytes_per_token),
        )


NATS = LossScale()
#: The loss of preferences.
PER_PAIR = LossScale("per pair of answers")


def loss_figure(
    metrics: Metrics,
    scale: LossScale = NATS,
    baselines: Mapping[str, float] | None = None,
    size: tuple[float, float] = (9.0, 3.8),
) -> Figure:
    """Plot the training loss, raw and smoothed, validation losses as points, and baselines as horizontal lines.

    Metrics are in nats; ``baselines`` are already in the scale's unit.
    """
    figure = Figure(figsize=size)
    axes = figure.subplots()
    steps, losses = column(metrics.get("train", []), "loss")
    losses = losses * scale.train
    averages = smooth(losses)
    axes.plot(*thin(steps, losses), color=COLORS[0], alpha=0.3, linewidth=0.8)
    axes.plot(*thin(steps, averages), color=COLORS[0], label="training, moving average")
    where, held_out = column(metrics.get("validation", []), "loss")
    held_out = held_out * scale.validation
    if len(where):
        label = f"validation, last {held_out[-1]:.3f}"
        axes.plot(where, held_out, "o-", color=COLORS[1], markersize=4, linewidth=1, label=label)
    where, earlier = column(metrics.get("validation", []), "pretraining_loss")
    earlier = earlier * scale.validation
    if len(where):
        label = f"pretraining's validation text, {earlier[0]:.3f} to {earlier[-1]:.3f}"
        axes.plot(where, earlier, "s--", color=COLORS[2], markersize=4, linewidth=1, label=label)
    _limit_loss(axes, losses, np.concatenate([averages, held_out, earlier, list((baselines or {}).values())]))
    _draw_baselines(axes, baselines or {})
    axes.set(xlabel="step", ylabel=f"loss ({scale.label})", title=f"Loss, {scale.label}")
    _integer_steps(axes)
    axes.legend(loc="upper right")
    return figure


def _draw_baselines(axes: Axes, baselines: Mapping[str, float]) -> None:
    """Draw horizontal lines with labels at the right end. Labels that would overlap are moved apart."""
    low, high = axes.get_ylim()
    above = math.inf
    for index, (name, value) in enumerate(sorted(baselines.items(), key=lambda entry: -entry[1])):
        color = COLORS[2 + index % (len(COLORS) - 2)]
        axes.axhline(value, color=color, linestyle="--", linewidth=1.2)
        above = min(value, above - 0.06 * (high - low))
        axes.annotate(
            f"{name}: {value:.2f}",
            (1.0, above),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color=color,
        )


def _limit_loss(axes: Axes, raw: Array, shown: Array) -> None:
    """Set y-axis limits that include all of ``shown``, and all of the raw loss except isolated spikes."""
    raw, shown = raw[np.isfinite(raw)], shown[np.isfinite(shown)]
    if not len(shown):
        return
    ends = np.quantile(raw, (0.001, 0.999)) if len(raw) else shown
    low, high = min(ends.min(), shown.min()), max(ends.max(), shown.max())
    margin = 0.06 * (high - low) or 0.1
    axes.set_ylim(low - 1.5 * margin, high + margin)


def training_figure(records: Sequence[dict[str, Any]]) -> Figure:
    """Plot learning rate, gradient norm, throughput and memory from the ``train`` records."""
    figure = Figure(figsize=(9.0, 4.8), layout=ConstrainedLayoutEngine(h_pad=0.12))
    grid = figure.subplots(2, 2, sharex=True)
    steps, rates = column(records, "learning_rate")
    grid[0, 0].plot(*thin(steps, rates), color=COLORS[0])
    grid[0, 0].set_title("Learning rate")
    grid[0, 0].yaxis.set_major_formatter(lambda rate, _: f"{rate:g}")
    steps, norms = column(records, "grad_norm")
    grid[0, 1].plot(*thin(steps, norms), color=COLORS[1], linewidth=1)
    grid[0, 1].set_title("Gradient norm, before clipping")
    _plot_throughput(grid[1, 0], records)
    steps, memory = column(records, "memory_bytes")
    grid[1, 1].plot(*thin(steps, memory), color=COLORS[3])
    grid[1, 1].set_title("Peak memory of rank 0")
    grid[1, 1].yaxis.set_major_formatter(EngFormatter(unit="B"))
    for axes in grid.flat:
        _integer_steps(axes)
        axes.set_ylim(bottom=0)
    for axes in grid[1]:
        axes.set_xlabel("step")
    return figure


def other_losses(records: Sequence[dict[str, Any]]) -> list[str]:
    """Return the names of the auxiliary losses: multi-token prediction by depth, then balancing losses."""
    known = records[-1] if records else {}
    depths = sorted(name for name in known if name.startswith("mtp_"))
    return depths + [name for name in ("sequence_balance", "load_balance", "router_z") if name in known]


def other_losses_figure(records: Sequence[dict[str, Any]]) -> Figure:
    """Plot each of the :func:`other_losses`, unweighted, in its own panel."""
    names = other_losses(records)
    figure = Figure(figsize=(9.0, 2.4 * -(-len(names) // 2)), layout=ConstrainedLayoutEngine(h_pad=0.12))
    grid = figure.subplots(-(-len(names) // 2), 2, sharex=True, squeeze=False)
    for axes, name in zip(grid.flat, names, strict=False):
        steps, values = column(records, name)
        axes.plot(*thin(steps, values), color=COLORS[0], alpha=0.35, linewidth=0.8)
        axes.plot(*thin(steps, smooth(values)), color=COLORS[0])
        axes.set_title(_titled(name))
        axes.set_xlabel("step")
        _integer_steps(axes)
    for axes in list(grid.flat)[len(names) :]:
        axes.set_axis_off()
    return figure


def _titled(name: str) -> str:
    titles = {
        "sequence_balance": "Sequence-wise balance loss, all layers",
        "load_balance": "Load-balance loss, all layers",
        "router_z": "Router z-loss, all layers",
    }
    return titles.get(name, f"Multi-token prediction, depth {name.removeprefix('mtp_')}, nats")


def _plot_throughput(axes: Axes, records: Sequence[dict[str, Any]]) -> None:
    """Plot tokens per second. The y-axis on the right shows the corresponding model FLOP/s."""
    steps, speeds = column(records, "tokens_per_second")
    axes.plot(*thin(steps, speeds), color=COLORS[2], alpha=0.35, linewidth=0.8)
    axes.plot(*thin(steps, smooth(speeds)), color=COLORS[2])
    axes.yaxis.set_major_formatter(EngFormatter())
    axes.set_title("Tokens per second (right: model FLOP/s)")
    _, flops = column(records, "model_flops_per_second")
    if len(flops) == len(speeds) and np.nansum(speeds) > 0 and np.nansum(flops) > 0:
        ratio = float(np.nansum(flops) / np.nansum(speeds))
        right = axes.secondary_yaxis("right", functions=(_times(ratio), _times(1 / ratio)))
        right.yaxis.set_major_formatter(EngFormatter(unit="FLOP/s"))


def _times(factor: float) -> Callable[[Any], Any]:
    return lambda values: values * factor


def _integer_steps(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.01)
