"""Report sections with the curves of pretraining and fine-tuning, and expert loads."""

import math
from functools import partial
from typing import Any

from artefacts.metrics_log import Metrics
from artefacts.pages import markup
from artefacts.pages.figures import inline_svg
from artefacts.pages.formats import decimal
from training.report.curves import NATS, PER_PAIR, loss_figure, other_losses, other_losses_figure, training_figure
from training.report.expert_figures import balance_figure, bias_figure, layer_label, load_figure
from training.report.preference_section import has_preferences, preference_figures, preference_table
from training.report.run_files import RunFiles
from training.report.series import expert_layers

#: Maximum number of steps listed per kind of event.
_EVENTS = 20


def pretraining_section(run: RunFiles) -> str:
    """Return the section with the curves of pretraining: loss, learning rate, gradient norm, throughput and memory."""
    return markup.section("pretraining", "Pretraining", *_curves(run.pretrain_metrics, "pretraining"))


def finetuning_section(run: RunFiles, stage: str) -> str:
    """Return the section with the curves of a fine-tuning stage, and the held-out loss before and after it."""
    rows = []
    facts = (run.evaluation.get("finetune") or {}).get(stage) or {}
    before, after = facts.get("held_out_loss_before"), facts.get("held_out_loss_after")
    if before is not None and after is not None:
        kind = "chosen answers" if "preferences" in facts else "held-out answers"
        label = f"loss on {facts['examples']:,} {kind}" if "examples" in facts else "loss on held-out answers"
        rows.append([f"{label} (nats per token)", decimal(before), decimal(after), f"{after - before:+.3f}"])
    base, tuned = (run.evaluation.get("pretrain") or {}).get("bits_per_byte"), facts.get("bits_per_byte")
    if base is not None and tuned is not None:
        rows.append(["bits per byte on the validation text", decimal(base), decimal(tuned), f"{tuned - base:+.3f}"])
    table = markup.table(["", "before", "after", "change"], rows, "Before and after fine-tuning")
    title = f"Fine-tuning: {stage}" if len(run.finetune_metrics) > 1 else "Fine-tuning"
    curves = _curves(run.finetune_metrics[stage], f"fine-tuning {stage}")
    preferences = preference_table(facts.get("preferences") or {})
    return markup.section(f"finetuning-{stage}", title, table, preferences, *curves)


def experts_section(run: RunFiles) -> str:
    """Return the section on each layer's expert loads, during pretraining and on the validation text."""
    records = run.pretrain_metrics.get("train", [])
    layers = expert_layers(records)
    parts = []
    if layers:
        parts = [
            markup.figure(
                inline_svg(partial(load_figure, records), "expert load by layer"),
                "Tokens per expert in a step, divided by the mean: white is even, red too many, blue too few.",
            ),
            markup.figure(inline_svg(partial(balance_figure, records), "maximum / mean expert load")),
        ]
    if layers and records[-1]["experts"][layers[0]]["bias"]:
        parts.append(
            markup.figure(
                inline_svg(partial(bias_figure, records), "router bias by layer"),
                "The bias that load balancing adds to an expert's score when experts are chosen, one line per expert.",
            )
        )
    return markup.section("experts", "Experts", *parts, _load_table(records, run.evaluation.get("experts") or {}))


def _curves(metrics: Metrics, stage: str) -> list[str]:
    """Return the figures for one stage's metrics."""
    records = metrics.get("train", [])
    if not metrics:
        return []
    broken = sum(record.get("loss") is None or not math.isfinite(record["loss"]) for record in records)
    scale = PER_PAIR if has_preferences(metrics) else NATS
    return [
        markup.figure(inline_svg(partial(loss_figure, metrics, scale), f"loss of {stage}")),
        *preference_figures(metrics, stage),
        markup.note(f"Logged steps with a non-finite loss, which are not drawn: {broken}.") if broken else "",
        markup.note(_events(metrics)) if metrics.get("event") else "",
        markup.figure(
            inline_svg(
                partial(training_figure, records), f"learning rate, gradient norm, throughput and memory of {stage}"
            )
        )
        if records
        else "",
        markup.figure(inline_svg(partial(other_losses_figure, records), f"other losses of {stage}"))
        if other_losses(records)
        else "",
    ]


def _events(metrics: Metrics) -> str:
    """Return the number and steps of loss spikes and of skipped steps, and the early end, each as a sentence."""
    names = {"spike": "Loss spikes", "skipped": "Steps skipped because the loss or gradient was not finite"}
    stops = [event for event in metrics["event"] if event["event"] == "early_stop"]
    sentences = []
    for kind, name in names.items():
        steps = [event["step"] for event in metrics["event"] if event["event"] == kind]
        if steps:
            shown = ", ".join(map(str, steps[:_EVENTS])) + (", …" if len(steps) > _EVENTS else "")
            sentences.append(f"{name}: {len(steps)}, at step {shown}.")
    if stops:
        step, lowest = stops[-1]["step"], stops[-1]["lowest_step"]
        sentences.append(f"Training ended early, at step {step}. The validation loss was lowest at step {lowest}.")
    return " ".join(sentences)


def _load_table(records: list[dict[str, Any]], evaluated: dict[str, Any]) -> str:
    """Return a table of each layer's load balance, at the last logged step and in the evaluation."""
    last = records[-1].get("experts", {}) if records else {}
    rows = []
    for layer in dict.fromkeys([*last, *evaluated]):
        pairs = (last.get(layer, {}), evaluated.get(layer, {}))
        numbers = [decimal(side.get(key), 2) for side in pairs for key in ("max_over_mean", "variation")]
        rows.append([layer_label(layer), *numbers])
    head = ["layer", "last step: max / mean", "variation", "validation: max / mean", "variation"]
    return markup.table(head, rows, "How even the load is (variation: standard deviation / mean)")
