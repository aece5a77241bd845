"""Job chains for a SLURM cluster: submit them with ``sbatch``, or render them as a shell script."""

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
    """A job to submit.

    Attributes:
        name: the step's name, which is a valid shell identifier.
        options: options for sbatch, except for the dependency on the previous job.
        script: the script that sbatch reads from standard input.
        keys: name in ``_BLAMED`` -> recipe key, for keys other than ``launch.slurm.NAME``.
    """

    name: str
    options: tuple[str, ...]
    script: str
    keys: Mapping[str, str] = {}


#: Pattern for sbatch's message -> the key under ``launch.slurm`` that causes it. The first match wins.
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
    """Return the recipe's options for sbatch. Free-form options come last, so that they take precedence."""
    values = {
        "partition": section.partition,
        "account": section.account,
        "qos": section.qos,
        "constraint": section.constraint,
        "time": section.time,
        "cpus-per-task": section.cpus,
        "mem": section.memory,
    }
    return (*(f"--{name}={value}" for name, value in values.items() if value is not None), *section.options)


def check_installed() -> None:
    """Raise ``RequestError`` if SLURM's commands are not installed on this machine."""
    if not shutil.which("sbatch"):
        raise RequestError("sbatch is not installed on this machine: submit from a login node of the cluster")


def still_queued(ids: Sequence[str]) -> list[str]:
    """Return the IDs of the jobs in ``ids`` that are pending or running."""
    if not ids:
        return []
    argv = ["squeue", "--noheader", "--format=%F", f"--jobs={','.join(ids)}"]
    # If SLURM has forgotten the only id, squeue fails and lists nothing, so its status does not matter.
    return sorted(set(subprocess.run(argv, capture_output=True, text=True, check=False).stdout.split()), key=int)


def submit_chain(jobs: Sequence[Job]) -> list[str]:
    """Submit jobs that each start once the previous job has succeeded. Prints a line per job, and returns the job IDs.

    Raises:
        RequestError: sbatch refused a job; the jobs before it are canceled.
    """
    ids: list[str] = []
    width = max(len(job.name) for job in jobs)
    try:
        for job in jobs:
            ids.append(_submit(job, ids[-1] if ids else None))
            print(f"{job.name:<{width}} job {ids[-1]}", flush=True)
    except RequestError as error:
        raise RequestError(f"{error}{_cancel(ids)}") from None
    except BaseException:
        _cancel(ids)
        raise
    return ids


def as_shell(jobs: Sequence[Job], folders: Sequence[Path]) -> str:
    """Return a shell script that creates the folders and submits the jobs, but does not cancel jobs on failure."""
    # Use a subshell, so that pasting the script into a shell does not change that shell.
    lines = ["#!/bin/bash", "(", "set -euo pipefail", *(shlex.join(["mkdir", "-p", str(folder)]) for folder in folders)]
    before: str | None = None
    for job in jobs:
        dependency = f' --dependency=afterok:"${{{before}%%;*}}"' if before else ""
        argv = shlex.join(_argv(job, None))
        variable = job.name.replace("-", "_")
        lines += ["", f"{variable}=$({argv}{dependency} <<'END_OF_JOB'", job.script.rstrip("\n"), "END_OF_JOB", ")"]
        lines += [f'echo "{job.name} job ${variable}"']
        before = variable
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
    # In a federation, the output is ID;CLUSTER.
    return done.stdout.strip().split(";")[0]


def _explained(stderr: str, keys: Mapping[str, str]) -> str:
    """Return sbatch's error message in one line, with the recipe key that caused the error, if known."""
    words = [re.sub(r"^sbatch: (error: )?", "", line.strip()) for line in stderr.splitlines()]
    message = "; ".join(word for word in words if word) or "it gave no reason"
    key = next((key for pattern, key in _BLAMED if re.search(pattern, message, re.IGNORECASE)), None)
    default = "launch.slurm.cpus and memory" if key == "resources" else f"launch.slurm.{key}"
    return f"{message} (see {keys.get(key, default)})" if key else message


def _cancel(ids: list[str]) -> str:
    """Cancel the submitted jobs. Returns text for an error message, which says whether they were canceled."""
    if not ids:
        return ""
    listed = ", ".join(ids)
    try:
        canceled = subprocess.run(["scancel", *ids], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        canceled = False
    return f"; canceled: {listed}" if canceled else f"; run `scancel {' '.join(ids)}`, which failed here"
