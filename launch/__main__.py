"""Start a recipe's processes: ``python -m launch KIND COMMAND --recipe R [--dry-run] [section.key=value ...]``."""

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from artefacts.layout import RunLayout
from artefacts.training_run import finetune_run, pretrain_run
from configs import command
from configs.errors import RequestError
from configs.schema import Recipe
from launch.supervise import supervise
from launch.torchrun import torchrun_command, worker_environment

KINDS = {
    "local": "this machine, launch.processes processes",
    "torchrun": "this node of several, which meet at launch.rendezvous",
    "recipe": "whatever launch.kind says",
    "slurm": "jobs of a SLURM cluster, submitted here, as launch.slurm says",
    "demo": "the whole river of a recipe, with a stop and a resume on the way",
}
COMMANDS = {"pretrain": pretrain_run, "finetune": finetune_run}
SLURM_COMMANDS = ("data",)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m launch", description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    for kind, purpose in KINDS.items():
        sub = kinds.add_parser(kind, help=purpose, description=purpose)
        if kind != "demo":
            verbs = SLURM_COMMANDS if kind == "slurm" else sorted(COMMANDS)
            sub.add_argument("verb", choices=verbs, metavar="COMMAND", help=" or ".join(verbs))
            sub.add_argument("--dry-run", action="store_true", help="print what would be started, start nothing")
        command.add_recipe_arguments(sub)
    parsed = command.parse(parser, arguments)
    if parsed.kind == "demo":
        from launch.demo import demo

        return demo(command.read_recipe(parsed), parsed.recipe, parsed.overrides)
    overrides = [*parsed.overrides]
    if parsed.kind == "slurm":
        from launch.slurm_data import submit

        return submit(command.read_recipe(parsed), parsed.recipe, overrides, parsed.dry_run)
    if parsed.kind != "recipe":
        overrides.append(f"launch.kind={parsed.kind}")
        parsed.overrides = overrides
    return start(command.read_recipe(parsed), parsed.verb, parsed.recipe, overrides, parsed.dry_run)


def start(recipe: Recipe, verb: str, recipe_path: str, overrides: list[str], dry_run: bool = False) -> int:
    """Start a command's workers and see them through; answers at once where there is nothing to do."""
    if verb == "finetune" and recipe.finetune is None:
        raise RequestError(f"{recipe_path}: the recipe has no finetune section")
    argv, environment = torchrun_command(recipe, verb, recipe_path, overrides), worker_environment(recipe)
    if dry_run:
        print(" ".join(f"{key}={shlex.quote(value)}" for key, value in environment.items()), shlex.join(argv))
        return command.DONE
    run = COMMANDS[verb](recipe, RunLayout.of(recipe))
    if run.manifest() is not None:
        print(f"{run.folder}: up to date")
        return command.DONE
    _operator_built(environment)
    began = time.time()
    status = supervise(argv, environment, recipe.launch.processes, recipe.launch.grace_seconds)
    if status == command.FAILED and _stood_still(run.stacks, began):
        print(
            f"{verb}: no step in {recipe.train.watch.hang_seconds} s (train.watch.hang_seconds): where each rank stood "
            f"is in {run.stacks}; the same command goes on from the newest checkpoint",
            file=sys.stderr,
        )
        return command.STOPPED
    if status == command.STOPPED:
        print(f"{verb}: stopped with everything saved; the same command goes on", file=sys.stderr)
    return status


def _stood_still(stacks: Path, since: float) -> bool:
    """Whether ranks have written down their stacks."""
    return any(path.stat().st_size and path.stat().st_mtime >= since for path in stacks.glob("rank-*.txt"))


def _operator_built(environment: dict[str, str]) -> None:
    """DeepSpeed's CPU operator must be there before two workers wait for each other's build of it."""
    folder = Path(environment["TORCH_EXTENSIONS_DIR"]) / "deepspeed_shm_comm"
    if list(folder.glob("*.so")):
        return
    argv = [sys.executable, "-m", "training.engine.prebuild"]
    done = subprocess.run(argv, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise RequestError(
            f"DeepSpeed's CPU operator could not be built, is a C++ compiler installed? {' '.join(last)}"
        )


if __name__ == "__main__":
    command.run(main)
