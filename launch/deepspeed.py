"""Starts workers with DeepSpeed's launcher, either on this host or, via pdsh and ssh, on the hosts in a hostfile."""

import base64
import json
import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from artefacts.errors import RequestError
from configs.schema import Recipe
from launch import hosts
from launch.plan import Plan, free_port, worker_argv, worker_environment


def deepspeed(
    recipe: Recipe, verb: str, recipe_path: str, overrides: list[str], more: Mapping[str, str] | None = None
) -> Plan:
    """Return the plan that starts all workers. If launch.hostfile is not set, they run on this host.

    ``more`` holds additional environment variables for the workers.

    Raises:
        RequestError: the hostfile cannot be read or has too few hosts for the recipe, pdsh is missing, or the current
            folder's name has special characters.
    """
    launch, environment = recipe.launch, {**worker_environment(recipe), **(more or {})}
    worker = [sys.executable, "-u", "-m", *worker_argv(verb, recipe_path, overrides)]
    if launch.hostfile is None:
        slots = base64.urlsafe_b64encode(json.dumps({"localhost": list(range(launch.processes))}).encode()).decode()
        argv = [sys.executable, "-m", "deepspeed.launcher.launch", f"--world_info={slots}", "--master_addr=127.0.0.1"]
        argv += [f"--master_port={free_port()}", "--quiet", "--no_local_rank", "--no_python"]
        return Plan([*argv, *worker], environment, launch.processes)
    names = hosts.read(Path(launch.hostfile), launch.nodes, launch.processes)
    _check_paths()
    argv = [sys.executable, "-m", "deepspeed.launcher.runner", f"--hostfile={Path(launch.hostfile).absolute()}"]
    argv += [f"--num_nodes={launch.nodes}", f"--num_gpus={launch.processes}", "--force_multi", "--no_ssh_check"]
    address, _, port = (launch.rendezvous or "").rpartition(":")
    argv += [f"--master_addr={address}"] if address else []
    argv += [f"--master_port={port or free_port()}", "--quiet", "--no_local_rank", "--no_python"]
    # Set the environment on the command line, because DeepSpeed forwards little more than PYTHONPATH.
    words = ["/usr/bin/env", *(f"{key}={value}" for key, value in environment.items()), *worker]
    return Plan([*argv, *map(_for_remote_shell, words)], environment, recipe.ranks, tuple(names))


def _check_paths() -> None:
    if not shutil.which("pdsh"):
        raise RequestError(
            "launch.hostfile: DeepSpeed needs pdsh to reach the hosts, but it is not installed on this machine"
        )
    folder = str(Path.cwd())
    if shlex.quote(folder) != folder:
        raise RequestError(
            f"{folder}: DeepSpeed's launcher does not quote this folder's name for the other hosts: use a folder "
            "without special characters"
        )


def _for_remote_shell(word: str) -> str:
    """Quote a word so that the remote shell reads it unchanged after DeepSpeed and pdsh have processed it.

    DeepSpeed puts words with spaces into double quotes, and escapes quotes inside them. pdsh expands percent signs.
    """
    quoted = re.sub(r"([\\$`])", r"\\\1", word) if " " in word else shlex.quote(word)
    return quoted.replace("%", "%%")
