"""Starts the ranks of engine tests: forked from a process that has imported all modules, or by torchrun.

torchrun itself is tested in ``tests/test_end_to_end.py`` and ``test_kills.py``.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from multiprocessing import connection
from pathlib import Path

import torch.distributed as dist

from tests.support.fork_server import redirect, start, worker_environment
from tests.support.paths import CHECKOUT
from tests.support.waiting import PATIENCE


def fork_workers(work: Callable[[Path], None], ranks: int, argument: Path, log: Path, seconds: float = PATIENCE) -> str:
    """Run ``work(argument)`` on ``ranks`` ranks until it succeeds; returns their output, which is in ``log`` too.

    As under torchrun, the starter hosts the rendezvous store, and all ranks are killed when one fails.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    sizes = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    log.write_text("")
    processes = []
    for rank in range(ranks):
        environment = {**meeting, **sizes, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        processes.append(start(_begin, work, argument, environment, log))
    deadline = time.monotonic() + seconds
    alive = list(processes)
    while alive and all(process.exitcode in (None, 0) for process in processes) and time.monotonic() < deadline:
        connection.wait([process.sentinel for process in alive], timeout=1)
        alive = [process for process in processes if process.exitcode is None]
    for process in alive:
        process.kill()
        process.join()
    output = log.read_text(errors="replace")
    codes = [process.exitcode for process in processes]
    assert codes == [0] * ranks, f"exit codes {codes}\n{output[-20000:]}"
    return output


def torchrun_workers(
    script: str, ranks: int, arguments: list[str], environment: Mapping[str, str], seconds: float
) -> str:
    """Run a script under torchrun, with one thread per process, until it succeeds; returns its stderr."""
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
    argv += [f"--nproc-per-node={ranks}", str(CHECKOUT / script), *arguments]
    merged = {**os.environ, **worker_environment(), **environment}
    done = subprocess.run(argv, env=merged, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, done.stderr[-20000:]
    return done.stderr


def _begin(work: Callable[[Path], None], argument: Path, environment: dict[str, str], log: Path) -> None:
    os.environ.update(environment)
    redirect(log, 1, 2)
    work(argument)
