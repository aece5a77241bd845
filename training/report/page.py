"""Builds the report page, with a headline, a note on missing results, and sections, as self-contained HTML."""

from artefacts.pages import markup, shell
from artefacts.pages.formats import compact, decimal, duration, integer
from training.report.checkpoint_section import checkpoint_section
from training.report.data_section import data_section
from training.report.evaluation_sections import baselines, evaluation_section, models, samples_section
from training.report.prompt_section import prompt_section
from training.report.run_files import RunFiles
from training.report.series import totals
from training.report.task_section import scores, task_section
from training.report.training_sections import experts_section, finetuning_section, pretraining_section


def build_page(run: RunFiles) -> str:
    """Return the page as HTML."""
    sections = [
        pretraining_section(run),
        experts_section(run),
        evaluation_section(run),
        checkpoint_section(run),
        task_section(run),
        *(finetuning_section(run, stage) for stage in run.finetune_metrics),
        prompt_section(run),
        samples_section(run),
        data_section(run),
        markup.section("recipe", "Recipe", markup.details("The resolved recipe", run.recipe), _versions(run)),
    ]
    body = "\n".join(part for part in sections if part)
    header = f"{markup.facts(headline(run))}\n{_missing(run)}"
    return shell.page(run.name, "Millrace report", header, body)


def headline(run: RunFiles) -> dict[str, str]:
    """Return the run's most important numbers by name, leaving out unknown ones."""
    facts: dict[str, str] = {}
    documents, tokens = run.counts("documents"), run.counts("tokens")
    if documents.get("documents"):
        facts["Documents"] = integer(documents["documents"])
    if documents.get("bytes"):
        facts["Text"] = compact(documents["bytes"], "B")
    if count := tokens.get("train", {}).get("tokens"):
        facts["Training tokens"] = compact(count)
    if parameters := run.pretrain.details.get("parameters") if run.pretrain else None:
        facts["Parameters"] = compact(parameters["total"])
        facts["Active per token"] = compact(parameters["active"])
    return facts | _headline_of_training(run) | _headline_of_evaluation(run)


def _headline_of_training(run: RunFiles) -> dict[str, str]:
    records = run.pretrain_metrics.get("train", [])
    if not records:
        return {}
    seen, seconds = totals(records)
    unit = "Targets" if run.trained_on == "examples" else "Tokens"
    facts = {
        "Steps" if run.pretrain else "Steps so far": integer(records[-1]["step"]),
        f"{unit} seen": compact(seen),
        "Time in steps": duration(seconds),
    }
    if seconds:
        facts[f"{unit} per second"] = compact(seen / seconds)
    if points := run.pretrain_metrics.get("validation"):
        facts["Validation loss"] = f"{decimal(points[-1]['loss'])} nats"
    return facts


def _headline_of_evaluation(run: RunFiles) -> dict[str, str]:
    measured, others = models(run), baselines(run)
    facts = dict(scores(run.evaluation["task"])) if run.evaluation.get("task") else {}
    if "pretrained model" in measured:
        facts["Bits per byte"] = decimal(measured["pretrained model"])
    if measured and others:
        best = min(others, key=lambda name: others[name])
        facts[f"Best baseline ({best})"] = decimal(others[best])
    return facts


def _missing(run: RunFiles) -> str:
    """Return a note that lists missing results and the commands that produce them."""
    parts = {
        "the data": (not {"documents", "tokenizer", run.trained_on} <= set(run.data), "make data"),
        "pretraining": (not run.pretrain_metrics, "make pretrain"),
        "the end of pretraining": (bool(run.pretrain_metrics) and run.pretrain is None, "make pretrain"),
        "fine-tuning": (any(not metrics for metrics in run.finetune_metrics.values()), "make finetune"),
        "the evaluation": (not run.evaluation, "make evaluate"),
    }
    missing = [f"{name} ({command})" for name, (is_missing, command) in parts.items() if is_missing]
    return markup.note(f"Still missing: {', '.join(missing)}.") if missing else ""


def _versions(run: RunFiles) -> str:
    """Return a note with the versions of the code and libraries, from the manifests."""
    manifests = [*run.data.values(), *([run.pretrain] if run.pretrain else []), *run.finetune.values()]
    versions = {name: version for part in manifests for name, version in part.versions.items()}
    if not versions:
        return ""
    return markup.note("Made with " + ", ".join(f"{name} {versions[name]}" for name in sorted(versions)) + ".")
