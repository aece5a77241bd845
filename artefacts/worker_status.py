"""Files that a training process and its launcher use to communicate.

The launcher names two folders in environment variables. Without them, nothing is written.

``MILLRACE_STATUS`` belongs to the launcher:

- ``listening-RANK`` exists if the rank handles signals.
- ``status`` contains the exit status of a rank that was stopped by a signal or rejected the request.
- ``first`` exists if rank 0 is one of this launcher's ranks. It contains the offset in rank 0's log where this
  start's output begins.

``MILLRACE_LOGS`` belongs to the run:

- ``rank-00003.txt`` contains the rank's output from every start of the run.
- ``failed-00003.json`` exists if the rank failed.

This module does not import torch, because signals must be handled while torch is being imported.
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
    """Return this node's name: SLURM's name if there is one, otherwise the host name."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def rank_log(logs: Path, rank: int) -> Path:
    return logs / f"rank-{rank:05d}.txt"


def failure_note(logs: Path, rank: int) -> Path:
    return logs / f"failed-{rank:05d}.json"


def header(what: str) -> bytes:
    """Return the line that begins each start's output in a log."""
    return f"--- {datetime.now():%Y-%m-%d %H:%M:%S} {node_name()}, process {os.getpid()}, {what}\n".encode()


class Worker:
    """A rank's side of the communication with its launcher."""

    def __init__(self) -> None:
        status, logs = os.environ.get(STATUS), os.environ.get(LOGS)
        self._status, self._logs = status and Path(status), logs and Path(logs)
        self.rank = int(os.environ.get("RANK", "0"))

    @property
    def is_launched(self) -> bool:
        """Whether Millrace's launcher started this process. The launcher has then already checked the arguments."""
        return bool(self._status)

    def keep_output(self) -> None:
        """Redirect all output of this process to the rank's log, including the output of native code."""
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
        """Report that this rank handles signals. Before that, the launcher would kill it rather than ask it to stop."""
        if self._status:
            (self._status / f"listening-{self.rank}").touch()

    def write_status(self, status: int, message: str) -> bool:
        """Write the exit status for the launcher.

        Returns False if there is no launcher. The caller must then exit with this status.
        """
        if not self._status:
            return False
        (self._status / "status").write_text(f"{status} {message}", encoding="utf-8")
        return True

    def note_failure(self) -> None:
        """Record that this rank failed, and the current size of its log. Call this before printing the error."""
        if self._logs:
            note = {"rank": self.rank, "node": node_name(), "time": time.time(), "at": os.fstat(1).st_size}
            failure_note(self._logs, self.rank).write_text(json.dumps(note), encoding="utf-8")


def listening(status: Path) -> int:
    """Return the number of ranks that handle signals."""
    return len(list(status.glob("listening-*")))


def read_status(status: Path) -> tuple[int, str] | None:
    """Return the exit status and the message that a rank wrote, or None if no rank wrote any."""
    file = status / "status"
    if not file.exists():
        return None
    code, _, message = file.read_text(encoding="utf-8").partition(" ")
    return int(code), message


def failures(logs: Path) -> list[dict[str, Any]]:
    """List the failed ranks, earliest first: ``rank``, ``node``, ``time`` and ``at`` (the log's size at that time)."""
    notes = []
    for file in logs.glob("failed-*.json"):
        try:
            notes.append(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            continue  # incomplete, or just removed by a rank that is starting
    return sorted(notes, key=lambda note: note["time"])
