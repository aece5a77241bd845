"""Jobs that follow one another on a SLURM cluster: submitted by ``sbatch``, or printed as the shell would do it."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from artefacts.errors import RequestError
from configs.schema.launch import SlurmSection


class Job(NamedTuple):
    """One submission.

    Attributes:
        name: of the step; a shell identifier.
        options: of sbatch, but for the dependency on the job before.
        script: what sbatch reads from its standard input.
        keys: where the recipe says what, where that is not under ``launch.slurm`` by the name in ``_BLAMED``.
    """

    name: str
    options: tuple[str, ...]
    script: str
    keys: Mapping[str, str] = {}


#: What sbatch says -> the key under ``launch.slurm`` that it speaks of; the first that fits.
_BLAMED = (
    (r"partition specified|partition name|use this partition", "partition"),
    (r"\baccount\b", "account"),
    (r"\bqos\b|quality of service", "qos"),
    (r"time limit|time specification|--time", "time"),
    (r"feature|constraint", "constraint"),
    (r"job array", "array_tasks"),
    (r"\bgres\b|generic resource|--gpus", "gpus"),
    (r"memory|--mem", "memory"),
    (r"cpu count|--cpus", "cpus"),
    (r"node count|more nodes|--nodes", "nodes"),
    (r"node configuration", "resources"),
    (r"unrecognized option|invalid option|unknown option|ambiguous|requires an argument", "options"),
)


def resources(section: SlurmSection) -> tuple[str, ...]:
    """Options of sbatch that the recipe asks for; its own come last, so that they win."""
    given = {
        "partition": section.partition,
        "account": section.account,
        "qos": section.qos,
        "constraint": section.constraint,
        "time": section.time,
        "cpus-per-task": section.cpus,
        "mem": section.memory,
    }
    return (*(f"--{name}={value}" for name, value in given.items() if value is not None), *section.options)


def check_installed() -> None:
    """Raise ``RequestError`` where SLURM's commands are not on this machine."""
    if not shutil.which("sbatch"):
        raise RequestError("sbatch is not on this machine: submit from a login node of the cluster")


def still_queued(ids: Sequence[str]) -> list[str]:
    """Those of these jobs that wait or run."""
    if not ids:
        return []
    argv = ["squeue", "--noheader", "--format=%F", f"--jobs={','.join(ids)}"]
    # Where SLURM has forgotten the only id that is asked for, that is an error, and nothing is listed.
    return sorted(set(subprocess.run(argv, capture_output=True, text=True, check=False).stdout.split()), key=int)


def submit_chain(jobs: Sequence[Job]) -> list[str]:
    """Submit each job to begin when the one before has done well, a line on stdout for each; returns their ids.

    Raises:
        RequestError: sbatch refused one; those before it are cancelled.
    """
    ids: list[str] = []
    try:
        for job in jobs:
            ids.append(_submit(job, ids[-1] if ids else None))
            print(f"{job.name:<10} job {ids[-1]}", flush=True)
    except RequestError as error:
        raise RequestError(f"{error}{_cancel(ids)}") from None
    except BaseException:
        _cancel(ids)
        raise
    return ids


def as_shell(jobs: Sequence[Job], folders: Sequence[Path]) -> str:
    """A shell script that makes the folders and does what ``submit_chain`` does, but for cancelling."""
    # In a shell of its own, so that pasted into another it leaves that as it was.
    lines = ["#!/bin/bash", "(", "set -euo pipefail", *(shlex.join(["mkdir", "-p", str(folder)]) for folder in folders)]
    before: str | None = None
    for job in jobs:
        dependency = f' --dependency=afterok:"${{{before}%%;*}}"' if before else ""
        argv = shlex.join(_argv(job, None))
        lines += ["", f"{job.name}=$({argv}{dependency} <<'END_OF_JOB'", job.script.rstrip("\n"), "END_OF_JOB", ")"]
        lines += [f'echo "{job.name} job ${job.name}"']
        before = job.name
    return "\n".join([*lines, ")"])


def _argv(job: Job, after: str | None) -> list[str]:
    argv = ["sbatch", "--parsable", *job.options]
    return argv if after is None else [*argv, f"--dependency=afterok:{after}"]


def _submit(job: Job, after: str | None) -> str:
    done = subprocess.run(_argv(job, after), input=job.script, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RequestError(f"sbatch refused the job {job.name}: {_explained(done.stderr, job.keys)}")
    if done.stderr.strip():
        print(done.stderr.strip(), file=sys.stderr)
    # On a federation it is ID;CLUSTER.
    return done.stdout.strip().split(";")[0]


def _explained(stderr: str, keys: Mapping[str, str]) -> str:
    """sbatch's words in one line, and the recipe key that they speak of."""
    words = [re.sub(r"^sbatch: (error: )?", "", line.strip()) for line in stderr.splitlines()]
    said = "; ".join(word for word in words if word) or "it gave no reason"
    key = next((key for pattern, key in _BLAMED if re.search(pattern, said, re.IGNORECASE)), None)
    default = "launch.slurm.cpus and memory" if key == "resources" else f"launch.slurm.{key}"
    return f"{said} (see {keys.get(key, default)})" if key else said


def _cancel(ids: list[str]) -> str:
    """Take back what was submitted; says so."""
    if not ids:
        return ""
    listed = ", ".join(ids)
    try:
        cancelled = subprocess.run(["scancel", *ids], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        cancelled = False
    return f"; cancelled: {listed}" if cancelled else f"; run `scancel {' '.join(ids)}`, which failed here"
