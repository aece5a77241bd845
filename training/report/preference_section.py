"""The part of the report on preference stages: implicit rewards over the steps, and the results on held-out pairs."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, PercentFormatter

from artefacts.metrics_log import Metrics
from artefacts.pages import markup
from artefacts.pages.figures import COLORS, inline_svg
from artefacts.pages.formats import decimal
from training.report.series import column, smooth, thin

MARGIN, ACCURACY = "rewards/margin", "rewards/accuracy"
_REWARDS = {"rewards/chosen": "chosen answers", "rewards/rejected": "rejected answers", MARGIN: "margin"}


def has_preferences(metrics: Metrics) -> bool:
    """Return whether metrics are those of a preference stage."""
    return any(MARGIN in record for kind in ("train", "validation") for record in metrics.get(kind, [])[-1:])


def preference_table(facts: dict[str, Any]) -> str:
    """Return a table with the results on held-out pairs, or nothing if the stage has not been evaluated."""
    if not facts:
        return ""
    row = [f"{facts['accuracy']:.1%}", *(decimal(facts[key]) for key in ("margin", "chosen", "rejected", "loss"))]
    head = ["chosen preferred", "reward margin", "reward of the chosen", "reward of the rejected", "loss per pair"]
    return markup.table(head, [row], "Held-out pairs, compared with the stage's start weights")


def preference_figures(metrics: Metrics, stage: str) -> list[str]:
    """Return the figure with the implicit rewards of a preference stage. Other stages have none."""
    if not has_preferences(metrics):
        return []
    draw = partial(rewards_figure, metrics)
    caption = (
        "An answer's implicit reward is beta times its log-probability relative to the start weights. Lines: training "
        "(moving average). Points: held-out pairs."
    )
    return [markup.figure(inline_svg(draw, f"rewards of {stage}"), caption)]


def rewards_figure(metrics: Metrics) -> Figure:
    """Plot the implicit rewards and their margin, and the share of pairs with a margin above 0."""
    figure = Figure(figsize=(9.0, 3.2), layout=ConstrainedLayoutEngine(h_pad=0.12))
    rewards, accuracy = figure.subplots(1, 2)
    train, held_out = metrics.get("train", []), metrics.get("validation", [])
    for color, (name, label) in zip(COLORS, _REWARDS.items(), strict=False):
        _plot(rewards, train, held_out, name, color, label)
    _plot(accuracy, train, held_out, ACCURACY, COLORS[3], None)
    rewards.set(xlabel="step", title="Implicit reward")
    rewards.legend(loc="best")
    accuracy.set(xlabel="step", title="Pairs with a margin above 0", ylim=(-0.02, 1.02))
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0))
    for axes in (rewards, accuracy):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.margins(x=0.01)
    return figure


def _plot(
    axes: Axes,
    train: Sequence[dict[str, Any]],
    held_out: Sequence[dict[str, Any]],
    name: str,
    color: str,
    label: str | None,
) -> None:
    steps, values = column(train, name)
    axes.plot(*thin(steps, smooth(values)), color=color, label=label)
    axes.plot(*column(held_out, name), "o", color=color, markersize=4)
