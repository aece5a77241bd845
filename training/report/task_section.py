"""Report section with the results on held-out examples, for models that predict tags, text pairs or classes."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from artefacts.pages import markup
from artefacts.pages.figures import inline_svg
from artefacts.pages.formats import decimal, integer, share
from training.report.run_files import RunFiles

#: Maximum number of classes for which the cells of the confusion matrix show counts.
_NUMBERED = 20


def task_section(run: RunFiles) -> str:
    """Return the section with the scores, the per-class scores (for classification), and outputs for some examples."""
    facts = run.evaluation.get("task") or {}
    if not facts:
        return ""
    rows = [[name, value] for name, value in scores(facts)]
    return markup.section(
        "task",
        "On held-out examples",
        markup.table(["", ""], rows),
        *(_classes(facts) if facts["kind"] == "sequence_classification" else []),
        markup.table(["source", "target", "output"], _samples(facts), "First examples"),
    )


def scores(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each score's name and value as strings."""
    count = facts["examples"]
    yield "examples", integer(count)
    yield "loss (nats per target)", decimal(facts["loss"])
    if facts["kind"] == "sequence_classification":
        yield "accuracy", share(facts["accuracy"], 1)
        yield "always the most frequent class", share(facts["majority"], 1)
        yield "macro F1", decimal(facts["macro_f1"])
        return
    yield "tokens correct", share(facts["token_accuracy"], 1)
    yield "complete sequences correct", share(facts["exact"], 1)


def confusion_figure(names: list[str], counts: list[list[int]]) -> Figure:
    """Draw a heat map with one row per true class and one column per predicted class."""
    size = 2.2 + 0.42 * len(names)
    figure = Figure(figsize=(size + 0.6, size))
    axes = figure.subplots()
    shares = [[cell / max(1, sum(row)) for cell in row] for row in counts]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="true", title="Confusion")
    axes.grid(visible=False)
    for row, line in enumerate(counts) if len(names) <= _NUMBERED else ():
        for column, cell in enumerate(line):
            dark = shares[row][column] > 0.5
            axes.text(column, row, str(cell), ha="center", va="center", color="white" if dark else "#1f2933")
    return figure


def _classes(facts: dict[str, Any]) -> list[str]:
    names = [row["name"] for row in facts["classes"]]
    rows = [
        [row["name"], integer(row["examples"]), *(decimal(row[key]) for key in ("precision", "recall", "f1"))]
        for row in facts["classes"]
    ]
    draw = partial(confusion_figure, names, facts["confusion"])
    return [
        markup.table(["class", "examples", "precision", "recall", "F1"], rows, "By class"),
        markup.figure(inline_svg(draw, "confusion of classes")),
    ]


def _samples(facts: dict[str, Any]) -> list[list[str]]:
    return [[sample[key] for key in ("source", "target", "output")] for sample in facts.get("samples", [])]
