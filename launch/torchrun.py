"""The torchrun command line of a node's workers."""

import contextlib
import socket
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import psutil

from artefacts.errors import RequestError
from artefacts.worker_status import STATUS
from configs.schema import Recipe
from launch.plan import Plan, worker_argv, worker_environment

#: SIGUSR1 is what SLURM is asked to send before the time is up; torchrun would die of it untold.
SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"

#: Seconds that torchrun gives its workers after a signal where it cannot be told.
_GRACE_OF_TORCHRUN = 30


def torchrun(
    recipe: Recipe, verb: str, recipe_path: str, overrides: list[str], more: Mapping[str, str] | None = None
) -> Plan:
    """Start this node's workers; they meet on a free port of this host, or where launch.rendezvous says.

    ``more``: further variables of the workers.
    """
    launch = recipe.launch
    argv = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={launch.processes}"]
    if launch.nodes == 1 and not launch.rendezvous:
        # By its address: torchrun would hand its ranks the host's own name, which not every machine can resolve.
        argv += ["--standalone", "--local-addr=127.0.0.1"]
    else:
        argv += [
            f"--nnodes={launch.nodes}",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={launch.rendezvous}",
            f"--rdzv-id={recipe.run.name}",
            f"--rdzv-conf=join_timeout={launch.join_seconds}",
            *_local_address(launch.rendezvous or ""),
        ]
    argv += ["--max-restarts=0", f"--signals-to-handle={SIGNALS}", *_shutdown_timeout(launch.grace_seconds)]
    if more:
        # Else it leaves a folder behind in /tmp.
        argv += [f"--log-dir={more[STATUS]}"]
    argv += ["-m", *worker_argv(verb, recipe_path, overrides)]
    return Plan(argv, {**worker_environment(recipe), **(more or {})}, launch.processes)


def _local_address(rendezvous: str) -> list[str]:
    """Where this host's own name cannot be resolved: its address on the way to the rendezvous, HOST:PORT.

    By such a name torchrun's other ranks would look for this one's for ever.
    """
    with contextlib.suppress(OSError):
        socket.getaddrinfo(socket.gethostname(), None)
        return []
    host, _, port = rendezvous.rpartition(":")
    with contextlib.suppress(OSError):  # check_port says what is wrong with the rendezvous
        family, kind, _, _, there = socket.getaddrinfo(host, int(port), type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as udp:
            udp.connect(there)  # sends nothing
            return [f"--local-addr={udp.getsockname()[0]}"]
    return []


def check_port(recipe: Recipe) -> None:
    """Raise ``RequestError`` where nobody knows launch.rendezvous' host, or it is this one and its port is taken.

    torchrun would take that program for its rendezvous, and wait for an answer.
    """
    host, _, port = (recipe.launch.rendezvous or "").rpartition(":")
    try:
        socket.getaddrinfo(host or "localhost", None)
    except OSError as error:
        raise RequestError(f"launch.rendezvous: {host} is no host that this one knows: {error.strerror}") from None
    if host not in (socket.gethostname(), socket.getfqdn(), "localhost", "127.0.0.1"):
        return
    for found in psutil.net_connections("tcp"):
        if found.status == psutil.CONN_LISTEN and found.laddr.port == int(port) and not _is_torchrun(found.pid):
            who = f"process {found.pid}" if found.pid else "another user's program"
            raise RequestError(f"launch.rendezvous: port {port} of {host} is taken by {who}: name another port")


def _is_torchrun(pid: int | None) -> bool:
    """Whether a process is an agent of torchrun, such as that of another node on this host."""
    try:
        return pid is not None and "torch.distributed.run" in psutil.Process(pid).cmdline()
    except psutil.Error:
        return False


def _shutdown_timeout(seconds: int) -> list[str]:
    if _knows("--shutdown-timeout"):
        return [f"--shutdown-timeout={seconds}"]
    if seconds > _GRACE_OF_TORCHRUN:
        print(
            f"this torchrun has no --shutdown-timeout: {_GRACE_OF_TORCHRUN} s after a signal workers are killed, "
            f"whatever launch.grace_seconds ({seconds}) says; a newer torch has it",
            file=sys.stderr,
        )
    return []


def _knows(option: str) -> bool:
    """Whether the installed torchrun has an option; asked of its source, since importing torch takes seconds."""
    found = find_spec("torch")
    sources = (Path(folder, "distributed/run.py") for folder in (found and found.submodule_search_locations) or [])
    return any(option in source.read_text(encoding="utf-8") for source in sources if source.is_file())
