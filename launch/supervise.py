"""Supervises workers: forwards signals, shows their output, kills all workers if one dies, and reports the outcome."""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO

import psutil

from artefacts.errors import RequestError
from artefacts.worker_status import LOGS, STATUS, TERMINAL, listening, node_name, read_status
from configs import command
from launch import hosts
from launch.logs import Output
from launch.plan import Plan

#: Signals that are forwarded unchanged, and signals that are forwarded as SIGTERM because workers do not handle them.
_PASSED_ON = (signal.SIGTERM, signal.SIGUSR1)
_AS_TERM = (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_PR_SET_PDEATHSIG = 1

#: A function that makes a plan. Its argument holds the environment variables that pass this start's folders to workers.
Planner = Callable[[Mapping[str, str]], Plan]


class Ended:
    """The outcome of a start.

    Attributes:
        status: the exit status: 0, 1 or 75.
        output: the logs, which explain a failure.
        gone: host -> ranks that exited: on this host in order of exit, on other hosts in numerical order.
    """

    def __init__(self, status: int, output: Output, gone: Mapping[str, Sequence[int]] | None = None) -> None:
        self.status, self.output, self.gone = status, output, gone or {}


def supervise(planner: Planner, logs: Path, shared: Path | None, grace_seconds: int) -> Ended:
    """Run a plan until all processes have exited.

    Signals are forwarded to the workers, not to their agent. The workers save a checkpoint, write their status to a
    file and exit with status 0, so that the agent does not report a failure. Until all workers handle signals, there is
    nothing to save, so a signal kills all of them at once. Workers that do not exit within the grace period are killed.

    Args:
        planner: makes the plan.
        logs: the run's log folder.
        shared: a folder that all hosts can see, for the status files of workers on other hosts. None if all workers are
            on this host.
        grace_seconds: time for workers to save after a signal.

    Raises:
        RequestError: a worker refused the request; the message is the worker's.
    """
    with _status_folder(shared) as folder:
        output = Output(logs, folder)
        plan = planner({STATUS: str(folder), LOGS: str(logs.absolute()), **_terminal()})
        if plan.hosts:
            hosts.check(plan.hosts, folder)
        watched = _Watched(plan, folder, grace_seconds)
        before = {number: signal.signal(number, watched.pass_on) for number in (*_PASSED_ON, *_AS_TERM)}
        try:
            with output.open_node_log() as log:
                status = watched.run(log, output.follow)
        finally:
            watched.kill()
            for number, handler in before.items():
                signal.signal(number, handler)
        output.follow()
        reported = read_status(folder)
        if watched.ended_early:
            return Ended(command.STOPPED, output)
        if reported and reported[0] == command.WRONG_REQUEST:
            raise RequestError(reported[1])
        if reported:
            return Ended(reported[0], output)
        gone = plan.ranks_of_hosts() if plan.hosts else {node_name(): watched.gone}
        return Ended(command.FAILED if status else command.DONE, output, gone)


@contextmanager
def _status_folder(shared: Path | None) -> Iterator[Path]:
    if shared is None:
        with tempfile.TemporaryDirectory(prefix="millrace-") as folder:
            yield Path(folder)
        return
    shared.mkdir(parents=True, exist_ok=True)
    folder_on_all = Path(tempfile.mkdtemp(prefix=".launch-", dir=shared)).absolute()
    try:
        yield folder_on_all
    finally:
        shutil.rmtree(folder_on_all, ignore_errors=True)


def _terminal() -> dict[str, str]:
    """If a terminal shows the workers' output, return environment variables that say so and give its width."""
    if not sys.stdout.isatty():
        return {}
    return {TERMINAL: "1", "COLUMNS": str(shutil.get_terminal_size().columns)}


class _Watched:
    """The agent and the workers that it starts. Handles signals."""

    def __init__(self, plan: Plan, status: Path, grace_seconds: int) -> None:
        self._plan, self._status, self._grace = plan, status, grace_seconds
        self._agent: subprocess.Popen[bytes] | None = None
        self._workers: dict[psutil.Process, int | None] = {}
        self.gone: list[int] = []
        self._deadline: float | None = None
        self.ended_early = False

    def run(self, log: IO[bytes], follow: Callable[[], None]) -> int:
        """Start the agent and wait for it. Track its workers, because they would outlive a killed agent."""
        if self.ended_early:
            return command.STOPPED
        environment = {**os.environ, **self._plan.environment}
        self._agent = subprocess.Popen(
            self._plan.argv,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        if self.ended_early:  # a signal arrived during startup
            self.kill()
        while True:
            try:
                status = self._agent.wait(timeout=0.2)
                self._note_workers(self._agent)
                return status
            except subprocess.TimeoutExpired:
                self._note_workers(self._agent)
                follow()
                if self._deadline is not None and time.monotonic() > self._deadline:
                    self.kill()

    def _note_workers(self, agent: "subprocess.Popen[bytes]") -> None:
        for worker in _workers_of(agent.pid):
            if self._workers.get(worker) is None:
                self._workers[worker] = _rank_of(worker)
        for worker, rank in self._workers.items():
            if rank is not None and rank not in self.gone and not _runs(worker):
                self.gone.append(rank)

    def pass_on(self, number: int, _frame: FrameType | None) -> None:
        if listening(self._status) < self._plan.workers:
            self.ended_early = True
            self.kill()
            return
        self._deadline = self._deadline or time.monotonic() + self._grace
        self._send(number if number in _PASSED_ON else signal.SIGTERM)

    def kill(self) -> None:
        """Kill all remaining processes individually, because torchrun starts each worker in its own session."""
        if self._agent is None:
            return
        alive = self._agent.poll() is None
        for worker in {*self._workers, *_workers_of(self._agent.pid)}:
            _send(worker, signal.SIGKILL)
        if self._plan.hosts:
            hosts.send(self._plan.hosts, signal.SIGKILL, self._status)
        if alive:
            self._agent.kill()
            self._agent.wait()

    def _send(self, number: int) -> None:
        assert self._agent is not None
        if self._plan.hosts:
            hosts.send(self._plan.hosts, number, self._status)
            return
        for process in _workers_of(self._agent.pid):
            _send(process, number)


def _die_with_parent() -> None:
    """Have the kernel send the agent SIGTERM when the launcher dies. Runs in the agent. Works only on Linux."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _workers_of(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children()
    except psutil.NoSuchProcess:
        return []


def _rank_of(worker: psutil.Process) -> int | None:
    """Return a worker's rank, or None if its rank is not set, or not yet (for example, between fork and exec)."""
    try:
        rank = worker.environ().get("RANK")
    except psutil.Error:
        return None
    return int(rank) if rank else None


def _runs(worker: psutil.Process) -> bool:
    try:
        return worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _send(process: psutil.Process, number: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)
