"""The whole river of a recipe in one command, with a stop and a resume on the way, and a table of what came out.

Every stage is its own command in its own process, as `make` would call it; a stage that is finished is not repeated.
"""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from artefacts import atomic, manifest
from artefacts.errors import RequestError
from artefacts.metrics_log import read_metrics, read_records
from configs import command
from configs.checks.unread_keys import TARGETS
from configs.load import load_recipe
from configs.run_layout import RunLayout
from configs.schema import Recipe
from training.runs import finetune_run, pretrain_run

#: Steps done twice, before the rehearsed crash and after the resume, whose losses must be the same bit for bit.
_REHEARSED = 20
_REHEARSAL = "rehearsal.json"


def demo(recipe: Recipe, recipe_path: str, overrides: list[str]) -> int:
    """Run every stage that is not finished, then print the table; returns the exit status.

    Raises:
        RequestError: the recipe has no fine-tuning, no prompt, or too few steps for a rehearsed crash.
    """
    if recipe.finetune is None:
        raise RequestError("the recipe has no finetune section, which a demo needs")
    if not recipe.generate.prompt:
        raise RequestError("generate.prompt is empty, and a demo ends with a completion")
    if recipe.train.steps < 2 * _REHEARSED + 2:
        raise RequestError(
            f"train.steps={recipe.train.steps} leaves no room to stop and resume half-way: use at least 42"
        )
    began = time.monotonic()
    river = _River(recipe, recipe_path, overrides)
    for stage in (river.data, river.pretrain, river.finetune, river.evaluate, river.report):
        status = stage()
        if status != command.DONE:
            return status
    seconds = time.monotonic() - began
    done = f"in {seconds:.0f} s" if river.worked else "nothing to do, everything is up to date"
    print(f"\n{recipe.run.name}: {done}\n")
    print("\n".join(table(recipe, RunLayout.of(recipe))))
    return command.DONE


class _River:
    def __init__(self, recipe: Recipe, recipe_path: str, overrides: list[str]) -> None:
        self._recipe, self._path, self._overrides = recipe, recipe_path, overrides
        self._layout = RunLayout.of(recipe)
        self.worked = False

    def data(self) -> int:
        """Documents, tokenizer, token shards, chat examples."""
        before = self._manifests()
        status = self._run("pipeline", "run") or self._run("pipeline", "examples")
        self.worked |= self._manifests() != before
        return status

    def pretrain(self) -> int:
        """Half the steps and some more, a crash, the same command again from the checkpoint at half, to the end."""
        run = pretrain_run(self._recipe, self._layout)
        if run.manifest() is None:
            self.worked = True
            half = self._recipe.train.steps // 2
            checkpoints = run.folder / "checkpoints"
            if not (run.begun() and any(checkpoints.glob("step-*"))):
                print(f"\npretrain: to step {half}, which is saved, and {_REHEARSED} further, then a rehearsed crash")
                crash = [f"train.save_every={half}", f"train.simulate_crash_at={half + _REHEARSED}"]
                status = self._launch("pretrain", crash)
                if status != command.FAILED or _last_step(run.folder) != half + _REHEARSED:
                    return status or command.FAILED
                print("\npretrain: the same again; it goes on from the checkpoint")
        status = self._launch("pretrain", [])
        if status == command.DONE and self.worked:
            _compare_rehearsal(run.folder)
        return status

    def finetune(self) -> int:
        self.worked |= finetune_run(self._recipe, self._layout).manifest() is None
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
        # What any stage of it reads may be given.
        return subprocess.run(argv, env={**os.environ, TARGETS: "demo"}, check=False).returncode

    def _launch(self, verb: str, more: list[str]) -> int:
        from launch.start import start

        overrides = [*self._overrides, *more]
        return start(load_recipe(self._path, overrides), verb, self._path, overrides)

    def _manifests(self) -> list[int | None]:
        layout = self._layout
        return [_stamp(f / manifest.NAME) for f in (layout.documents, layout.tokenizer, layout.tokens, layout.examples)]


