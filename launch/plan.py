"""What a launcher runs on this node: a command line and what its processes need in their environment."""

import os
import random
import shlex
import socket
from dataclasses import dataclass
from pathlib import Path

from artefacts.checkout import CHECKOUT
from artefacts.errors import RequestError
from configs.schema import Recipe

#: Ports that are tried; of two at random one is free on any host.
_PORTS_TRIED = 100


@dataclass(frozen=True)
class Plan:
    """One start of a recipe's processes.

    Attributes:
        argv: starts the workers and waits for them.
        environment: variables that differ from the caller's or are made sure of.
        workers: how many of the workers report to this launcher.
        hosts: where workers are that are not this launcher's children; empty: all are.
    """

    argv: list[str]
    environment: dict[str, str]
    workers: int
    hosts: tuple[str, ...] = ()

    def ranks_of_hosts(self) -> dict[str, list[int]]:
        """Ranks of each of the hosts, as DeepSpeed's launcher numbers them."""
        each = self.workers // len(self.hosts)
        return {host: [*range(first * each, (first + 1) * each)] for first, host in enumerate(self.hosts)}

    def as_shell(self) -> str:
        """The command as one would type it, from any folder."""
        assigned = [f"{key}={shlex.quote(value)}" for key, value in self.environment.items()]
        return f"cd {shlex.quote(str(Path.cwd()))} && {' '.join(assigned)} {shlex.join(self.argv)}"


def worker_argv(verb: str, recipe_path: str, overrides: list[str]) -> list[str]:
    """What every worker is, after ``python -m``."""
    return ["training", verb, "--recipe", recipe_path, *overrides]


def worker_environment(recipe: Recipe) -> dict[str, str]:
    """Variables of the workers; what the recipe says comes before what the caller's environment says."""
    launch, caller = recipe.launch, os.environ
    cores = str(max(1, _cores() // launch.processes))
    searched = [str(CHECKOUT), *filter(None, caller.get("PYTHONPATH", "").split(os.pathsep))]
    variables = {
        "OMP_NUM_THREADS": str(launch.threads) if launch.threads else caller.get("OMP_NUM_THREADS", cores),
        "TORCH_EXTENSIONS_DIR": caller.get("TORCH_EXTENSIONS_DIR", str(CHECKOUT / ".cache" / "torch_extensions")),
        # Large blocks are kept and not given back: on CPU a step otherwise spends a tenth of its time in page faults.
        "MALLOC_TRIM_THRESHOLD_": str(2**32),
        "MALLOC_MMAP_MAX_": "0",
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(searched)),
    }
    if launch.device != "auto":
        variables["DS_ACCELERATOR"] = launch.device
    return variables


def _cores() -> int:
    """Cores that this process may use, where the system tells; macOS does not."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_port() -> int:
    """A port of this host that nobody listens on.

    It is one below 32,768, where Linux's range for outgoing connections begins: a rank binds it only seconds later.

    Raises:
        RequestError: no port can be had here.
    """
    last = ""
    for _ in range(_PORTS_TRIED):
        port = random.SystemRandom().randint(15_000, 31_999)
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
                return port
            except OSError as error:
                last = str(error)
    raise RequestError(f"this host gives no port to the launcher: {_PORTS_TRIED} were refused, the last one: {last}")
