"""Tables of evaluations as lines of text: one run's results, or several runs next to each other."""

from collections.abc import Mapping, Sequence
from typing import Any

#: The contents of an ``evaluation.json``.
Results = Mapping[str, Any]
#: Names of stages in tables.
_STAGES = {"pretrain": "pretrained", "finetune": "fine-tuned"}


def results_lines(results: Results) -> list[str]:
    """Return the results of a run."""
    stages: dict[str, Any] = results["stages"]
    pretrain = stages["pretrain"]
    width = max(len(stage_name(name)) for name in [*stages, *results["baselines"]])
    lines = [f"validation   {pretrain['tokens']:,} tokens, {pretrain['bytes']:,} bytes"]
    lines += [f"  {stage_name(name):<{width}} {_loss(facts)}" for name, facts in stages.items()]
    lines += [f"  {name:<{width}} {row['bits_per_byte']:.3f} bits per byte" for name, row in results["baselines"].items()]
    for text in pretrain.get("texts", {}):
        facts = pretrain["texts"][text]
        lines.append(f"text {text:<8}{facts['tokens']:,} tokens, {facts['bytes']:,} bytes")
        lines += [f"  {stage_name(name):<{width}} {_loss(stages[name]['texts'][text])}" for name in stages]
    for name, facts in stages.items():
        if "held_out_loss_after" in facts:
            before, after = facts["held_out_loss_before"], facts["held_out_loss_after"]
            lines.append(
                f"answers      {facts['examples']} held out, {stage_name(name)}: loss {before:.3f} -> {after:.3f} "
                f"({after / before - 1:+.0%})"
            )
    if results["experts"]:
        worst = max(facts["max_over_mean"] for facts in results["experts"].values())
        lines.append(f"experts      max/mean expert load {worst:.2f} on the validation text")
    tasks = {stage_name(name): facts["tasks"] for name, facts in stages.items() if "tasks" in facts}
    return [*lines, *(["", *aligned(task_rows(tasks))] if tasks else [])]


def runs_lines(runs: Mapping[str, Results]) -> list[str]:
    """Return the results of several runs next to each other: a column for each stage of each run."""
    columns = {
        f"{run} {stage_name(stage)}": facts for run, results in runs.items() for stage, facts in results["stages"].items()
    }
    rows = [["", *columns]]
    rows.append(["checkpoint", *(str(facts["checkpoint"]) for facts in columns.values())])
    for key, label in (("bits_per_byte", "bits per byte"), ("loss", "loss"), ("perplexity", "perplexity")):
        rows.append([f"validation {label}", *(_number(facts.get(key)) for facts in columns.values())])
    for text in dict.fromkeys(text for facts in columns.values() for text in facts.get("texts", {})):
        scores = [facts.get("texts", {}).get(text, {}).get("bits_per_byte") for facts in columns.values()]
        rows.append([f"text {text} bits per byte", *map(_number, scores)])
    answers = [facts.get("held_out_loss_after") for facts in columns.values()]
    if any(value is not None for value in answers):
        rows.append(["held-out answers loss", *map(_number, answers)])
    tasks = {name: facts.get("tasks", {}) for name, facts in columns.items()}
    return aligned([*rows, *task_rows(tasks)[1:]])


def task_rows(columns: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Return a header and a row for each metric of each task. Each column holds the scores of one model."""
    rows = [["task", *columns]]
    names = dict.fromkeys((task, metric) for tasks in columns.values() for task in tasks for metric in tasks[task]["metrics"])
    for task, metric in names:
        cells = []
        for tasks in columns.values():
            score = tasks.get(task, {}).get("metrics", {}).get(metric)
            cells.append("" if score is None else with_error(score["value"], score["stderr"]))
        rows.append([f"{task} {metric}", *cells])
    return rows


def with_error(value: float, stderr: float | None) -> str:
    """Return a score with its standard error, if it has one."""
    return _number(value) if stderr is None else f"{_number(value)} ± {_number(stderr)}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of cells as lines, with the first column on the left and the others on the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) if not column else cell.rjust(width) for column, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in rows
    ]


def stage_name(stage: str) -> str:
    """Return a stage's name in tables."""
    return _STAGES.get(stage, stage)


def _loss(facts: Mapping[str, Any]) -> str:
    return (
        f"{facts['bits_per_byte']:.3f} bits per byte, loss {facts['loss']:.3f} nats per token, "
        f"perplexity {_number(facts['perplexity'])}"
    )


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.4g}"
