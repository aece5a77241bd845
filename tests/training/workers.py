"""Starting the ranks of engine tests: forked from a process that has imported everything, or by torchrun.

A rank alone needs some five seconds to import torch and DeepSpeed, and torchrun two more, and there are many starts.
What torchrun itself does is tested in ``tests/test_river.py`` and ``test_kills.py``.
"""

import functools
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import connection, forkserver
from pathlib import Path
from typing import Any

import torch.distributed as dist

CHECKOUT = Path(__file__).parents[2]
_PRELOADED = [
    "deepspeed",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "torch._dynamo",
    "training.engine.board",
    "tests.training.grid_job",
]


def fork_workers(work: Callable[[Path], None], ranks: int, argument: Path, log: Path, seconds: int) -> str:
    """Run ``work(argument)`` on so many ranks to its good end; returns what they said, which is in ``log`` too.

    As under torchrun: the ranks meet at a store of their starter's, and one that fails takes the others with it.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    sizes = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    log.write_text("")
    processes = []
    for rank in range(ranks):
        environment = {**meeting, **sizes, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        processes.append(_server().Process(target=_begin, args=(work, argument, environment, log), daemon=True))
        processes[-1].start()
    deadline = time.monotonic() + seconds
    alive = list(processes)
    while alive and all(process.exitcode in (None, 0) for process in processes) and time.monotonic() < deadline:
        connection.wait([process.sentinel for process in alive], timeout=1)
        alive = [process for process in processes if process.exitcode is None]
    for process in alive:
        process.kill()
        process.join()
    said = log.read_text(errors="replace")
    codes = [process.exitcode for process in processes]
    assert codes == [0] * ranks, f"exit codes {codes}\n{said[-20000:]}"
    return said


def torchrun_workers(
    script: str, ranks: int, arguments: list[str], environment: Mapping[str, str], seconds: int
) -> str:
    """Run a script of the tests under torchrun, one thread a process, to its good end; returns its stderr."""
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    argv += [str(CHECKOUT / script), *arguments]
    merged = {**os.environ, **worker_environment(), **environment}
    done = subprocess.run(argv, env=merged, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, done.stderr[-20000:]
    return done.stderr


def worker_environment() -> dict[str, str]:
    """What a rank on CPU needs in its environment."""
    operators = os.environ.get("TORCH_EXTENSIONS_DIR", str(CHECKOUT / ".cache" / "torch_extensions"))
    path = os.pathsep.join([str(CHECKOUT), os.environ.get("PYTHONPATH", "")])
    return {"DS_ACCELERATOR": "cpu", "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TORCH_EXTENSIONS_DIR": operators}


@functools.cache
def _server() -> Any:
    """The process to fork from; it lives as long as this one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    with _set(worker_environment()):
        forkserver.ensure_running()
    return context


@contextmanager
def _set(environment: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _begin(work: Callable[[Path], None], argument: Path, environment: dict[str, str], log: Path) -> None:
    os.environ.update(environment)
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    work(argument)
