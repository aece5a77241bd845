"""Report sections with evaluation results: bits per byte with baselines, and samples of generated text."""

from functools import partial

from artefacts.pages import markup
from artefacts.pages.figures import inline_svg
from artefacts.pages.formats import decimal, integer
from training.report.comparison_figure import bits_per_byte_figure
from training.report.run_files import RunFiles
from training.report.score_tables import by_stage, task_rows


def baselines(run: RunFiles) -> dict[str, float]:
    """Return the bits per byte of every baseline that was measured."""
    rows = run.evaluation.get("baselines") or {}
    return {name: row["bits_per_byte"] for name, row in rows.items() if row.get("bits_per_byte") is not None}


def models(run: RunFiles) -> dict[str, float]:
    """Return the bits per byte of the pretrained and fine-tuned models, leaving out models without a result."""
    tuned = run.evaluation.get("finetune") or {}
    results = {"pretrained model": run.evaluation.get("pretrain") or {}}
    results |= {f"fine-tuned model ({stage})": facts for stage, facts in tuned.items()}
    scores = {name: facts.get("bits_per_byte") for name, facts in results.items()}
    return {name: value for name, value in scores.items() if value is not None}


def evaluation_section(run: RunFiles) -> str:
    """Return a bar chart of bits per byte, with a note about the evaluated text."""
    measured = models(run)
    if not measured:
        return ""
    draw = partial(bits_per_byte_figure, measured, baselines(run))
    return markup.section(
        "evaluation",
        "Evaluation",
        markup.figure(inline_svg(draw, "bits per byte of models and baselines")),
        _what_was_measured(run),
        *_tables(run),
    )


def _tables(run: RunFiles) -> list[str]:
    """Return tables of the other texts and of the tasks. An empty table is "", as is one that was not measured."""
    stages = by_stage(run.evaluation) if "stages" in run.evaluation else {}
    texts = [
        [f"{text}, {name}", integer(row["bytes"]), decimal(row["bits_per_byte"]), decimal(row["perplexity"])]
        for name, facts in stages.items()
        for text, row in facts.get("texts", {}).items()
    ]
    head, *tasks = task_rows({name: facts["tasks"] for name, facts in stages.items() if facts.get("tasks")})
    return [
        markup.table(["text", "bytes", "bits per byte", "perplexity"], sorted(texts), "Other texts"),
        markup.table(head, tasks, "Tasks, ± standard error"),
    ]


def samples_section(run: RunFiles) -> str:
    """Return prompts and their completions."""
    samples = run.evaluation.get("samples") or []
    parts = [
        f'<figure class="sample"><pre><b>{markup.text(sample.get("prompt", ""))}</b>'
        f'<span class="completion">{markup.text(sample.get("completion", ""))}</span></pre></figure>'
        for sample in samples
    ]
    return markup.section("samples", "Samples", *parts)


def _what_was_measured(run: RunFiles) -> str:
    """Return a note about the evaluated text, with a warning if the run has newer checkpoints."""
    facts = run.evaluation.get("pretrain") or {}
    sentences = []
    if facts.get("tokens") and facts.get("bytes") and facts.get("loss") is not None:
        sentences.append(
            f"Validation text of {integer(facts['bytes'])} bytes, {integer(facts['tokens'])} target tokens, "
            f"{decimal(facts['loss'])} nats per token."
        )
    results = {"pretrain": run.evaluation.get("pretrain") or {}, **(run.evaluation.get("finetune") or {})}
    for stage, finished in (("pretrain", run.pretrain), *run.finetune.items()):
        evaluated = results.get(stage, {}).get("checkpoint")
        newest = finished.details.get("checkpoint") if finished else None
        if evaluated and newest and evaluated != newest:
            sentences.append(
                f"This is {evaluated} of {stage}, but the newest checkpoint is {newest}: run `make evaluate` again."
            )
    return markup.note(" ".join(sentences)) if sentences else ""
