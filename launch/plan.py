"""The plan for starting processes on this node: a command line, and environment variables for the processes."""

import os
import random
import shlex
import socket
from dataclasses import dataclass
from pathlib import Path

from artefacts.checkout import CHECKOUT
from artefacts.errors import RequestError
from configs.schema import Recipe

#: Number of ports to try.
_PORTS_TRIED = 100


@dataclass(frozen=True)
class Plan:
    """How to start a recipe's processes.

    Attributes:
        argv: the command that starts the workers and waits for them.
        environment: environment variables to set for the command.
        workers: number of workers that report to this launcher.
        hosts: the workers' hosts. Empty if all workers are started on this host.
    """

    argv: list[str]
    environment: dict[str, str]
    workers: int
    hosts: tuple[str, ...] = ()

    def ranks_of_hosts(self) -> dict[str, list[int]]:
        """Return a map from each host to its ranks, as DeepSpeed's launcher numbers them."""
        count = self.workers // len(self.hosts)
        return {host: [*range(index * count, (index + 1) * count)] for index, host in enumerate(self.hosts)}

    def as_shell(self) -> str:
        """Return the plan as a shell command that works from any folder."""
        assigned = [f"{key}={shlex.quote(value)}" for key, value in self.environment.items()]
        return f"cd {shlex.quote(str(Path.cwd()))} && {' '.join(assigned)} {shlex.join(self.argv)}"


def worker_argv(verb: str, recipe_path: str, overrides: list[str]) -> list[str]:
    """Return the arguments of each worker, which follow ``python -m``."""
    return ["training", verb, "--recipe", recipe_path, *overrides]


def worker_environment(recipe: Recipe) -> dict[str, str]:
    """Return the workers' environment variables. The recipe takes precedence over the caller's environment."""
    launch, caller = recipe.launch, os.environ
    cores = str(max(1, _cores() // launch.processes))
    searched = [str(CHECKOUT), *filter(None, caller.get("PYTHONPATH", "").split(os.pathsep))]
    variables = {
        "OMP_NUM_THREADS": str(launch.threads) if launch.threads else caller.get("OMP_NUM_THREADS", cores),
        "TORCH_EXTENSIONS_DIR": caller.get("TORCH_EXTENSIONS_DIR", str(CHECKOUT / ".cache" / "torch_extensions")),
        # Keep large blocks allocated. Otherwise a step on CPU spends a tenth of its time in page faults.
        "MALLOC_TRIM_THRESHOLD_": str(2**32),
        "MALLOC_MMAP_MAX_": "0",
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(searched)),
    }
    if launch.device != "auto":
        variables["DS_ACCELERATOR"] = launch.device
    return variables


def _cores() -> int:
    """Return the number of cores that this process may use. On macOS, where this is unknown, count all cores."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_port() -> int:
    """Return a free port on this host.

    The port is below 32,768, where Linux's range of ephemeral ports starts. So it is likely to stay free until a rank
    binds it.

    Raises:
        RequestError: there is no free port.
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
    raise RequestError(f"no free port on this host: tried {_PORTS_TRIED} ports; the last error was: {last}")
