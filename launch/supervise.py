"""Run a node's workers: pass signals on, end all when one dies, and say how it ended."""

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import FrameType

import psutil

from configs import command
from configs.errors import RequestError

_PASSED_ON = (signal.SIGTERM, signal.SIGUSR1)


def supervise(argv: list[str], environment: dict[str, str], grace_seconds: int) -> int:
    """Run torchrun to its end and return the exit status: 0, 1, or 75 when it stopped with everything saved.

    A signal goes to the workers themselves: they save, leave their status in a file and exit 0, and torchrun ends
    without a fuss. Workers that do not end within the grace time are killed.

    Raises:
        RequestError: a worker was asked for the impossible; with its words.
    """
    with tempfile.TemporaryDirectory(prefix="millrace-") as folder:
        status_file = Path(folder) / "status"
        merged = {**environment, **os.environ, "MILLRACE_STATUS_FILE": str(status_file)}
        agent = subprocess.Popen(argv, env=merged, start_new_session=True)
        deadline: list[float] = []

        def pass_on(number: int, _frame: FrameType | None) -> None:
            deadline[:] = deadline or [time.monotonic() + grace_seconds]
            for process in _children(agent.pid) or [psutil.Process(agent.pid)]:
                _send(process, number)

        def interrupt(_number: int, frame: FrameType | None) -> None:
            pass_on(signal.SIGTERM, frame)

        before = {number: signal.signal(number, pass_on) for number in _PASSED_ON}
        before[signal.SIGINT] = signal.signal(signal.SIGINT, interrupt)
        workers: set[psutil.Process] = set()
        try:
            status = _wait(agent, workers, deadline)
        finally:
            _kill(workers, agent)
            for number, handler in before.items():
                signal.signal(number, handler)
        return _read_status(status_file, status)


def _wait(agent: subprocess.Popen[bytes], workers: set[psutil.Process], deadline: list[float]) -> int:
    """Wait for the agent; keep ``workers`` filled with the processes it started, which would outlive its death."""
    while True:
        try:
            return agent.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            workers.update(_children(agent.pid))
            if deadline and time.monotonic() > deadline[0]:
                _kill(workers, agent)


def _read_status(file: Path, agent_status: int) -> int:
    if file.exists():
        code, _, message = file.read_text(encoding="utf-8").partition(" ")
        if int(code) == command.WRONG_REQUEST:
            raise RequestError(message)
        return int(code)
    return command.DONE if agent_status == 0 else command.FAILED


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children()
    except psutil.NoSuchProcess:
        return []


def _send(process: psutil.Process, number: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _kill(workers: set[psutil.Process], agent: subprocess.Popen[bytes]) -> None:
    """End whatever is left; torchrun gives each worker a session of its own, so no group holds them all."""
    for worker in workers:
        _send(worker, signal.SIGKILL)
    if agent.poll() is None:
        agent.kill()
        agent.wait()
