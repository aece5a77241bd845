"""Outputs of a comparison: JSON and figures in ``runs/NAME/compare``, and a table on the terminal."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from artefacts import atomic
from artefacts.pages.figures import COLORS, png
from artefacts.tables import aligned
from configs.run_layout import RunLayout
from configs.schema import Recipe
from training.compare.trial import Trial

#: Line styles to cycle through, because neighboring curves may coincide.
_STYLES = ("-", "-", "--", "-.")


def write_results(
    recipe: Recipe,
    name: str,
    rows: Sequence[Sequence[str]],
    results: dict[str, Any],
    draw: Callable[[], Figure] | None = None,
) -> None:
    """Write the results and the figure, if any, and print the table (header first) and the paths."""
    folder = RunLayout.of(recipe).comparisons
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = [folder / f"{name}.json"]
    atomic.write_json(written[0], results)
    if draw is not None:
        written.append(folder / f"{name}.png")
        atomic.write_bytes(written[1], png(draw))
    print("\n".join(aligned(rows)))
    print(" ".join(map(str, written)))


def as_json(trial: Trial) -> dict[str, Any]:
    """Return a trial's results as JSON-serializable values."""
    return {
        "losses": trial.losses,
        "final_loss": trial.final,
        "step_seconds": trial.step_seconds,
        "first_step_seconds": trial.seconds[0],
    }


def losses(title: str, trials: dict[str, Trial]) -> Callable[[], Figure]:
    """Return a function that plots the trials' losses over their steps."""
    return partial(_losses, title, trials)


def _losses(title: str, trials: dict[str, Trial]) -> Figure:
    figure = Figure(figsize=(8.0, 4.2))
    axes = figure.subplots()
    for (name, trial), color, style in zip(trials.items(), COLORS, _STYLES, strict=False):
        steps, label = range(1, len(trial.losses) + 1), f"{name}, last {trial.final:.3f}"
        axes.plot(steps, trial.losses, style, color=color, label=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="step", ylabel="loss (nats per token)", title=title)
    axes.legend(loc="upper right")
    return figure
