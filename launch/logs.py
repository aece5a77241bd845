"""Shows rank 0's output as it arrives and, after a failure, the end of the failed rank's log."""

import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from artefacts.worker_status import failure_note, failures, header, node_name, rank_log

#: Number of lines at the end of a log to show after a failure.
_TAIL = 30
#: Seconds to wait for ranks that fail at the same time to record their failures.
_WAIT = 1.0
#: Text in the first line of an explanation if a rank was killed by its user, root or the kernel.
WAS_KILLED = "was killed by SIGKILL"
#: The same, for a rank that was killed by an unknown signal.
WAS_SILENT = "exited without reporting an error"

#: Matches the messages of gloo, NCCL and torch's store in a rank's output when another rank is gone.
_PEER_IS_GONE = re.compile(
    r"gloo/transport/\S+ .*(reset by peer|closed by peer|Broken pipe|refused)"
    r"|ncclRemoteError|remote process exited|Connection was likely closed"
)
#: Matches torchrun's report of the rank that failed first.
_ROOT_CAUSE = re.compile(r"Root Cause.*?rank +: (\d+) .*?exitcode +: (-?\d+)", re.DOTALL)

#: Matches what DeepSpeed's launcher prints about the signal that killed the first process to fail. The message does not
#: name the rank. With a hostfile, pdsh prefixes the line with the host.
_DEEPSPEED_SIGNAL = re.compile(r"^(?:(\S+): )?\[.*exits with return code = -(\d+)", re.MULTILINE)


