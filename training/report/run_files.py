"""Reads a run's files for the report page. Any of the files may be missing."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from artefacts import command_hints, metrics_log, repair_hints
from artefacts.errors import RequestError
from artefacts.manifest import Manifest
from artefacts.metrics_log import Metrics, read_metrics, read_records
from artefacts.training_folder import finished
from configs.load import dump_recipe
from configs.run_layout import CHECKPOINT_RESULTS, EVALUATION, RunLayout
from configs.schema import Recipe


@dataclass(frozen=True)
class RunFiles:
    """The contents of a run's files.

    Attributes:
        name: the run's name.
        data: manifests of documents, tokenizer, tokens and a supervised model's examples, by artefact; missing ones
            are left out.
        pretrain: manifest of the finished pretraining; None if it is not finished.
        finetune: manifest of every finished fine-tuning stage, by name.
        pretrain_metrics: metrics of pretraining; empty if it has not started.
        finetune_metrics: metrics of every fine-tuning stage of the recipe, by name; empty if it has not started.
        evaluation: contents of ``evaluation/evaluation.json``; empty if the file does not exist.
        checkpoint_results: stage -> results of its checkpoints by ``evaluate checkpoints``, in the order of steps.
        recipe: the resolved recipe as YAML. If pretraining has started, the recipe it was started with.
        training_samples: stage -> the records of its ``samples.jsonl``, for stages with samples.
        trained_on: the artefact that pretraining reads, ``tokens`` or ``examples``.
        examples: manifest of every fine-tuning stage's examples, by the stage's name; missing ones are left out.
    """

    name: str
    data: dict[str, Manifest]
    pretrain: Manifest | None
    finetune: dict[str, Manifest]
    pretrain_metrics: Metrics
    finetune_metrics: dict[str, Metrics]
    evaluation: dict[str, Any]
    recipe: str
    trained_on: str = "tokens"
    examples: dict[str, Manifest] = field(default_factory=dict)
    checkpoint_results: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    training_samples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def counts(self, artefact: str) -> dict[str, Any]:
        """Return the counts of a data artefact, or an empty dict if it does not exist."""
        return self.data[artefact].counts if artefact in self.data else {}

    def bytes_per_token(self, split: str) -> float | None:
        """Return the number of UTF-8 bytes per token for ``train`` or ``validation``, or None if it is unknown."""
        counts = self.counts("tokens").get(split, {})
        return counts["bytes"] / counts["tokens"] if counts.get("bytes") and counts.get("tokens") else None


def read_run(recipe: Recipe) -> RunFiles:
    """Read all files of a run.

    Raises:
        RequestError: there is nothing to report, or a file is damaged.
    """
    layout = RunLayout.of(recipe)
    on_examples = recipe.task != "language_modeling"
    stages = [stage.name for stage in recipe.finetune]
    folders = {"documents": layout.documents, "tokenizer": layout.tokenizer, "tokens": layout.tokens}
    folders |= {"examples": layout.examples} if on_examples else {}
    manifests = {name: repair_hints.read_manifest(name, folder) for name, folder in folders.items()}
    examples = {stage: repair_hints.read_manifest("examples", layout.examples_of(stage)) for stage in stages}
    if on_examples:
        # Any token shards here belong to a different model that was trained in this folder earlier.
        manifests.pop("tokens")
    evaluation = _read_evaluation(layout.evaluation / EVALUATION)
    run = RunFiles(
        name=recipe.run.name,
        data={name: saved for name, saved in manifests.items() if saved is not None},
        pretrain=finished(layout.pretrain),
        finetune={stage: saved for stage in stages if (saved := finished(layout.finetune(stage)))},
        pretrain_metrics=read_metrics(layout.pretrain / metrics_log.NAME),
        finetune_metrics={stage: read_metrics(layout.finetune(stage) / metrics_log.NAME) for stage in stages},
        examples={stage: saved for stage, saved in examples.items() if saved is not None},
        evaluation=evaluation if ("task" in evaluation) == on_examples else {},
        training_samples={
            stage: records
            for stage in ("pretrain", *stages)
            if (records := list(read_records(layout.training(stage) / metrics_log.SAMPLES)))
        },
        recipe=_read_recipe(layout.pretrain / "recipe.yaml") or dump_recipe(recipe),
        trained_on="examples" if on_examples else "tokens",
        checkpoint_results=_read_checkpoint_results(layout.evaluation_log / CHECKPOINT_RESULTS, ["pretrain", *stages]),
    )
    if not (run.data or run.pretrain or run.pretrain_metrics or any(run.finetune_metrics.values())):
        raise RequestError(f"{layout.run}: nothing to report yet: run `{command_hints.make('pretrain')}` first")
    return run


def _read_recipe(path: Path) -> str | None:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None


def _read_evaluation(path: Path) -> dict[str, Any]:
    return _read_object(path, "evaluate")


def _read_checkpoint_results(path: Path, stages: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Return the results of the checkpoints of these stages."""
    saved = _read_object(path, "evaluate", "checkpoints").get("stages", {})
    return {
        stage: sorted(saved[stage]["checkpoints"], key=lambda row: int(row["step"]))
        for stage in stages
        if stage in saved
    }


def _read_object(path: Path, target: str, *arguments: str) -> dict[str, Any]:
    """Read a JSON object that ``make target`` wrote, or return {} if there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        why = "" if isinstance(value, dict) else "not a JSON object"
    except FileNotFoundError:
        return {}
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        why = str(error)
    if why:
        again = command_hints.make(target, None, *arguments)
        raise RequestError(f"{path}: damaged ({why}): move {path.parent} away and run `{again}`")
    return dict(value)
