"""What a training process and the launcher that started it leave for each other in files.

Two folders, which the launcher names in the environment; without them nothing happens here:

``MILLRACE_STATUS``, the launcher's own: ``listening-RANK`` says that a rank hears signals, ``status`` what a rank ended
on that is neither success nor failure, ``first`` that rank 0 is among this launcher's, and where its output begins.

``MILLRACE_LOGS``, the run's: ``rank-00003.txt`` is all that a rank says, in this start and those before, and
``failed-00003.json`` that it failed. Imports no torch: signals must be heard while that is still loading.
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
    """This node's name: SLURM's, else the host's."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def rank_log(logs: Path, rank: int) -> Path:
    return logs / f"rank-{rank:05d}.txt"


def failure_note(logs: Path, rank: int) -> Path:
    return logs / f"failed-{rank:05d}.json"


def header(what: str) -> bytes:
    """The line that begins a start's part of a log."""
    return f"--- {datetime.now():%Y-%m-%d %H:%M:%S} {node_name()}, process {os.getpid()}, {what}\n".encode()


class Worker:
    """The side of a rank."""

    def __init__(self) -> None:
        status, logs = os.environ.get(STATUS), os.environ.get(LOGS)
        self._status, self._logs = status and Path(status), logs and Path(logs)
        self.rank = int(os.environ.get("RANK", "0"))

    @property
    def is_launched(self) -> bool:
        """Whether a launcher of ours has started this process, and looked at its arguments."""
        return bool(self._status)

    def keep_output(self) -> None:
        """From now on all output of this process goes to the rank's log, that of native code too."""
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
        """A signal from here on is heard; before, the launcher would kill."""
        if self._status:
            (self._status / f"listening-{self.rank}").touch()

    def write_status(self, status: int, message: str) -> bool:
        """Leave the exit status for the launcher; False: there is none, and the process itself must exit with it."""
        if not self._status:
            return False
        (self._status / "status").write_text(f"{status} {message}", encoding="utf-8")
        return True

    def note_failure(self) -> None:
        """Say that this rank fails, before it prints why."""
        if self._logs:
            note = {"rank": self.rank, "node": node_name(), "time": time.time(), "at": os.fstat(1).st_size}
            failure_note(self._logs, self.rank).write_text(json.dumps(note), encoding="utf-8")


def listening(status: Path) -> int:
    """How many ranks hear signals."""
    return len(list(status.glob("listening-*")))


def read_status(status: Path) -> tuple[int, str] | None:
    """What ranks ended on, and the message with it; None: they left none."""
    file = status / "status"
    if not file.exists():
        return None
    code, _, message = file.read_text(encoding="utf-8").partition(" ")
    return int(code), message


def failures(logs: Path) -> list[dict[str, Any]]:
    """Ranks that said that they failed, the first one first: ``rank``, ``node``, ``time`` and, in its log, ``at``."""
    notes = []
    for file in logs.glob("failed-*.json"):
        try:
            notes.append(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            continue  # half written, or removed by a rank that starts
    return sorted(notes, key=lambda note: note["time"])