class Output:
    """The logs that this launcher can see, from one start of the workers."""

    def __init__(self, logs: Path, status: Path | None = None, apart: float = 60) -> None:
        """
        Args:
            logs: the run's log folder.
            status: the launcher's folder of status files; see :mod:`artefacts.worker_status`.
            apart: maximum number of seconds by which another node's launcher may have started before this one.
        """
        self._logs, self._first, self._apart = logs, status and status / "first", apart
        self._followed: IO[bytes] | None = None
        self._node = logs / f"node-{node_name()}.txt"
        logs.mkdir(parents=True, exist_ok=True)
        with open(self._node, "ab") as file:
            file.write(header("launcher"))
        # Use the file system's clock, because other nodes' file times come from it too.
        self._began = self._node.stat().st_mtime

    def open_node_log(self) -> IO[bytes]:
        """Open the log for the agent's output and for any other output that does not come from a rank."""
        return open(self._node, "ab")

    def follow(self) -> None:
        """Show what rank 0 has printed since the last call, if this launcher started rank 0."""
        if self._followed is None and self._first and self._first.exists():
            self._followed = open(rank_log(self._logs, 0), "rb")  # noqa: SIM115 - followed until the end
            self._followed.seek(int(self._first.read_text()))
        if self._followed is None:
            return
        begins = self._followed.tell()
        text = self._followed.read()
        # Hold back rank 0's error. If rank 0 failed first, ``explain`` shows the end of its log.
        failed = [note["at"] for note in self._failures() if note["rank"] == 0]
        _show(text[: max(0, failed[0] - begins)] if failed else text)

    def explain(self, gone: Mapping[str, Sequence[int]] | None = None, one_host: bool = False) -> str:
        """Explain why the workers failed: name the rank that failed first, and show the end of its log.

        If that rank is unknown, show the end of each node's log instead.

        Args:
            gone: host -> ranks, in the order in which they may have exited. Needed for DeepSpeed's launcher, which does
                not report the order.
            one_host: whether all ranks are on this host.
        """
        time.sleep(_WAIT)
        self.follow()
        noted = self._failures()
        reported = [note["rank"] for note in noted]
        for node, log in self._node_logs().items():
            # A killed rank could not report anything, and the errors that other ranks report are only a consequence.
            silent = {host: [rank for rank in ranks if rank not in reported] for host, ranks in (gone or {}).items()}
            killed = _killed(log, node, silent if node == node_name() else {})
            if killed and not {*killed.ranks} & {*reported}:
                others = "".join(f" or {rank}" for rank in killed.ranks[1:])
                hint = " (by the kernel, if memory ran out)" if killed.by == "SIGKILL" else ""
                what = f"was killed by {killed.by} on {killed.host}{hint}"
                return self._of_rank(killed.ranks[0], f"{others.lstrip()} {what}".lstrip())
        if one_host and noted and (first := self._lost_by(noted[0]["rank"], reported, gone)) is not None:
            return self._of_rank(first, f"{WAS_SILENT} on {node_name()} (killed by the kernel, if memory ran out)")
        if noted:
            others = f", {len(noted) - 1} more after it" if len(noted) > 1 else ""
            return self._of_rank(noted[0]["rank"], f"on {noted[0]['node']} failed first{others}")
        logs = {node: log for node, log in self._node_logs().items() if log.strip()}
        return "\n".join(f"the end of {self._log_of(node)}:\n{_end(log)}" for node, log in logs.items())

    def _lost_by(self, rank: int, reported: Sequence[int], gone: Mapping[str, Sequence[int]] | None) -> int | None:
        """Return the rank whose exit brought down ``rank``, or None if ``rank`` failed on its own.

        Only a rank on this host that exited without reporting an error can be the cause. With DeepSpeed's launcher, the
        exit order of ranks that exit within a second of each other may be wrong.
        """
        silent = [other for other in (gone or {}).get(node_name(), []) if other not in reported]
        if silent and _PEER_IS_GONE.search(_since_header(rank_log(self._logs, rank))):
            return silent[0]
        return None

    def timed_out(self) -> bool:
        """Return whether torchrun gave up waiting for other nodes."""
        return any("RendezvousTimeoutError" in log for log in self._node_logs().values())

    def joined(self) -> list[str]:
        """List the nodes whose launchers have started, including this node."""
        return sorted(self._node_logs())

    def _failures(self) -> list[dict[str, Any]]:
        return [note for note in failures(self._logs) if self._is_new(failure_note(self._logs, note["rank"]))]

    def _node_logs(self) -> dict[str, str]:
        """Return the log that each node's agent has written since this start, by node name."""
        files = [file for file in self._logs.glob("node-*.txt") if self._is_new(file, self._apart)]
        return {file.stem.removeprefix("node-"): _since_header(file) for file in files}

    def _log_of(self, node: str) -> Path:
        return self._logs / f"node-{node}.txt"

    def _is_new(self, file: Path, apart: float = 0) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return file.stat().st_mtime >= self._began - apart
        return False

    def _of_rank(self, rank: int, what: str) -> str:
        log = rank_log(self._logs, rank)
        return f"rank {rank} {what}; the end of {log}:\n{_end(_since_header(log))}"


class _Killed(NamedTuple):
    ranks: Sequence[int]  # the candidates, one of which was killed
    by: str
    host: str


def _killed(log: str, node: str, silent: Mapping[str, Sequence[int]]) -> _Killed | None:
    """Return the rank that a node's agent reports as killed, or None. There may be several candidates for it.

    ``silent`` maps each host to its ranks that reported no error.
    """
    if (match := _ROOT_CAUSE.search(log)) and int(match[2]) < 0:
        return _Killed([int(match[1])], signal.Signals(-int(match[2])).name, node)
    for host, number in _DEEPSPEED_SIGNAL.findall(log):
        if ranks := silent.get(host or node):
            # The order in which another host's ranks exited is unknown.
            return _Killed(ranks if host else ranks[:1], signal.Signals(int(number)).name, host or node)
    return None


def _since_header(log: Path) -> str:
    """Return the part of a log that was written since the last start."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    return text.removeprefix("--- ").rpartition("\n--- ")[2].partition("\n")[2]


def _end(text: str) -> str:
    lines = [line.rpartition("\r")[2] for line in text.splitlines()]
    return "\n".join(f"  {line}" for line in lines[-_TAIL:])


def _show(text: bytes) -> None:
    if not text:
        return
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
        while text:
            text = text[os.write(1, text) :]