def _last_step(folder: Path) -> int:
    return max((record["step"] for record in read_records(folder / "metrics.jsonl")), default=0)


def _stamp(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None


def _compare_rehearsal(folder: Path) -> None:
    """Note whether the steps done before the crash and again after it had the same losses, to the last bit."""
    losses: dict[int, list[float]] = {}
    for record in read_records(folder / "metrics.jsonl"):
        if record["kind"] == "train":
            losses.setdefault(record["step"], []).append(record["loss"])
    twice = {step: seen for step, seen in losses.items() if len(seen) > 1}
    equal = sum(len(set(seen)) == 1 for seen in twice.values())
    atomic.write_json(folder / _REHEARSAL, {"steps": sorted(twice), "equal": equal})


def table(recipe: Recipe, layout: RunLayout) -> list[str]:
    """What came out, a line each, from the manifests and records of the run."""
    documents, tokens = manifest.require(layout.documents, "data"), manifest.require(layout.tokens, "data")
    pretrain = manifest.require(layout.pretrain, "pretrain")
    results = atomic.read_json(layout.evaluation / "evaluation.json")
    steps = read_metrics(layout.pretrain / "metrics.jsonl").get("train", [])
    if not steps:
        raise RequestError(f"{layout.pretrain / 'metrics.jsonl'} holds no step: lower train.log_every")
    split, parameters = tokens.counts, pretrain.details["parameters"]
    speed = statistics.median(step["tokens_per_second"] for step in steps)
    scores = {name: row["bits_per_byte"] for name, row in results["baselines"].items()}
    tuned, sample = results["finetune"], results["samples"][0]
    before, after = tuned["held_out_loss_before"], tuned["held_out_loss_after"]
    rows = [
        ("documents", f"{documents.counts['documents']:,} kept, {split['validation']['documents']:,} of them held out"),
        ("tokens", f"{split['train']['tokens']:,} for training, {split['validation']['tokens']:,} for validation"),
        ("parameters", f"{parameters['total']:,} in all, {parameters['active']:,} active a token"),
        ("speed", f"{speed:,.0f} tokens/s over {recipe.ranks} processes"),
        ("bits per byte", f"{results['pretrain']['bits_per_byte']:.3f} on the validation text"),
        ("  baselines", ", ".join(f"{name} {score:.3f}" for name, score in scores.items())),
        ("expert load", _load_line(steps)),
        ("resume", _rehearsal_line(layout.pretrain / _REHEARSAL)),
        ("fine-tuning", f"held-out answers' loss {before:.3f} -> {after:.3f} ({after / before - 1:+.0%})"),
        ("completion", f"{sample['prompt']!r} -> {sample['completion']!r}"),
        ("report", str(layout.report)),
    ]
    return [f"{name:<14} {value}" for name, value in rows]


def _load_line(steps: list[dict[str, Any]]) -> str:
    """Busiest expert over the mean, a layer, summed over the last steps: one batch alone is mostly chance."""
    last = steps[-_REHEARSED:]
    worst = []
    for layer in last[-1]["experts"]:
        loads = [step["experts"][layer]["load"] for step in last]
        worst.append(max(sum(expert) / len(last) for expert in zip(*loads, strict=True)))
    single = statistics.mean(max(e["max_over_mean"] for e in step["experts"].values()) for step in last)
    values = ", ".join(f"{value:.2f}" for value in worst)
    return f"busiest over mean {values} by layer, last {len(last)} steps together; {single:.2f} in a single step"


def _rehearsal_line(path: Path) -> str:
    if not path.exists():
        return "not rehearsed in this run"
    found = atomic.read_json(path)
    count = len(found["steps"])
    if not count:
        return "not rehearsed in this run"
    verdict = "the same bit for bit" if found["equal"] == count else f"only {found['equal']} the same"
    return f"{count} losses after the resume and before the crash: {verdict}"
