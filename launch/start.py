"""Start a recipe's workers from this node, and wait for them."""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from artefacts import lock
from artefacts.errors import RequestError
from artefacts.training_folder import TrainingRun
from configs import command
from configs.run_layout import RunLayout
from configs.schema import Recipe
from launch.deepspeed import deepspeed
from launch.logs import WAS_KILLED, WAS_SILENT, Output
from launch.plan import Plan
from launch.preflight import preflight
from launch.supervise import supervise
from launch.torchrun import check_port, torchrun
from training.estimate.device import device_of
from training.estimate.fitting import relief
from training.estimate.memory import memory
from training.runs import stages_of, training_run

#: Environment variable that a SLURM job's first node sets. That node runs the checks, then starts this command on every
#: node.
IN_ALLOCATION = "MILLRACE_ALLOCATION"


def plan(
    recipe: Recipe, verb: str, recipe_path: str, overrides: list[str], more: Mapping[str, str] | None = None
) -> Plan:
    """Return the plan for starting workers on this node, according to launch.kind.

    ``overrides`` may also hold options of the workers' command. ``more`` holds additional environment variables.

    Raises:
        RequestError: the kind starts nothing on this node, or something it needs is missing.
    """
    check_verb(recipe, verb, recipe_path)
    if recipe.launch.kind == "slurm":
        raise RequestError(f"launch.kind=slurm starts nothing here: `python -m launch slurm {verb}` submits a job")
    if recipe.launch.kind == "deepspeed":
        return deepspeed(recipe, verb, recipe_path, overrides, more)
    return torchrun(recipe, verb, recipe_path, overrides, more)


def check_verb(recipe: Recipe, verb: str, recipe_path: str) -> None:
    """Raise ``RequestError`` if the recipe has no section for this command."""
    if verb == "finetune" and not recipe.finetune:
        raise RequestError(f"{recipe_path}: the recipe has no finetune section")


def launched(layout: RunLayout, verb: str) -> str:
    """Describe what the holder of the launch lock is doing, for error messages of other processes."""
    return f"{layout.run}: {verb} is being launched"


def start(recipe: Recipe, verb: str, recipe_path: str, overrides: list[str]) -> int:
    """Start a command's workers and wait for them. Returns the exit status."""
    check_verb(recipe, verb, recipe_path)
    for stage in stages_of(recipe, verb):
        status = _start_stage(recipe, verb, stage, recipe_path, overrides)
        if status != command.DONE:
            return status
    return command.DONE


def _start_stage(recipe: Recipe, verb: str, stage: str, recipe_path: str, overrides: list[str]) -> int:
    """Start the workers of one stage, and wait for them. Returns the exit status."""
    layout = RunLayout.of(recipe)
    run = training_run(recipe, layout, stage)
    for line in run.restore():
        print(f"{run.label}: {line}", flush=True)
    if run.manifest() is not None:
        print(f"{run.folder}: up to date", flush=True)
        return command.DONE
    launch = recipe.launch
    options = [f"--stage={stage}"] if verb == "finetune" else []
    with ExitStack() as stack:
        if IN_ALLOCATION not in os.environ:
            if launch.kind == "torchrun" and launch.nodes > 1:
                # Every node has a launcher, so none of them may hold the launch lock. But the ranks of another start
                # would hold the folder's lock.
                lock.refuse_if_held(run.folder)
            else:
                stack.enter_context(lock.hold(layout.launch(verb), launched(layout, verb)))
            for line in preflight(recipe, run, layout, here=launch.hostfile is None):
                print(f"{run.label}: {line}", flush=True)
        check_port(recipe)
        status = _supervise(recipe, verb, recipe_path, [*overrides, *options], run, layout)
    if status == command.DONE and launch.nodes > 1:
        _wait_for_manifest(run, launch.join_seconds)
    return status


def _wait_for_manifest(run: TrainingRun, seconds: float) -> None:
    """Wait until this node sees the manifest that another node has written. The next stage starts from it."""
    deadline = time.monotonic() + seconds
    while run.manifest() is None and time.monotonic() < deadline:
        time.sleep(0.5)


def _supervise(
    recipe: Recipe, verb: str, recipe_path: str, overrides: list[str], run: TrainingRun, layout: RunLayout
) -> int:
    began = time.time()
    on_hosts = recipe.launch.kind == "deepspeed" and recipe.launch.hostfile is not None
    ended = supervise(
        lambda more: plan(recipe, verb, recipe_path, overrides, more),
        layout.logs / verb,
        layout.run if on_hosts else None,
        recipe.launch.grace_seconds,
    )
    status = ended.status
    if status == command.FAILED and run.manifest() is not None:
        return command.DONE  # the signal arrived after the last step
    if status == command.FAILED and _hung(run.stacks, began):
        _print_error(
            f"{verb}: no step in {recipe.train.watch.hang_seconds} s (train.watch.hang_seconds); the stack of every "
            f"rank is in {run.stacks}. Run the same command again to resume from the newest checkpoint"
        )
        # A SLURM job that hung is requeued only if it has made progress. Its first node decides this.
        return command.FAILED if IN_ALLOCATION in os.environ else command.STOPPED
    if status == command.STOPPED:
        _print_error(f"{verb}: stopped, everything is saved; run the same command again to resume")
    failed = status == command.FAILED and IN_ALLOCATION not in os.environ
    if failed and (why := why_failed(recipe, ended.output, gone=ended.gone, stage=run.name)):
        _print_error(f"{verb}: {why}")
    return status


def why_failed(
    recipe: Recipe,
    output: Output,
    nodes: Sequence[str] = (),
    gone: Mapping[str, Sequence[int]] | None = None,
    stage: str = "pretrain",
) -> str:
    """Explain a failure, without repeating the output of rank 0 that was already shown.

    Args:
        recipe: the recipe.
        output: the logs of the start.
        nodes: names of the nodes that should take part, if known.
        gone: host -> ranks, in the order in which they exited. See :class:`launch.supervise.Ended`.
        stage: ``pretrain``, or the name of the fine-tuning stage that failed.
    """
    if output.timed_out():
        joined = output.joined()
        missing = sorted({*nodes} - {*joined})
        named = f"; missing: {', '.join(missing)}" if missing else ""
        count = len(nodes) or recipe.launch.nodes
        return (
            f"{count - len(joined)} of {count} nodes did not join within "
            f"{recipe.launch.join_seconds} s (launch.join_seconds): joined: {', '.join(joined)}{named}"
        )
    reason = output.explain(gone, one_host=recipe.launch.nodes == 1)
    first_line = reason.partition("\n")[0]
    killed = WAS_KILLED in first_line or WAS_SILENT in first_line
    return f"{reason}\n{_memory_advice(recipe, stage)}" if killed else reason


def _memory_advice(recipe: Recipe, stage: str) -> str:
    """Return advice for the case that the kernel killed a rank because memory ran out."""
    device = device_of(recipe)
    section = None if stage == "pretrain" else recipe.stage(stage)
    if device.kind != "cuda":
        return f"if memory ran out: {relief(recipe, device.bytes, device.kind, section)}"
    needed = memory(recipe, device.kind, stage=section).host * recipe.launch.processes
    return (
        f"if memory ran out, it was host memory: a node is estimated to need {needed / 1e9:,.1f} GB. Lower "
        "launch.processes, or raise the memory per node (launch.slurm.train.memory)"
    )


def _print_error(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _hung(stacks: Path, since: float) -> bool:
    """Return whether any rank has written a stack trace since the time ``since``."""
    return any(path.stat().st_size and path.stat().st_mtime >= since for path in stacks.glob("rank-*.txt"))
