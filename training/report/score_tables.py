"""Tables of evaluations as lines of text: one run's results, or several runs next to each other."""

from collections.abc import Mapping, Sequence
from typing import Any

#: The contents of an ``evaluation.json``.
Results = Mapping[str, Any]


def by_stage(results: Results) -> dict[str, Any]:
    """Return the results of every stage, in the order of training."""
    stages = {"pretrain": results["pretrain"], **results["finetune"]}
    return {name: stages[name] for name in results["stages"]}


def results_lines(results: Results) -> list[str]:
    """Return the results of a run."""
    stages = by_stage(results)
    pretrain = stages["pretrain"]
    width = max(len(name) for name in [*stages, *results["baselines"]])
    lines = [f"validation   {pretrain['tokens']:,} tokens, {pretrain['bytes']:,} bytes"]
    for name, facts in stages.items():
        change = facts["loss"] / pretrain["loss"] - 1 if name != "pretrain" else None
        lines.append(f"  {name:<{width}} {_loss(facts, change)}")
    lines += [
        f"  {name:<{width}} {row['bits_per_byte']:.3f} bits per byte" for name, row in results["baselines"].items()
    ]
    for text in pretrain.get("texts", {}):
        facts = pretrain["texts"][text]
        lines.append(f"text {text:<8}{facts['tokens']:,} tokens, {facts['bytes']:,} bytes")
        lines += [f"  {name:<{width}} {_loss(stages[name]['texts'][text])}" for name in stages]
    for name, facts in stages.items():
        if "held_out_loss_after" in facts:
            before, after = facts["held_out_loss_before"], facts["held_out_loss_after"]
            kind = "pairs   " if "preferences" in facts else "answers "
            of = "loss of the chosen answers" if "preferences" in facts else "loss"
            lines.append(
                f"{kind}     {facts['examples']} held out, {name}: {of} {before:.3f} -> {after:.3f} "
                f"({after / before - 1:+.0%})"
            )
        if pairs := facts.get("preferences"):
            lines.append(f"  preferred  {pairs['accuracy']:.1%} of the pairs, reward margin {pairs['margin']:.3f}")
    if results["experts"]:
        worst = max(facts["max_over_mean"] for facts in results["experts"].values())
        lines.append(f"experts      max/mean expert load {worst:.2f} on the validation text")
    tasks = {name: facts["tasks"] for name, facts in stages.items() if "tasks" in facts}
    return [*lines, *(["", *aligned(task_rows(tasks))] if tasks else [])]


def runs_lines(runs: Mapping[str, Results]) -> list[str]:
    """Return the results of several runs next to each other: a column for each stage of each run."""
    columns = {f"{run} {stage}": facts for run, results in runs.items() for stage, facts in by_stage(results).items()}
    rows = [["", *columns]]
    rows.append(["checkpoint", *(str(facts["checkpoint"]) for facts in columns.values())])
    for key, label in (("bits_per_byte", "bits per byte"), ("loss", "loss"), ("perplexity", "perplexity")):
        rows.append([f"validation {label}", *(_number(facts.get(key)) for facts in columns.values())])
    for text in dict.fromkeys(text for facts in columns.values() for text in facts.get("texts", {})):
        scores = [facts.get("texts", {}).get(text, {}).get("bits_per_byte") for facts in columns.values()]
        rows.append([f"text {text} bits per byte", *map(_number, scores)])
    # Examples and pairs are held out separately, so their losses are not comparable.
    learns_pairs = {name: "preferences" in facts for name, facts in columns.items()}
    for label, pairs in (("held-out answers loss", False), ("held-out chosen answers loss", True)):
        losses = [
            facts.get("held_out_loss_after") if learns_pairs[name] is pairs else None for name, facts in columns.items()
        ]
        if any(loss is not None for loss in losses):
            rows.append([label, *map(_number, losses)])
    if any(learns_pairs.values()):
        accuracies = [facts.get("preferences", {}).get("accuracy") for facts in columns.values()]
        rows.append(["held-out pairs preferred", *map(_number, accuracies)])
    tasks = {name: facts.get("tasks", {}) for name, facts in columns.items()}
    return aligned([*rows, *task_rows(tasks)[1:]])


def checkpoint_rows(stages: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[list[str]]:
    """Return a header and a row for each checkpoint of each stage."""
    checkpoints = [(stage, facts) for stage, rows in stages.items() for facts in rows]
    texts = dict.fromkeys(text for _, facts in checkpoints for text in facts["texts"])
    metrics = dict.fromkeys(
        (task, metric)
        for _, facts in checkpoints
        for task, scores in facts.get("tasks", {}).items()
        for metric in scores["metrics"]
    )
    header = ["stage", "step", "bits per byte", "loss", *(f"text {text}" for text in texts)]
    rows = [[*header, *(f"{task} {metric}" for task, metric in metrics)]]
    for stage, facts in checkpoints:
        cells = [stage, f"{facts['step']:,}", _number(facts["bits_per_byte"]), _number(facts["loss"])]
        cells += [_number(facts["texts"].get(text, {}).get("bits_per_byte")) for text in texts]
        for task, metric in metrics:
            score = facts.get("tasks", {}).get(task, {}).get("metrics", {}).get(metric)
            cells.append("" if score is None else with_error(score["value"], score["stderr"]))
        rows.append(cells)
    return rows


def task_rows(columns: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Return a header and a row for each metric of each task. Each column holds the scores of one model."""
    rows = [["task", *columns]]
    names = dict.fromkeys(
        (task, metric) for tasks in columns.values() for task in tasks for metric in tasks[task]["metrics"]
    )
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
        "  ".join(
            cell.ljust(width) if not column else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _loss(facts: Mapping[str, Any], change: float | None = None) -> str:
    """Return the loss on a text. ``change`` is how much it differs from the pretrained model's, as a fraction."""
    changed = "" if change is None else f" ({change:+.1%})"
    return (
        f"{facts['bits_per_byte']:.3f} bits per byte, loss {facts['loss']:.3f} nats per token{changed}, "
        f"perplexity {_number(facts['perplexity'])}"
    )


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.4g}"
