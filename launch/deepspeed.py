"""DeepSpeed's launcher: on this host alone, or from it on the hosts of a hostfile, through pdsh and ssh."""

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
    """Start all workers, on this host where launch.hostfile is left out.

    ``more``: further variables of the workers.

    Raises:
        RequestError: the hostfile cannot be read, or holds less than the recipe asks for; or pdsh is missing.
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
    # The environment goes by the command line: of the caller's, DeepSpeed hands on PYTHONPATH and little else.
    words = ["/usr/bin/env", *(f"{key}={value}" for key, value in environment.items()), *worker]
    return Plan([*argv, *map(_for_remote_shell, words)], environment, recipe.ranks, tuple(names))


def _check_paths() -> None:
    if not shutil.which("pdsh"):
        raise RequestError("launch.hostfile: DeepSpeed reaches the hosts through pdsh, which is not on this machine")
    here = str(Path.cwd())
    if shlex.quote(here) != here:
        raise RequestError(f"{here}: DeepSpeed's launcher does not quote this folder's name for the other hosts")


def _for_remote_shell(word: str) -> str:
    """A word that the remote shell takes for this one, after what DeepSpeed and pdsh do to it.

    DeepSpeed puts words with a space into double quotes and escapes those within; pdsh replaces what follows a percent
    sign.
    """
    quoted = re.sub(r"([\\$`])", r"\\\1", word) if " " in word else shlex.quote(word)
    return quoted.replace("%", "%%")
