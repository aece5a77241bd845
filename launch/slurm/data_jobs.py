"""The data stages as SLURM jobs: job arrays whose tasks divide up a stage's parts, and single jobs in between.

Duplicates are found by a map-shuffle-reduce over files. ``ingest`` writes the keys of every part into buckets,
``dedup`` compares each bucket across all parts, and ``verdicts`` decides which documents to keep.

A job starts when all tasks of the previous job have succeeded. Any task can safely be stopped and requeued, because a
stage keeps the files it has already written and continues from there.
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from artefacts import atomic
from artefacts.errors import RequestError
from configs.command import DONE
from configs.run_layout import RunLayout
from configs.schema import Recipe
from launch.plan import worker_environment
from launch.preflight import check_writable
from launch.slurm.sbatch import Job, as_shell, check_installed, resources, still_queued, submit_chain


class Step(NamedTuple):
    """A job in the chain: its name, whether several tasks share its work, and its commands as (package, verb) pairs."""

    name: str
    shared: bool
    commands: tuple[tuple[str, str], ...]


#: The jobs that build token shards. ``steps`` adapts them to a recipe.
_STEPS = (
    Step("ingest", True, (("pipeline", "ingest"),)),
    Step("dedup", True, (("pipeline", "dedup"),)),
    Step("verdicts", False, (("pipeline", "dedup"),)),
    Step("clean", True, (("pipeline", "clean"),)),
    Step("publish-documents", False, (("pipeline", "clean"), ("tokenizer", "train"))),
    Step("tokenize", True, (("pipeline", "tokenize"),)),
    Step("publish-tokens", False, (("pipeline", "tokenize"),)),
)


def steps(recipe: Recipe) -> tuple[Step, ...]:
    """Return the jobs for a recipe, in order.

    The last job also packs the data (if the recipe uses packing) and verifies the result. For a model that is trained
    on examples, the jobs build examples instead of token shards.
    """
    *before, last = _STEPS
    if recipe.task != "language_modeling":
        before, last = before[:-1], Step("examples", False, (("pipeline", "examples"),))
    pack = (("pipeline", "pack"),) if recipe.packs else ()
    return (*before, last._replace(commands=(*last.commands, *pack, ("pipeline", "verify"))))


def submit(recipe: Recipe, recipe_path: str, overrides: list[str], dry_run: bool = False) -> int:
    """Submit the chain or, with ``dry_run``, print it as a shell script. Returns the exit status.

    Raises:
        RequestError: the recipe's sources cannot be read here, its folders cannot be written, jobs of an earlier
            submission have not finished, or sbatch refused a job.
    """
    jobs, logs = chain(recipe, recipe_path, overrides), log_folder(recipe)
    if dry_run:
        print(as_shell(jobs, [logs]))
        return DONE
    check_installed()
    data = RunLayout.of(recipe).data
    with _removed_on_failure(logs, data):
        for key, folder in (("run.root", logs), ("data.root", data)):
            check_writable(key, folder)
        submitted = data / ".slurm-jobs"
        _check_none_queued(submitted)
        _check_sources(recipe, recipe_path, overrides)
        atomic.write_text(submitted, "\n".join(submit_chain(jobs)))
    return DONE


def chain(recipe: Recipe, recipe_path: str, overrides: list[str]) -> list[Job]:
    """Return the jobs in order."""
    return [
        Job(step.name, _options(recipe, step), _script(recipe, step, ["--recipe", recipe_path, *overrides]))
        for step in steps(recipe)
    ]


def log_folder(recipe: Recipe) -> Path:
    return (RunLayout.of(recipe).run / "logs").absolute()


def _options(recipe: Recipe, step: Step) -> tuple[str, ...]:
    section = recipe.launch.slurm
    # In SLURM, a percent sign starts a replacement symbol.
    log = str(log_folder(recipe) / f"data-{step.name}-").replace("%", "%%")
    options = [
        *resources(section),
        f"--job-name={recipe.run.name}-{step.name}",
        "--nodes=1",
        "--ntasks=1",
        "--requeue",
        "--kill-on-invalid-dep=yes",
        # A requeued task appends to its log.
        "--open-mode=append",
    ]
    if step.shared:
        limit = f"%{section.array_limit}" if section.array_limit else ""
        options += [f"--array=0-{section.array_tasks - 1}{limit}", f"--output={log}%A_%a.out"]
    else:
        options += [f"--output={log}%j.out"]
    return tuple(options)


def _script(recipe: Recipe, step: Step, arguments: list[str]) -> str:
    """Return the job's shell script. The job runs in the folder where it was submitted, so that relative paths work."""
    path = worker_environment(recipe)["PYTHONPATH"]
    lines = ["#!/bin/bash", "set -euo pipefail", f"cd -- {shlex.quote(str(Path.cwd()))}"]
    lines += [f"export PYTHONPATH={shlex.quote(path)}"]
    section = recipe.launch.slurm
    share = f' --tasks {section.array_tasks} --task "$SLURM_ARRAY_TASK_ID"' if step.shared else ""
    words = shlex.join([*arguments, f"data.workers={section.cpus}"])
    for package, verb in step.commands:
        lines.append(f"{shlex.quote(sys.executable)} -m {package} {verb}{share} {words}")
    return "\n".join(lines) + "\n"


@contextmanager
def _removed_on_failure(*folders: Path) -> Iterator[None]:
    """On failure, remove the folders and their parents, except those that existed before or are not empty."""
    missing = [path for folder in folders for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        for path in missing:
            with suppress(OSError):
                path.rmdir()
        raise


def _check_none_queued(submitted: Path) -> None:
    """Refuse to submit a second chain of jobs for the same folder before the first chain is done."""
    if submitted.exists() and (ids := still_queued(submitted.read_text(encoding="utf-8").split())):
        raise RequestError(
            f"{submitted.parent}: its data jobs {', '.join(ids)} are not done: wait, or `scancel {' '.join(ids)}` first"
        )


def _check_sources(recipe: Recipe, recipe_path: str, overrides: list[str]) -> None:
    """Check that the jobs will be able to read and clean the first document of every source. Nothing is written."""
    argv = [sys.executable, "-m", "pipeline", "ingest", "--limit", "1", "--recipe", recipe_path, *overrides]
    environment = {**os.environ, "PYTHONPATH": worker_environment(recipe)["PYTHONPATH"]}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it gave no reason"])[-1]
        raise RequestError(f"nothing is submitted: {last.removeprefix('error: ')}")
