"""Run a node's workers: pass signals on, end all when one dies, and say how it ended."""

import contextlib
import ctypes
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

#: Every one is passed on as itself, but for those that workers do not know, which become SIGTERM.
_PASSED_ON = (signal.SIGTERM, signal.SIGUSR1)
_AS_TERM = (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_PR_SET_PDEATHSIG = 1


def supervise(argv: list[str], environment: dict[str, str], workers: int, grace_seconds: int) -> int:
    """Run torchrun to its end and return the exit status: 0, 1, or 75 when it stopped with everything saved.

    A signal goes to the workers themselves: they save, leave their status in a file and exit 0, and torchrun ends
    without a fuss. Before they listen there is nothing to save, and all are ended at once. Workers that do not end
    within the grace time are killed.

    Raises:
        RequestError: a worker was asked for the impossible; with its words.
    """
    with tempfile.TemporaryDirectory(prefix="millrace-") as folder:
        status_file = Path(folder) / "status"
        watched = _Watched(Path(folder), workers, grace_seconds)
        before = {number: signal.signal(number, watched.pass_on) for number in (*_PASSED_ON, *_AS_TERM)}
        try:
            merged = {**os.environ, **environment, "MILLRACE_STATUS_FILE": str(status_file)}
            status = watched.run(argv, merged)
        finally:
            watched.kill()
            for number, handler in before.items():
                signal.signal(number, handler)
        if watched.ended_early:
            return command.STOPPED
        return _read_status(status_file, status)


class _Watched:
    """torchrun's agent and the workers it starts, and what to do with a signal."""

    def __init__(self, folder: Path, workers: int, grace_seconds: int) -> None:
        """``folder``: where each of so many workers leaves a file ``status.listening.N`` once it hears signals."""
        self._folder, self._count, self._grace = folder, workers, grace_seconds
        self._agent: subprocess.Popen[bytes] | None = None
        self._workers: set[psutil.Process] = set()
        self._deadline: float | None = None
        self.ended_early = False

    def run(self, argv: list[str], environment: dict[str, str]) -> int:
        """Start the agent and wait for it, noting its workers, which would outlive its death."""
        if self.ended_early:
            return command.STOPPED
        self._agent = subprocess.Popen(argv, env=environment, start_new_session=True, preexec_fn=_die_with_parent)
        while True:
            try:
                return self._agent.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                self._workers.update(_children(self._agent.pid))
                if self._deadline is not None and time.monotonic() > self._deadline:
                    self.kill()

    def pass_on(self, number: int, _frame: FrameType | None) -> None:
        if len(list(self._folder.glob("status.listening.*"))) < self._count:
            self.ended_early = True
            self.kill()
            return
        self._deadline = self._deadline or time.monotonic() + self._grace
        assert self._agent is not None
        for process in _children(self._agent.pid):
            _send(process, number if number in _PASSED_ON else signal.SIGTERM)

    def kill(self) -> None:
        """End whatever is left; torchrun gives each worker a session of its own, so no group holds them all."""
        if self._agent is not None:
            for worker in self._workers | set(_children(self._agent.pid)):
                _send(worker, signal.SIGKILL)
            if self._agent.returncode is None:
                self._agent.kill()


def _die_with_parent() -> None:
    """In the agent, before it starts: SIGTERM when the launcher dies, at which torchrun ends its workers."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


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
