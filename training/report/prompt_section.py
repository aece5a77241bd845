"""The report's section on ``train.samples``: each prompt's completions in the course of training."""

from typing import Any

from artefacts.pages import markup
from artefacts.pages.formats import integer
from training.report.run_files import RunFiles

#: Number of steps shown from the start and from the end of training.
_FIRST, _LAST = 3, 5


def prompt_section(run: RunFiles) -> str:
    """Return a table for each stage and prompt: the completion at each step or, if there are many, at some steps."""
    tables = [
        _table(prompt, completions, "pretraining" if stage == "pretrain" else f"fine-tuning {stage}")
        for stage, records in run.training_samples.items()
        for prompt, completions in by_prompt(records).items()
    ]
    return markup.section("training-samples", "Samples through training", *tables)


def by_prompt(records: list[dict[str, Any]]) -> dict[str, dict[int, str]]:
    """Return prompt -> step -> completion. If a resumed run repeated a step, its last completion counts."""
    completions: dict[str, dict[int, str]] = {}
    for record in records:
        completions.setdefault(record["prompt"], {})[record["step"]] = record["completion"]
    return completions


def _table(prompt: str, completions: dict[int, str], stage: str) -> str:
    steps = sorted(completions)
    rows = [[integer(step), completions[step]] for step in steps]
    if len(rows) > _FIRST + _LAST:
        left_out = f"… {len(rows) - _FIRST - _LAST} more"
        rows = [*rows[:_FIRST], ["", left_out], *rows[-_LAST:]]
    return markup.table(["step", "completion"], rows, f"{prompt} ({stage})", texts=True)
