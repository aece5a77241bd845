"""Processes forked from one that has imported everything: a start takes milliseconds, not seconds of importing."""

import functools
import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import forkserver
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.support.paths import CHECKOUT
from tests.support.waiting import PATIENCE

_PRELOADED = [
    "deepspeed",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "matplotlib.pyplot",
    "tests.support.training.grid_job",
    "torch._dynamo",
    "training.trainer.callbacks.tensorboard",
    "training.commands.evaluate",
    "training.commands.generate",
    "training.commands.report",
    # The last: what it freezes no process forked from here looks through for garbage.
    "tests.support.freeze",
]


def start(target: Callable[..., None], *arguments: Any, daemon: bool = True) -> multiprocessing.Process:
    """A process that calls ``target``; a ``daemon`` ends with this one and starts none of its own."""
    process: multiprocessing.Process = _context().Process(target=target, args=arguments, daemon=daemon)
    process.start()
    return process


def run_command(words: list[str], expect: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
    """``python -m WORDS`` in the checkout, to its end, with more environment variables.

    Not for what starts ranks or measures what is imported: that needs a process of its own.
    """
    with TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = start(_run_module, words, {**os.environ, **variables}, out, err, daemon=False)
        process.join(PATIENCE)
        if process.exitcode is None:
            process.kill()
            process.join()
        assert process.exitcode is not None
        done = subprocess.CompletedProcess(words, process.exitcode, out.read_text(), err.read_text())
    assert done.returncode == expect, f"{words}: {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-5000:]}"
    return done


def worker_environment() -> dict[str, str]:
    """What a rank on CPU needs in its environment."""
    operators = os.environ.get("TORCH_EXTENSIONS_DIR", str(CHECKOUT / ".cache" / "torch_extensions"))
    path = os.pathsep.join([str(CHECKOUT), os.environ.get("PYTHONPATH", "")])
    return {"DS_ACCELERATOR": "cpu", "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TORCH_EXTENSIONS_DIR": operators}


def redirect(file: Path, *descriptors: int) -> None:
    """Append to a file what this process writes to these descriptors."""
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for other in descriptors:
        os.dup2(descriptor, other)
    os.close(descriptor)


def _run_module(words: list[str], environment: Mapping[str, str], out: Path, err: Path) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(CHECKOUT)
    redirect(out, 1)
    redirect(err, 2)
    sys.argv = list(words)
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)


@functools.cache
def _context() -> Any:
    """Of the process to fork from, which lives as long as this one."""
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
