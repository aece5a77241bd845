"""Run a start's workers: pass signals on, end all when one dies, show what they say, and tell how it ended."""

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

#: Every one is passed on as itself, but for those that workers do not know, which become SIGTERM.
_PASSED_ON = (signal.SIGTERM, signal.SIGUSR1)
_AS_TERM = (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_PR_SET_PDEATHSIG = 1

#: A plan, given the variables by which workers find the folders of this start.
Planner = Callable[[Mapping[str, str]], Plan]


class Ended:
    """How a start ended.

    Attributes:
        status: 0, 1 or 75.
        output: to explain a failure from.
        gone: ranks of each host in the order in which they ended, or of other hosts than this one, by their numbers.
    """

    def __init__(self, status: int, output: Output, gone: Mapping[str, Sequence[int]] | None = None) -> None:
        self.status, self.output, self.gone = status, output, gone or {}


def supervise(planner: Planner, logs: Path, shared: Path | None, grace_seconds: int) -> Ended:
    """Run a plan to its end.

    A signal goes to the workers themselves: they save, leave their status in a file and exit 0, and their agent ends
    without a fuss. Before they listen there is nothing to save, and all are ended at once. Workers that do not end
    within the grace time are killed.

    Args:
        planner: makes the plan.
        logs: the run's folder of logs.
        shared: folder that all hosts see, for the status files where workers are on other hosts; None: they are here.
        grace_seconds: time that workers have to save.

    Raises:
        RequestError: a worker was asked for the impossible; with its words.
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
        left = read_status(folder)
        if watched.ended_early:
            return Ended(command.STOPPED, output)
        if left and left[0] == command.WRONG_REQUEST:
            raise RequestError(left[1])
        if left:
            return Ended(left[0], output)
        gone = plan.ranks_of_hosts() if plan.hosts else {node_name(): watched.gone}
        return Ended(command.FAILED if status else command.DONE, output, gone)


@contextmanager
def _status_folder(shared: Path | None) -> Iterator[Path]:
    if shared is None:
        with tempfile.TemporaryDirectory(prefix="millrace-") as folder:
            yield Path(folder)
        return
    shared.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".launch-", dir=shared)).absolute()
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _terminal() -> dict[str, str]:
    """Tells workers, whose output goes to files, that it is looked at on a terminal, and how wide that is."""
    if not sys.stdout.isatty():
        return {}
    return {TERMINAL: "1", "COLUMNS": str(shutil.get_terminal_size().columns)}


class _Watched:
    """The agent, the workers it starts, and what to do with a signal."""

    def __init__(self, plan: Plan, status: Path, grace_seconds: int) -> None:
        self._plan, self._status, self._grace = plan, status, grace_seconds
        self._agent: subprocess.Popen[bytes] | None = None
        self._workers: dict[psutil.Process, int | None] = {}
        self.gone: list[int] = []
        self._deadline: float | None = None
        self.ended_early = False

    def run(self, log: IO[bytes], follow: Callable[[], None]) -> int:
        """Start the agent and wait for it, noting its workers, which would outlive its death."""
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
        if self.ended_early:  # by a signal while it was being started
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
        """End whatever is left; torchrun gives each worker a session of its own, so no group holds them all."""
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
    """In the agent, before it starts: SIGTERM when the launcher dies, at which it ends its workers. Linux alone can."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _workers_of(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children()
    except psutil.NoSuchProcess:
        return []


def _rank_of(worker: psutil.Process) -> int | None:
    """Its rank; None: it has none, or not yet, as between fork and exec."""
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
