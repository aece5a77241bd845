"""``python -m training evaluate checkpoints``: evaluates every kept checkpoint of a run, as a curve."""

import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from artefacts import atomic, command_hints, fingerprint, lock, manifest
from artefacts.errors import RequestError
from artefacts.training_folder import checkpoints, read_identity
from configs import command
from configs.checks import run_weights
from configs.run_layout import CHECKPOINT_RESULTS, RunLayout
from configs.schema import Recipe
from training.commands.evaluate import results_identity
from training.commands.evaluation_log import write_scalars
from training.evaluate import task_files
from training.evaluate.texts import fingerprints, open_texts
from training.report.score_tables import aligned, checkpoint_rows

#: Measures a checkpoint of a stage.
Measure = Callable[[str, Path], dict[str, Any]]


def evaluate_checkpoints(recipe: Recipe) -> int:
    """Measure the checkpoints that have not been measured yet, and print all results. Returns the exit status.

    The results are in ``runs/NAME/evaluation-log/checkpoints.json``. They are kept after retention has removed a
    checkpoint, unless the stage was trained again or what is measured has changed.

    Raises:
        RequestError: the model is not a language model, a stage is not current, or there is no checkpoint.
    """
    layout = RunLayout.of(recipe)
    if recipe.task != "language_modeling":
        raise RequestError("evaluate checkpoints: only language models are evaluated on a text at every checkpoint")
    tokens = manifest.require(layout.tokens, "data")
    sources = open_texts(recipe)
    inputs = {"tokens": tokens.fingerprint, **fingerprints(sources, layout.evaluation)}
    inputs |= task_files.check(recipe.evaluate)
    stages = _stages(recipe, layout)
    with lock.hold(layout.evaluation_log):
        layout.evaluation_log.mkdir(parents=True, exist_ok=True)
        log = _Log(layout.evaluation_log / CHECKPOINT_RESULTS, {"identity": results_identity(recipe), "inputs": inputs})
        work = layout.evaluation_log / f"work-{log.settings[:12]}"
        measure: Measure | None = None
        for stage, folder in stages.items():
            log.begin(stage, fingerprint.of_value(read_identity(folder)))
            for checkpoint in checkpoints(folder):
                weights = _usable(layout, checkpoint)
                if weights is None or log.has(stage, checkpoint.name, weights):
                    continue
                measure = measure or _measuring(recipe, layout, sources, work, tokens.counts["validation"]["bytes"])
                log.add(stage, weights, measure(stage, checkpoint))
            write_scalars(layout.evaluation_log, stage, {row["step"]: row for row in log.rows(stage)})
        for leftover in layout.evaluation_log.glob("work-*"):  # also of interrupted evaluations with other settings
            shutil.rmtree(leftover)
    print("\n".join(aligned(checkpoint_rows({stage: log.rows(stage) for stage in stages}))))
    print(layout.evaluation_log / CHECKPOINT_RESULTS)
    return command.DONE


class _Log:
    """The results of checkpoints, which are saved after each of them."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Read the results that were measured with the same settings."""
        self._path = path
        self.settings = fingerprint.of_value(dict(settings))
        saved = atomic.read_json(path) if path.exists() else {}
        self._stages: dict[str, dict[str, Any]] = saved["stages"] if saved.get("settings") == self.settings else {}

    def begin(self, stage: str, run: str) -> None:
        """Drop a stage's results if they are of another training run."""
        if self._stages.get(stage, {}).get("run") != run:
            self._stages[stage] = {"run": run, "checkpoints": []}

    def rows(self, stage: str) -> list[dict[str, Any]]:
        """Return the results of a stage's checkpoints, in the order of their steps."""
        return sorted(self._stages[stage]["checkpoints"], key=lambda row: int(row["step"]))

    def has(self, stage: str, checkpoint: str, weights: str) -> bool:
        rows = self._stages[stage]["checkpoints"]
        return any((row["checkpoint"], row["weights"]) == (checkpoint, weights) for row in rows)

    def add(self, stage: str, weights: str, facts: dict[str, Any]) -> None:
        """Add a checkpoint's results, and save all results."""
        rows = [row for row in self._stages[stage]["checkpoints"] if row["step"] != facts["step"]]
        self._stages[stage]["checkpoints"] = [*rows, {"weights": weights, **facts}]
        atomic.write_json(self._path, {"settings": self.settings, "stages": self._stages})


def _stages(recipe: Recipe, layout: RunLayout) -> dict[str, Path]:
    """Return the folder of every stage with checkpoints: pretraining, then the recipe's fine-tuning stages.

    Raises:
        RequestError: there is none, or a stage is not current, so that it may have been trained on held-out text.
    """
    stages = {}
    for name in ["pretrain", *(stage.name for stage in recipe.finetune)]:
        folder, target = layout.training(name), run_weights.target(name)
        if not checkpoints(folder):
            continue
        if why := run_weights.stale(layout, name):
            raise RequestError(
                f"{folder} is not current ({why}): it cannot be evaluated on data that it may have been trained on: "
                f"train again with `{command_hints.make(target, None, 'run.replace=true')}`"
            )
        stages[name] = folder
    if not stages:
        raise run_weights.none_yet(layout, "pretrain")
    return stages


def _usable(layout: RunLayout, checkpoint: Path) -> str | None:
    """Return a checkpoint's fingerprint, or None if it cannot be read or was removed by a running training."""
    try:
        saved = manifest.require_sound(checkpoint, "pretrain")
    except RequestError as error:
        print(f"{checkpoint.name} skipped: {error}", file=sys.stderr)
        return None
    run_weights.check_tokenizer(checkpoint, saved, layout)
    return saved.fingerprint


def _measuring(recipe: Recipe, layout: RunLayout, sources: Mapping[str, Any], work: Path, text_bytes: int) -> Measure:
    # Imported here, so that torch is not needed if every checkpoint has been measured.
    from training.evaluate.results import BATTERY, Evaluation

    evaluation = Evaluation(recipe, layout, sources, work, work / BATTERY)
    return lambda stage, checkpoint: evaluation.measure_checkpoint(stage, checkpoint, text_bytes)
