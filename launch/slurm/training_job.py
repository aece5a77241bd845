"""Pretraining or fine-tuning as a SLURM job. This module builds and submits a recipe's sbatch script."""

import hashlib
import os
import shlex
import sys
from pathlib import Path

from artefacts import atomic, lock
from artefacts.checkout import CHECKOUT
from artefacts.errors import RequestError
from artefacts.training_folder import TrainingRun
from configs.command import DONE
from configs.run_layout import RunLayout
from configs.schema import Recipe
from launch.plan import worker_environment
from launch.preflight import check_writable, preflight
from launch.slurm.in_job import usable_nodes
from launch.slurm.sbatch import Job, as_shell, check_installed, resources, still_queued, submit_chain
from launch.start import check_verb, launched
from training.runs import next_run


def submit_training(recipe: Recipe, verb: str, recipe_path: str, overrides: list[str], dry_run: bool = False) -> int:
    """Submit the job or, with ``dry_run``, print the shell script that submits it. Returns the exit status.

    Raises:
        RequestError: the run would fail, an earlier job of the run has not finished, or sbatch refused the job.
    """
    check_verb(recipe, verb, recipe_path)
    layout = RunLayout.of(recipe)
    job = training_job(recipe, verb, recipe_path, overrides)
    if dry_run:
        print(as_shell([job], [layout.logs.absolute()]))
        return DONE
    run = next_run(recipe, layout, verb)
    if run.manifest() is not None:
        print(f"{run.folder}: up to date")
        return DONE
    check_installed()
    check_least_nodes(recipe, recipe_path, overrides)
    check_writable("run.root", layout.run)
    # Do not hold the launch lock, because the job itself takes it, possibly right away.
    with lock.hold(layout.launch(f"{verb}-job"), f"{layout.run}: {verb} is being submitted"):
        _refuse_if_queued(run, _submitted(layout, verb))
        lock.refuse_if_held(layout.launch(verb), launched(layout, verb))
        lock.refuse_if_held(run.folder)
        return _submit(recipe, verb, run, layout, job)


def check_least_nodes(recipe: Recipe, recipe_path: str, overrides: list[str]) -> None:
    """Raise ``RequestError`` if the recipe cannot use the smallest number of nodes that SLURM may allocate."""
    least = recipe.launch.slurm.train.min_nodes
    if least and (used := usable_nodes(recipe_path, overrides, least)) < least:
        raise RequestError(
            f"launch.slurm.train.min_nodes ({least}): the batch and the experts cannot be spread over {least} nodes, "
            f"only over {used}: set min_nodes={used}"
        )


def _submitted(layout: RunLayout, verb: str) -> Path:
    """Return the path of the file with the ID of the last job that was submitted."""
    return layout.run / f".{verb}-job"


def _refuse_if_queued(run: TrainingRun, submitted: Path) -> None:
    if submitted.exists() and (ids := still_queued(submitted.read_text(encoding="utf-8").split())):
        raise RequestError(f"{run.folder}: job {ids[0]} is still queued or running: wait, or `scancel {ids[0]}` first")


def _submit(recipe: Recipe, verb: str, run: TrainingRun, layout: RunLayout, job: Job) -> int:
    # The GPUs are on the nodes, not on the submitting machine.
    for line in preflight(recipe, run, layout, here=False):
        print(f"{verb}: {line}", file=sys.stderr)
    layout.logs.mkdir(parents=True, exist_ok=True)
    (number,) = submit_chain([job])
    atomic.write_text(_submitted(layout, verb), number)
    print(f"{verb:<10} output in {layout.logs.absolute() / f'{verb}-{number}.out'}; `scancel {number}` cancels it")
    return DONE


def training_job(recipe: Recipe, verb: str, recipe_path: str, overrides: list[str]) -> Job:
    """Build the job: options for sbatch, and a script that runs ``python -m launch allocation`` on the first node."""
    train = recipe.launch.slurm.train
    keys = {key: f"launch.slurm.train.{key}" for key in ("cpus", "memory", "gpus")} | {"nodes": "launch.nodes"}
    keys |= {key: f"launch.slurm.train.{key}" for key in ("partition", "time") if getattr(train, key)}
    keys |= {"resources": "launch.nodes, and gpus, cpus and memory under launch.slurm.train"}
    keys |= {"array_tasks": "launch.slurm.train.chain"}
    return Job(verb, _options(recipe, verb), _script(recipe, verb, ["--recipe", recipe_path, *overrides]), keys)


def _options(recipe: Recipe, verb: str) -> tuple[str, ...]:
    launch, section, train = recipe.launch, recipe.launch.slurm, recipe.launch.slurm.train
    adapted = section.model_copy(
        update={
            "partition": train.partition or section.partition,
            "time": train.time or section.time,
            "cpus": train.cpus,
            "memory": train.memory,
            "options": (),
        }
    )
    gpus = train.gpus if train.gpus is not None else launch.processes if launch.device != "cpu" else 0
    # With --ntasks-per-node, SLURM always allocates the smallest number of nodes in a range.
    few = bool(train.min_nodes and train.min_nodes < launch.nodes)
    nodes = (
        (f"--nodes={train.min_nodes}-{launch.nodes}",) if few else (f"--nodes={launch.nodes}", "--ntasks-per-node=1")
    )
    # In SLURM, a percent sign starts a replacement symbol.
    log = str((RunLayout.of(recipe).logs / f"{verb}-").absolute()).replace("%", "%%")
    return (
        *resources(adapted),
        f"--job-name={recipe.run.name}-{verb}",
        *nodes,
        *([f"--gpus-per-node={gpus}"] if gpus else []),
        f"--signal=USR1@{train.signal_seconds}",
        "--open-mode=append",
        *((f"--array=1-{train.chain}%1", "--no-requeue") if train.chain else ("--requeue",)),
        f"--output={log}%{'A' if train.chain else 'j'}.out",
        *section.options,
    )


def _script(recipe: Recipe, verb: str, arguments: list[str]) -> str:
    """Return the job's shell script. The job runs in the folder where it was submitted, so that relative paths work."""
    train = recipe.launch.slurm.train
    lines = ["#!/bin/bash", "set -euo pipefail", f"cd -- {shlex.quote(str(Path.cwd()))}"]
    lines += [f"export PYTHONPATH={shlex.quote(worker_environment(recipe)['PYTHONPATH'])}"]
    python = shlex.quote(sys.executable)
    if train.wheelhouse:
        wheels = Path(train.wheelhouse).absolute()
        pinned = hashlib.sha256((CHECKOUT / "requirements.lock").read_bytes()).hexdigest()[:12]
        lines += [f'venv="${{TMPDIR:-/tmp}}/millrace-$UID-{pinned}"']
        make = shlex.join(
            [
                "env",
                "-u",
                "MAKEFLAGS",
                "-u",
                "PYTHON",
                "make",
                "-C",
                str(CHECKOUT),
                "setup",
                f"WHEELHOUSE={wheels}",
                f"BASE_PYTHON={_base_python()}",
            ]
        )
        lines += [f'srun --ntasks-per-node=1 flock "$venv.lock" {make} VENV="$venv"']
        python = '"$venv/bin/python"'
    lines += [f"exec {python} -m launch allocation {verb} {shlex.join(arguments)}"]
    return "\n".join(lines) + "\n"


def _base_python() -> str:
    """Return the Python interpreter with which this virtual environment was created."""
    return os.path.realpath(sys.executable)
