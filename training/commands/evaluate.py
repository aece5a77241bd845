"""``python -m training evaluate``: writes ``evaluation/evaluation.json`` and prints it as a table."""

import sys
from pathlib import Path
from typing import Any

from artefacts import atomic, command_hints, manifest
from artefacts.errors import RequestError
from artefacts.stage import open_stage
from artefacts.training_folder import has_weights
from configs import command
from configs.checks import run_weights
from configs.run_layout import EVALUATION, EXAMPLES_OF, RunLayout
from configs.schema import Recipe
from training.evaluate import task_files
from training.evaluate.battery.build import VERSION
from training.evaluate.texts import fingerprints, open_texts
from training.report.score_tables import by_stage, results_lines
from training.runs import finished_checkpoint

#: Format of ``evaluation.json``. A file with another format is not current.
_FORMAT = 2


def evaluate(recipe: Recipe) -> int:
    """Evaluate the pretrained model, and every fine-tuning stage that is finished. Returns the exit status."""
    layout = RunLayout.of(recipe)
    if recipe.task != "language_modeling":
        return _evaluate_task(recipe, layout)
    tokens = manifest.require(layout.tokens, "data")
    stages = {"pretrain": require_finished(layout, "pretrain")}
    stages |= {} if recipe.generate.stage == "pretrain" else _finetuned(recipe, layout)
    inputs = {"tokens": tokens.fingerprint, **{name: weights for name, (_, weights) in stages.items()}}
    for name in [*stages][1:]:
        inputs[f"{EXAMPLES_OF}{name}"] = manifest.require(layout.examples_of(name), "examples").fingerprint
    identity = {**results_identity(recipe), "generate": recipe.generate.identity()}
    sources = open_texts(recipe)
    inputs |= fingerprints(sources, layout.evaluation) | task_files.check(recipe.evaluate)
    with open_stage("evaluation", layout.evaluation, identity, inputs) as stage:
        if stage.finished:
            print(f"{layout.evaluation}: up to date")
        else:
            # Imported here, so that torch is not needed if the evaluation is up to date.
            from training.commands.evaluation_log import write_scalars
            from training.evaluate.results import BATTERY, Evaluation

            checkpoints = {name: checkpoint for name, (checkpoint, _) in stages.items()}
            evaluation = Evaluation(recipe, layout, sources, stage.scratch, stage.work / BATTERY)
            results = evaluation.run(checkpoints, tokens.counts["validation"]["bytes"])
            atomic.write_json(stage.work / EVALUATION, results)
            stage.publish(counts={}, versions=manifest.versions("torch", "zstandard", "lm_eval"))
            for name, facts in by_stage(results).items():
                write_scalars(layout.evaluation_log, name, {facts["step"]: facts})
    print("\n".join(results_lines(atomic.read_json(layout.evaluation / EVALUATION))))
    return command.DONE


def results_identity(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe keys that the results on texts and tasks depend on."""
    section = recipe.evaluate.identity()
    # The content of the texts and of the task files is among the inputs.
    texts = {name: {**source, "path": None} for name, source in section.pop("texts").items()}
    tasks = {key: section.pop(key) for key in ("tasks", "task_path", "shots", "limit", "chat", "seed")}
    if tasks["tasks"]:
        section["tasks"] = {**tasks, "task_path": None, "battery": VERSION}
    return {"format": _FORMAT, "evaluate": {**section, "texts": texts}, "context_length": recipe.train.context_length}


def _evaluate_task(recipe: Recipe, layout: RunLayout) -> int:
    examples = manifest.require(layout.examples, "data")
    pretrained = require_finished(layout, "pretrain")
    generate = recipe.generate
    options = {"beams": generate.beams, "length_penalty": generate.length_penalty} if generate.beams > 1 else {}
    if recipe.evaluate.max_tokens is not None:
        options |= {"max_tokens": recipe.evaluate.max_tokens}
    inputs = {"examples": examples.fingerprint, "pretrain": pretrained[1]}
    with open_stage("evaluation", layout.evaluation, {"task": recipe.task, **options}, inputs) as stage:
        if stage.finished:
            print(f"{layout.evaluation}: up to date")
        else:
            from training.evaluate.tasks import evaluate_task

            results = evaluate_task(recipe, layout, pretrained[0])
            atomic.write_json(stage.work / EVALUATION, results)
            stage.publish(counts={}, versions=manifest.versions("torch"))
    print("\n".join(_task_lines(atomic.read_json(layout.evaluation / EVALUATION)["task"])))
    return command.DONE


def require_finished(layout: RunLayout, stage: str) -> tuple[Path, str]:
    """Return a stage's last checkpoint and its fingerprint, and print a line about it to stderr.

    Raises:
        RequestError: the stage is not finished, or its training data have since been replaced. In the latter case, the
            model may have been trained on text that is now held out.
    """
    folder, target = layout.training(stage), run_weights.target(stage)
    if (last := finished_checkpoint(folder)) is None or not last[0].is_dir():
        raise RequestError(f"{folder} is not finished: run `{command_hints.make(target)}` first")
    saved = manifest.require(last[0], target)
    run_weights.check_tokenizer(last[0], saved, layout)
    if why := run_weights.stale(layout, stage):
        raise RequestError(
            f"{folder} is not current ({why}): it cannot be evaluated on data that it may have been trained on. Use "
            "the recipe and ARGS that it was trained with, or train again: "
            f"`{command_hints.make(target, None, 'run.replace=true')}`"
        )
    print(run_weights.line(last[0], saved), file=sys.stderr, flush=True)
    return last


def _finetuned(recipe: Recipe, layout: RunLayout) -> dict[str, tuple[Path, str]]:
    """Return each fine-tuning stage's checkpoint and its fingerprint, by the stage's name.

    Stages without a checkpoint, and stages that are not finished, are left out. ``generate.stage`` selects a single
    stage, which must be finished.
    """
    if recipe.generate.stage is not None:
        stage = run_weights.wanted_stage(recipe, layout)
        return {stage: require_finished(layout, stage)}
    finetuned = {}
    for section in recipe.finetune:
        folder = layout.finetune(section.name)
        if not has_weights(folder):
            continue
        run_weights.check_finetuning(layout, section.name)
        if finished_checkpoint(folder) is None:
            print(f"{folder}: training is not finished, so it is not evaluated", file=sys.stderr)
        else:
            finetuned[section.name] = require_finished(layout, section.name)
    return finetuned


def _task_lines(facts: dict[str, Any]) -> list[str]:
    """Return the results of a task as lines of text."""
    head = [f"held out     {facts['examples']:,} examples, loss {facts['loss']:.4f} nats per target"]
    if facts["kind"] != "sequence_classification":
        correct = f"{facts['token_accuracy']:.2%} of the tokens, {facts['exact']:.2%} of complete sequences"
        return [*head, f"  correct    {correct}"]
    width = max(len(row["name"]) for row in facts["classes"])
    return [
        *head,
        f"  correct    {facts['accuracy']:.2%}, with always the most frequent class {facts['majority']:.2%}; "
        f"macro F1 {facts['macro_f1']:.3f}",
        *(
            f"  {row['name']:<{width}} {row['examples']:>7,} examples, precision {row['precision']:.3f}, "
            f"recall {row['recall']:.3f}, F1 {row['f1']:.3f}"
            for row in facts["classes"]
        ),
    ]
