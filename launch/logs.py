"""What a launcher shows of its workers: the output of rank 0 as it comes, and after a failure which rank failed."""

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

#: Lines at the end of a log that are shown after a failure.
_TAIL = 30
#: Seconds to wait until ranks that fail together have recorded it.
_WAIT = 1.0
#: In the first line of an explanation: a rank was killed by its user, root or the kernel.
WAS_KILLED = "was killed by SIGKILL"
#: The same, if the signal is unknown.
WAS_SILENT = "ended without reporting an error"

#: How gloo, NCCL and torch's store report in the output of a rank that another rank is gone.
_PEER_IS_GONE = re.compile(
    r"gloo/transport/\S+ .*(reset by peer|closed by peer|Broken pipe|refused)"
    r"|ncclRemoteError|remote process exited|Connection was likely closed"
)
#: How torchrun reports the rank that failed first.
_ROOT_CAUSE = re.compile(r"Root Cause.*?rank +: (\d+) .*?exitcode +: (-?\d+)", re.DOTALL)

#: How DeepSpeed's launcher reports the signal that ended the first process to fail, without its rank; with a hostfile,
#: pdsh puts the host in front.
_DEEPSPEED_SIGNAL = re.compile(r"^(?:(\S+): )?\[.*exits with return code = -(\d+)", re.MULTILINE)


class Output:
    """The logs of one start, as seen by this launcher."""

    def __init__(self, logs: Path, status: Path | None = None, apart: float = 60) -> None:
        """
        Args:
            logs: the run's folder of logs.
            status: the launcher's folder of status files, see :mod:`artefacts.worker_status`.
            apart: seconds by which the launcher of another node may have started before this one.
        """
        self._logs, self._first, self._apart = logs, status and status / "first", apart
        self._followed: IO[bytes] | None = None
        self._node = logs / f"node-{node_name()}.txt"
        logs.mkdir(parents=True, exist_ok=True)
        with open(self._node, "ab") as file:
            file.write(header("launcher"))
        # By the clock of the file system, like the times of other nodes' files.
        self._began = self._node.stat().st_mtime

    def open_node_log(self) -> IO[bytes]:
        """Open the log for the agent's output, and for any output that is not from a rank."""
        return open(self._node, "ab")

    def follow(self) -> None:
        """Show the output of rank 0 since the last call, if rank 0 belongs to this launcher."""
        if self._followed is None and self._first and self._first.exists():
            self._followed = open(rank_log(self._logs, 0), "rb")  # noqa: SIM115 - followed until the end
            self._followed.seek(int(self._first.read_text()))
        if self._followed is None:
            return
        begins = self._followed.tell()
        text = self._followed.read()
        # Its error is shown later, after the rank that failed first.
        failed = [note["at"] for note in self._failures() if note["rank"] == 0]
        _show(text[: max(0, failed[0] - begins)] if failed else text)

    def explain(self, gone: Mapping[str, Sequence[int]] | None = None, one_host: bool = False) -> str:
        """Why the workers failed: the rank that failed first and the end of its log; empty if nothing is known.

        Args:
            gone: host -> ranks in the order in which they may have ended, for DeepSpeed's launcher, which does not
                report it.
            one_host: all ranks are on this host.
        """
        time.sleep(_WAIT)
        self.follow()
        noted = self._failures()
        reported = [note["rank"] for note in noted]
        for node, log in self._node_logs().items():
            # A rank that was killed could not report it, and what other ranks report is a consequence.
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
        """The rank whose end made ``rank`` fail, which was the first to report an error; None if it failed by itself.

        On one host that can only be a rank that reported nothing. If ranks end within a second of each other,
        DeepSpeed's launcher may name a rank that was not the first.
        """
        silent = [other for other in (gone or {}).get(node_name(), []) if other not in reported]
        if silent and _PEER_IS_GONE.search(_since_header(rank_log(self._logs, rank))):
            return silent[0]
        return None

    def timed_out(self) -> bool:
        """Whether torchrun gave up waiting for other nodes."""
        return any("RendezvousTimeoutError" in log for log in self._node_logs().values())

    def joined(self) -> list[str]:
        """Nodes whose launchers have started, including this one."""
        return sorted(self._node_logs())

    def _failures(self) -> list[dict[str, Any]]:
        return [note for note in failures(self._logs) if self._is_new(failure_note(self._logs, note["rank"]))]

    def _node_logs(self) -> dict[str, str]:
        """The log of every node in this start."""
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
    ranks: Sequence[int]  # candidates: it was one of these
    by: str
    host: str


def _killed(log: str, node: str, silent: Mapping[str, Sequence[int]]) -> _Killed | None:
    """The rank that a node's agent reports as killed; ``silent``: host -> ranks that reported no error."""
    if (match := _ROOT_CAUSE.search(log)) and int(match[2]) < 0:
        return _Killed([int(match[1])], signal.Signals(-int(match[2])).name, node)
    for host, number in _DEEPSPEED_SIGNAL.findall(log):
        if ranks := silent.get(host or node):
            # The order in which the ranks of another host ended is unknown.
            return _Killed(ranks if host else ranks[:1], signal.Signals(int(number)).name, host or node)
    return None


def _since_header(log: Path) -> str:
    """The part of a log since its last start."""
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
