"""A bar chart of bits per byte for the models and for baselines that need no training."""

from collections.abc import Mapping

from matplotlib.figure import Figure

from artefacts.pages.figures import COLORS


def bits_per_byte_figure(models: Mapping[str, float], baselines: Mapping[str, float]) -> Figure:
    """Draw horizontal bars, with the best result at the top. Models and baselines have different colors."""
    bars = sorted([*models.items(), *baselines.items()], key=lambda entry: -entry[1])
    figure = Figure(figsize=(9.0, 0.9 + 0.36 * len(bars)))
    axes = figure.subplots()
    drawn = axes.barh(
        [name for name, _ in bars],
        [value for _, value in bars],
        color=[COLORS[0] if name in models else "#8f979f" for name, _ in bars],
        height=0.62,
    )
    axes.bar_label(drawn, fmt="%.3f", padding=4)
    axes.margins(x=0.1)
    axes.grid(axis="y", visible=False)
    axes.set_title("Bits per byte on the validation documents (lower is better)")
    return figure
