"""Report section with the evaluation of every kept checkpoint: curves over the steps of each stage, and a table."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from artefacts.pages import markup
from artefacts.pages.figures import COLORS, inline_svg
from training.report.run_files import RunFiles
from training.report.score_tables import checkpoint_rows

Rows = Sequence[dict[str, Any]]


def checkpoint_section(run: RunFiles) -> str:
    """Return the curves and the table, or "" if no checkpoint was evaluated."""
    stages = {stage: rows for stage, rows in run.checkpoint_results.items() if rows}
    if not stages:
        return ""
    head, *rows = checkpoint_rows(stages)
    return markup.section(
        "checkpoints",
        "Checkpoints",
        markup.figure(inline_svg(partial(checkpoint_figure, stages), "bits per byte at every checkpoint")),
        markup.table(head, rows),
    )


def checkpoint_figure(stages: Mapping[str, Rows]) -> Figure:
    """Plot bits per byte of the validation text, and of every other text, in a panel for each stage."""
    figure = Figure(figsize=(9.0, 3.2))
    panels = figure.subplots(1, len(stages), sharey=True, squeeze=False)[0]
    texts = list(dict.fromkeys(text for rows in stages.values() for row in rows for text in row["texts"]))
    for axes, (stage, rows) in zip(panels, stages.items(), strict=True):
        steps = [row["step"] for row in rows]
        axes.plot(
            steps, [row["bits_per_byte"] for row in rows], "o-", color=COLORS[0], markersize=4, label="validation"
        )
        for number, text in enumerate(texts, start=1):
            values = [row["texts"].get(text, {}).get("bits_per_byte", float("nan")) for row in rows]
            axes.plot(steps, values, "o-", color=COLORS[number % len(COLORS)], markersize=4, label=text)
        axes.set(title=stage, xlabel="step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0].set_ylabel("bits per byte")
    if texts:
        panels[-1].legend(loc="upper right")
    return figure
