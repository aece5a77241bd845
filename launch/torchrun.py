"""The torchrun command line that starts a node's workers."""

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

#: SLURM sends SIGUSR1 before the time is up. By default, this signal would kill torchrun.
SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"

#: Seconds that torchrun gives its workers to exit after a signal, in versions without an option for this.
_GRACE_OF_TORCHRUN = 30


def torchrun(
    recipe: Recipe, verb: str, recipe_path: str, overrides: list[str], more: Mapping[str, str] | None = None
) -> Plan:
    """Return the plan that starts this node's workers. They rendezvous at launch.rendezvous, if set, or on a free port.

    ``more`` holds additional environment variables for the workers.
    """
    launch = recipe.launch
    argv = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={launch.processes}"]
    if launch.nodes == 1 and not launch.rendezvous:
        # Pass an address. Otherwise torchrun would use the host name, which not every machine can resolve.
        argv += ["--standalone", "--local-addr=127.0.0.1"]
    else:
        argv += [
            f"--nnodes={launch.nodes}",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={launch.rendezvous}",
            # A node that is early with the next stage must not join the rendezvous of the stage before it.
            f"--rdzv-id={'-'.join([recipe.run.name, *_stage(overrides)])}",
            f"--rdzv-conf=join_timeout={launch.join_seconds}",
            *_local_address(launch.rendezvous or ""),
        ]
    argv += ["--max-restarts=0", f"--signals-to-handle={SIGNALS}", *_shutdown_timeout(launch.grace_seconds)]
    if more:
        # Without this option, torchrun leaves a folder in /tmp.
        argv += [f"--log-dir={more[STATUS]}"]
    argv += ["-m", *worker_argv(verb, recipe_path, overrides)]
    return Plan(argv, {**worker_environment(recipe), **(more or {})}, launch.processes)


def _stage(overrides: list[str]) -> list[str]:
    """Return the fine-tuning stage that the workers' arguments name, if any."""
    return [word.removeprefix("--stage=") for word in overrides if word.startswith("--stage=")]


def _local_address(rendezvous: str) -> list[str]:
    """If this host's name does not resolve, return an option with the address from which it reaches the rendezvous.

    ``rendezvous`` is HOST:PORT. Given a name that does not resolve, the other ranks would look for this host forever.
    """
    with contextlib.suppress(OSError):
        socket.getaddrinfo(socket.gethostname(), None)
        return []
    host, _, port = rendezvous.rpartition(":")
    with contextlib.suppress(OSError):  # check_port reports what is wrong with the rendezvous
        family, kind, _, _, address = socket.getaddrinfo(host, int(port), type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as udp:
            udp.connect(address)  # sends nothing, but selects the route
            return [f"--local-addr={udp.getsockname()[0]}"]
    return []


def check_port(recipe: Recipe) -> None:
    """Raise ``RequestError`` if launch.rendezvous names an unknown host, or a port on this host that is already in use.

    If another program used the port, torchrun would mistake it for the rendezvous and wait for an answer.
    """
    host, _, port = (recipe.launch.rendezvous or "").rpartition(":")
    try:
        socket.getaddrinfo(host or "localhost", None)
    except OSError as error:
        raise RequestError(f"launch.rendezvous: cannot resolve host {host}: {error.strerror}") from None
    if host not in (socket.gethostname(), socket.getfqdn(), "localhost", "127.0.0.1"):
        return
    for socket_ in psutil.net_connections("tcp"):
        if socket_.status == psutil.CONN_LISTEN and socket_.laddr.port == int(port) and not _is_torchrun(socket_.pid):
            user = f"process {socket_.pid}" if socket_.pid else "another user's program"
            raise RequestError(f"launch.rendezvous: port {port} on {host} is in use by {user}: choose another port")


def _is_torchrun(pid: int | None) -> bool:
    """Return whether a process is a torchrun agent, for example the agent of another "node" on this host."""
    try:
        return pid is not None and "torch.distributed.run" in psutil.Process(pid).cmdline()
    except psutil.Error:
        return False


def _shutdown_timeout(seconds: int) -> list[str]:
    if _knows("--shutdown-timeout"):
        return [f"--shutdown-timeout={seconds}"]
    if seconds > _GRACE_OF_TORCHRUN:
        print(
            f"this version of torchrun has no --shutdown-timeout: it kills workers {_GRACE_OF_TORCHRUN} s after a "
            f"signal, although launch.grace_seconds is {seconds}; update torch to change that",
            file=sys.stderr,
        )
    return []


def _knows(option: str) -> bool:
    """Return whether the installed torchrun has an option. The source is searched, to avoid importing torch."""
    spec = find_spec("torch")
    sources = (Path(folder, "distributed/run.py") for folder in (spec and spec.submodule_search_locations) or [])
    return any(option in source.read_text(encoding="utf-8") for source in sources if source.is_file())
