"""The demo: run a recipe end to end, including a simulated crash and a resume, and print a table of the results.

Each stage is a command in a separate process, as `make` would run it. Finished stages are not repeated.
"""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from artefacts import atomic, manifest, metrics_log
from artefacts.errors import RequestError
from artefacts.metrics_log import read_metrics, read_records
from artefacts.training_folder import has_weights
from configs import command
from configs.checks.unread_keys import TARGETS
from configs.load import load_recipe
from configs.run_layout import EVALUATION, RunLayout
from configs.schema import Recipe
from training.runs import next_run, pretrain_run

#: Number of steps that run twice: before the simulated crash, and after the resume. Their losses must be bit-identical.
_REPEATED = 20
_RESUME_CHECK = "resume-check.json"


def demo(recipe: Recipe, recipe_path: str, overrides: list[str]) -> int:
    """Run every unfinished stage, then print the table. Returns the exit status.

    Raises:
        RequestError: the recipe has no fine-tuning, no prompt, or too few steps for a simulated crash.
    """
    if not recipe.finetune:
        raise RequestError("the recipe has no finetune section, which the demo needs")
    if not recipe.generate.prompt:
        raise RequestError("generate.prompt is empty, but the demo ends with a completion")
    if recipe.train.steps < 2 * _REPEATED + 2:
        raise RequestError(
            f"train.steps={recipe.train.steps} leaves no room for a crash and a resume halfway: use at least 42"
        )
    began = time.monotonic()
    stages = _Stages(recipe, recipe_path, overrides)
    for stage in (stages.data, stages.pretrain, stages.finetune, stages.evaluate, stages.report):
        status = stage()
        if status != command.DONE:
            return status
    seconds = time.monotonic() - began
    done = f"in {seconds:.0f} s" if stages.worked else "nothing to do, everything is up to date"
    print(f"\n{recipe.run.name}: {done}\n")
    print("\n".join(table(recipe, RunLayout.of(recipe))))
    return command.DONE


class _Stages:
    def __init__(self, recipe: Recipe, recipe_path: str, overrides: list[str]) -> None:
        self._recipe, self._path, self._overrides = recipe, recipe_path, overrides
        self._layout = RunLayout.of(recipe)
        self.worked = False

    def data(self) -> int:
        """Build documents, tokenizer, token shards and chat examples."""
        before = self._manifests()
        status = self._run("pipeline", "run") or self._run("pipeline", "examples")
        self.worked |= self._manifests() != before
        return status

    def pretrain(self) -> int:
        """Train past the halfway point, crash, then run the same command again, which resumes from the checkpoint."""
        run = pretrain_run(self._recipe, self._layout)
        if run.manifest() is None:
            self.worked = True
            half = self._recipe.train.steps // 2
            if not (run.begun() and has_weights(run.folder)):
                print(f"\npretrain: save at step {half}, train {_REPEATED} more steps, then crash on purpose")
                crash = [f"train.save_every={half}", f"train.simulate_crash_at={half + _REPEATED}"]
                status = self._launch("pretrain", crash)
                if status != command.FAILED or _last_step(run.folder) != half + _REPEATED:
                    return status or command.FAILED
                print("\npretrain: the same command again, which resumes from the checkpoint")
        status = self._launch("pretrain", [])
        if status == command.DONE and self.worked:
            _check_resume(run.folder)
        return status

    def finetune(self) -> int:
        self.worked |= next_run(self._recipe, self._layout, "finetune").manifest() is None
        return self._launch("finetune", [])

    def evaluate(self) -> int:
        before = _stamp(self._layout.evaluation / manifest.NAME)
        status = self._run("training", "evaluate")
        self.worked |= _stamp(self._layout.evaluation / manifest.NAME) != before
        return status

    def report(self) -> int:
        if self._layout.report.exists() and not self.worked:
            return command.DONE
        return self._run("training", "report")

    def _run(self, package: str, verb: str) -> int:
        argv = [sys.executable, "-m", package, verb, "--recipe", self._path, *self._overrides]
        # Accept overrides of keys that any stage of the demo reads.
        return subprocess.run(argv, env={**os.environ, TARGETS: "demo"}, check=False).returncode

    def _launch(self, verb: str, more: list[str]) -> int:
        from launch.start import start

        overrides = [*self._overrides, *more]
        return start(load_recipe(self._path, overrides), verb, self._path, overrides)

    def _manifests(self) -> list[int | None]:
        layout = self._layout
        examples = [layout.examples_of(stage.name) for stage in self._recipe.finetune]
        folders = (layout.documents, layout.tokenizer, layout.tokens, *examples)
        return [_stamp(folder / manifest.NAME) for folder in folders]


