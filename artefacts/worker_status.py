"""Files by which a training process and its launcher communicate.

The launcher names two folders in the environment. Without them nothing is written.

``MILLRACE_STATUS`` belongs to the launcher:

- ``listening-RANK``: the rank handles signals.
- ``status``: the exit status of a rank that is neither success nor failure.
- ``first``: rank 0 is one of this launcher's ranks, and where its output begins.

``MILLRACE_LOGS`` belongs to the run:

- ``rank-00003.txt``: the output of a rank, over all starts.
- ``failed-00003.json``: the rank failed.

This module imports no torch, because signals must be handled while torch is being imported.
"""

import json
import os
import socket
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

STATUS, LOGS, TERMINAL = "MILLRACE_STATUS", "MILLRACE_LOGS", "MILLRACE_TERMINAL"


def node_name() -> str:
    """The name of this node: SLURM's name, else the host name."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def rank_log(logs: Path, rank: int) -> Path:
    return logs / f"rank-{rank:05d}.txt"


def failure_note(logs: Path, rank: int) -> Path:
    return logs / f"failed-{rank:05d}.json"


def header(what: str) -> bytes:
    """The line that begins the output of a start in a log."""
    return f"--- {datetime.now():%Y-%m-%d %H:%M:%S} {node_name()}, process {os.getpid()}, {what}\n".encode()


class Worker:
    """A rank, as seen by its launcher."""

    def __init__(self) -> None:
        status, logs = os.environ.get(STATUS), os.environ.get(LOGS)
        self._status, self._logs = status and Path(status), logs and Path(logs)
        self.rank = int(os.environ.get("RANK", "0"))

    @property
    def is_launched(self) -> bool:
        """Whether Millrace's launcher has started this process and checked its arguments."""
        return bool(self._status)

    def keep_output(self) -> None:
        """Redirect all output of this process, including that of native code, to the rank's log."""
        if not self._logs:
            return
        failure_note(self._logs, self.rank).unlink(missing_ok=True)
        file = os.open(rank_log(self._logs, self.rank), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        os.write(file, header(f"rank {self.rank}"))
        begins = os.fstat(file).st_size
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.close(file)
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        if self._status and self.rank == 0:
            written = self._status / ".first"
            written.write_text(str(begins))
            written.rename(self._status / "first")

    def report_listening(self) -> None:
        """Report that this rank handles signals. Until then, the launcher would kill it."""
        if self._status:
            (self._status / f"listening-{self.rank}").touch()

    def write_status(self, status: int, message: str) -> bool:
        """Write the exit status for the launcher; False: there is no launcher, so the process has to exit with it."""
        if not self._status:
            return False
        (self._status / "status").write_text(f"{status} {message}", encoding="utf-8")
        return True

    def note_failure(self) -> None:
        """Record that this rank fails, before it prints why."""
        if self._logs:
            note = {"rank": self.rank, "node": node_name(), "time": time.time(), "at": os.fstat(1).st_size}
            failure_note(self._logs, self.rank).write_text(json.dumps(note), encoding="utf-8")


def listening(status: Path) -> int:
    """The number of ranks that handle signals."""
    return len(list(status.glob("listening-*")))


def read_status(status: Path) -> tuple[int, str] | None:
    """The exit status that ranks wrote, and its message; None: they wrote none."""
    file = status / "status"
    if not file.exists():
        return None
    code, _, message = file.read_text(encoding="utf-8").partition(" ")
    return int(code), message


def failures(logs: Path) -> list[dict[str, Any]]:
    """The ranks that failed, in order of time: ``rank``, ``node``, ``time``, and ``at``, the position in its log."""
    notes = []
    for file in logs.glob("failed-*.json"):
        try:
            notes.append(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            continue  # incomplete, or removed by a rank that starts
    return sorted(notes, key=lambda note: note["time"])
