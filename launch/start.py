"""Start a recipe's workers from this node and see them through."""

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
from training.runs import finetune_run, pretrain_run

COMMANDS = {"pretrain": pretrain_run, "finetune": finetune_run}
#: Set where one command has looked already and started this one on several nodes.
IN_ALLOCATION = "MILLRACE_ALLOCATION"


def plan(
    recipe: Recipe, verb: str, recipe_path: str, overrides: list[str], more: Mapping[str, str] | None = None
) -> Plan:
    """What launch.kind starts on this node; ``more``: further variables of the workers.

    Raises:
        RequestError: the recipe's kind starts nothing on a node, or what it names is not there.
    """
    check_verb(recipe, verb, recipe_path)
    if recipe.launch.kind == "slurm":
        raise RequestError(f"launch.kind=slurm starts nothing here: `python -m launch slurm {verb}` submits a job")
    if recipe.launch.kind == "deepspeed":
        return deepspeed(recipe, verb, recipe_path, overrides, more)
    return torchrun(recipe, verb, recipe_path, overrides, more)


def check_verb(recipe: Recipe, verb: str, recipe_path: str) -> None:
    """Raise ``RequestError`` where the recipe has nothing for this command."""
    if verb == "finetune" and recipe.finetune is None:
        raise RequestError(f"{recipe_path}: the recipe has no finetune section")


def launched(layout: RunLayout, verb: str) -> str:
    """What the holder of the lock on launching does."""
    return f"{layout.run}: {verb} is being launched"


def start(recipe: Recipe, verb: str, recipe_path: str, overrides: list[str]) -> int:
    """Start a command's workers and see them through; answers at once where there is nothing to do."""
    check_verb(recipe, verb, recipe_path)
    layout = RunLayout.of(recipe)
    run = COMMANDS[verb](recipe, layout)
    for line in run.restore():
        print(f"{verb}: {line}", flush=True)
    if run.manifest() is not None:
        print(f"{run.folder}: up to date", flush=True)
        return command.DONE
    launch = recipe.launch
    with ExitStack() as stack:
        if IN_ALLOCATION not in os.environ:
            if launch.kind == "torchrun" and launch.nodes > 1:
                # Each node has a launcher; the ranks of another start hold the folder itself.
                lock.refuse_if_held(run.folder)
            else:
                stack.enter_context(lock.hold(layout.launch(verb), launched(layout, verb)))
            for line in preflight(recipe, run, layout, here=launch.hostfile is None):
                print(f"{verb}: {line}", flush=True)
        check_port(recipe)
        return _see_through(recipe, verb, recipe_path, overrides, run, layout)


def _see_through(
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
        return command.DONE  # a signal came when all was done
    if status == command.FAILED and _stood_still(run.stacks, began):
        _say(
            f"{verb}: no step in {recipe.train.watch.hang_seconds} s (train.watch.hang_seconds): where each rank stood "
            f"is in {run.stacks}; the same command goes on from the newest checkpoint"
        )
        # In a job, whether it has got further decides if it is queued again.
        return command.FAILED if IN_ALLOCATION in os.environ else command.STOPPED
    if status == command.STOPPED:
        _say(f"{verb}: stopped with everything saved; the same command goes on")
    failed = status == command.FAILED and IN_ALLOCATION not in os.environ
    if failed and (why := why_failed(recipe, ended.output, gone=ended.gone)):
        _say(f"{verb}: {why}")
    return status


def why_failed(
    recipe: Recipe, output: Output, nodes: Sequence[str] = (), gone: Mapping[str, Sequence[int]] | None = None
) -> str:
    """What to show of a failure, beside what rank 0 has told.

    Args:
        recipe: of the start.
        output: of the start.
        nodes: those that were to take part, if known.
        gone: ranks of each host in the order in which they ended, see :class:`launch.supervise.Ended`.
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
    said = output.explain(gone, one_host=recipe.launch.nodes == 1)
    first = said.partition("\n")[0]
    return f"{said}\n{_if_memory_ran_out(recipe)}" if WAS_KILLED in first or WAS_SILENT in first else said


def _if_memory_ran_out(recipe: Recipe) -> str:
    """What to change where it was the kernel that killed a rank."""
    device = device_of(recipe)
    if device.kind != "cuda":
        return f"if memory ran out: {relief(recipe, device.bytes, device.kind)}"
    needed = memory(recipe, device.kind).host * recipe.launch.processes
    return (
        f"if memory ran out, it was the host's, of which a node is estimated to need {needed / 1e9:,.1f} GB: lower "
        "launch.processes, or give a node more (launch.slurm.train.memory)"
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _stood_still(stacks: Path, since: float) -> bool:
    """Whether ranks have written down their stacks."""
    return any(path.stat().st_size and path.stat().st_mtime >= since for path in stacks.glob("rank-*.txt"))