def _last_step(folder: Path) -> int:
    return max((record["step"] for record in read_records(folder / metrics_log.NAME)), default=0)


def _stamp(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None


def _check_resume(folder: Path) -> None:
    """Record whether the repeated steps had bit-identical losses before the crash and after the resume."""
    losses: dict[int, list[float]] = {}
    for record in read_records(folder / metrics_log.NAME):
        if record["kind"] == "train":
            losses.setdefault(record["step"], []).append(record["loss"])
    repeated = {step: values for step, values in losses.items() if len(values) > 1}
    equal = sum(len(set(values)) == 1 for values in repeated.values())
    atomic.write_json(folder / _RESUME_CHECK, {"steps": sorted(repeated), "equal": equal})


def table(recipe: Recipe, layout: RunLayout) -> list[str]:
    """Return the lines of the results table, from the run's manifests and metrics."""
    documents, tokens = manifest.require(layout.documents, "data"), manifest.require(layout.tokens, "data")
    pretrain = manifest.require(layout.pretrain, "pretrain")
    results = atomic.read_json(layout.evaluation / EVALUATION)
    steps = read_metrics(layout.pretrain / metrics_log.NAME).get("train", [])
    if not steps:
        raise RequestError(f"{layout.pretrain / metrics_log.NAME} has no steps: lower train.log_every")
    split, parameters = tokens.counts, pretrain.details["parameters"]
    speed = statistics.median(step["tokens_per_second"] for step in steps)
    scores = {name: row["bits_per_byte"] for name, row in results["baselines"].items()}
    tuned, sample = results["finetune"][recipe.finetune[-1].name], results["samples"][0]
    before, after = tuned["held_out_loss_before"], tuned["held_out_loss_after"]
    forgotten = tuned["loss"] / results["pretrain"]["loss"] - 1
    rows = [
        ("documents", f"{documents.counts['documents']:,} kept, {split['validation']['documents']:,} of them held out"),
        ("tokens", f"{split['train']['tokens']:,} for training, {split['validation']['tokens']:,} for validation"),
        ("parameters", f"{parameters['total']:,} in total, {parameters['active']:,} active per token"),
        ("speed", f"{speed:,.0f} tokens/s over {recipe.ranks} processes"),
        ("bits per byte", f"{results['pretrain']['bits_per_byte']:.3f} on the validation text"),
        ("  baselines", ", ".join(f"{name} {score:.3f}" for name, score in scores.items())),
        ("expert load", _load_line(steps)),
        ("resume", _resume_line(layout.pretrain / _RESUME_CHECK)),
        ("fine-tuning", f"held-out answers' loss {before:.3f} -> {after:.3f} ({after / before - 1:+.0%})"),
        ("  forgotten", f"validation loss {forgotten:+.1%}"),
        ("completion", f"{sample['prompt']!r} -> {sample['completion']!r}"),
        ("report", str(layout.report)),
    ]
    return [f"{name:<14} {value}" for name, value in rows]


def _load_line(steps: list[dict[str, Any]]) -> str:
    """Describe each layer's max/mean expert load, averaged over the last steps because single batches are noisy."""
    last = steps[-_REPEATED:]
    worst = []
    for layer in last[-1]["experts"]:
        loads = [step["experts"][layer]["load"] for step in last]
        worst.append(max(sum(expert) / len(last) for expert in zip(*loads, strict=True)))
    single = statistics.mean(max(e["max_over_mean"] for e in step["experts"].values()) for step in last)
    values = ", ".join(f"{value:.2f}" for value in worst)
    return f"max/mean {values} by layer over the last {len(last)} steps; {single:.2f} in a single step"


def _resume_line(path: Path) -> str:
    check = atomic.read_json(path) if path.exists() else {"steps": []}
    count = len(check["steps"])
    if not count:
        return "not tested in this run"
    verdict = "equal bit for bit" if check["equal"] == count else f"only {check['equal']} are equal"
    return f"{count} losses before the crash and after the resume: {verdict}"
