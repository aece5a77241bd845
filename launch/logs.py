"""What a launcher shows of its workers: rank 0's output as it comes, and after a failure the first failing rank's."""

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

#: Lines of a log that tell of a failure.
_TAIL = 30
#: Seconds in which ranks that fail together write down that they do.
_SETTLE = 1.0
#: In the first line of an explanation: a rank was ended by a signal that only root, its user or the kernel send.
WAS_KILLED = "was killed by SIGKILL"
#: The same where the signal is not known.
WAS_SILENT = "ended without reporting an error"

#: How gloo, NCCL and torch's store report, in a rank's output, that another rank is gone.
_PEER_IS_GONE = re.compile(
    r"gloo/transport/\S+ .*(reset by peer|closed by peer|Broken pipe|refused)"
    r"|ncclRemoteError|remote process exited|Connection was likely closed"
)
#: How torchrun tells of the rank that failed first.
_ROOT_CAUSE = re.compile(r"Root Cause.*?rank +: (\d+) .*?exitcode +: (-?\d+)", re.DOTALL)

#: How DeepSpeed's launcher tells of the signal by which the process that failed first ended, which it does not name;
#: over a hostfile pdsh puts the host before it.
_DEEPSPEEDS = re.compile(r"^(?:(\S+): )?\[.*exits with return code = -(\d+)", re.MULTILINE)


class Output:
    """The logs of one start, as this launcher sees them."""

    def __init__(self, logs: Path, status: Path | None = None, apart: float = 60) -> None:
        """
        Args:
            logs: the run's folder of logs.
            status: the launcher's own, see :mod:`artefacts.worker_status`.
            apart: seconds by which another node's launcher of this start may have begun before this one.
        """
        self._logs, self._first, self._apart = logs, status and status / "first", apart
        self._followed: IO[bytes] | None = None
        self._node = logs / f"node-{node_name()}.txt"
        logs.mkdir(parents=True, exist_ok=True)
        with open(self._node, "ab") as file:
            file.write(header("launcher"))
        # By the clock of the file system that the others' files are on.
        self._began = self._node.stat().st_mtime

    def open_node_log(self) -> IO[bytes]:
        """Where goes what the agent says, and what is not of a rank."""
        return open(self._node, "ab")

    def follow(self) -> None:
        """Show what rank 0 has said since the last call, if it is one of this launcher's."""
        if self._followed is None and self._first and self._first.exists():
            self._followed = open(rank_log(self._logs, 0), "rb")  # noqa: SIM115 - followed until the end
            self._followed.seek(int(self._first.read_text()))
        if self._followed is None:
            return
        begins = self._followed.tell()
        text = self._followed.read()
        # Why it fails is shown after what failed first.
        failed = [note["at"] for note in self._failures() if note["rank"] == 0]
        _show(text[: max(0, failed[0] - begins)] if failed else text)

    def explain(self, gone: Mapping[str, Sequence[int]] | None = None, one_host: bool = False) -> str:
        """Why the workers failed: the rank that did so first and the end of what it said; empty: rank 0 has told.

        Args:
            gone: ranks of each host, where DeepSpeed's launcher has started them, in the order in which they may have
                ended, which the launcher does not report.
            one_host: this host has all ranks.
        """
        time.sleep(_SETTLE)
        self.follow()
        noted = self._failures()
        spoke = [note["rank"] for note in noted]
        for node, said in self._node_logs().items():
            # One that was killed could write nothing; what others say of it came after.
            silent = {host: [rank for rank in ranks if rank not in spoke] for host, ranks in (gone or {}).items()}
            killed = _killed(said, node, silent if node == node_name() else {})
            if killed and not {*killed.ranks} & {*spoke}:
                others = "".join(f" or {rank}" for rank in killed.ranks[1:])
                hint = " (by the kernel, if memory ran out)" if killed.by == "SIGKILL" else ""
                told = f"was killed by {killed.by} on {killed.host}{hint}"
                return self._of_rank(killed.ranks[0], f"{others.lstrip()} {told}".lstrip())
        if one_host and noted and (first := self._lost_by(noted[0]["rank"], spoke, gone)) is not None:
            return self._of_rank(first, f"{WAS_SILENT} on {node_name()} (killed by the kernel, if memory ran out)")
        if noted:
            others = f", {len(noted) - 1} more after it" if len(noted) > 1 else ""
            return self._of_rank(noted[0]["rank"], f"on {noted[0]['node']} failed first{others}")
        said_by = {node: said for node, said in self._node_logs().items() if said.strip()}
        return "\n".join(f"the end of {self._log_of(node)}:\n{_end(said)}" for node, said in said_by.items())

    def _lost_by(self, rank: int, spoke: Sequence[int], gone: Mapping[str, Sequence[int]] | None) -> int | None:
        """The rank whose end made ``rank`` fail, the first to report an error; None: it failed by itself.

        On one host that can only be one that reported nothing. When ranks end within a second of each other,
        DeepSpeed's launcher may name another than the first.
        """
        silent = [each for each in (gone or {}).get(node_name(), []) if each not in spoke]
        if silent and _PEER_IS_GONE.search(_since_header(rank_log(self._logs, rank))):
            return silent[0]
        return None

    def timed_out(self) -> bool:
        """Whether torchrun gave up waiting for other nodes."""
        return any("RendezvousTimeoutError" in said for said in self._node_logs().values())

    def joined(self) -> list[str]:
        """Nodes whose launchers have begun, with this one."""
        return sorted(self._node_logs())

    def _failures(self) -> list[dict[str, Any]]:
        return [note for note in failures(self._logs) if self._is_new(failure_note(self._logs, note["rank"]))]

    def _node_logs(self) -> dict[str, str]:
        """What each node has said in this start."""
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
    ranks: Sequence[int]  # one of these
    by: str
    host: str


def _killed(said: str, node: str, silent: Mapping[str, Sequence[int]]) -> _Killed | None:
    """The rank that a node's agent reports as killed; ``silent``: those of each host that reported no error."""
    if (found := _ROOT_CAUSE.search(said)) and int(found[2]) < 0:
        return _Killed([int(found[1])], signal.Signals(-int(found[2])).name, node)
    for host, number in _DEEPSPEEDS.findall(said):
        if ranks := silent.get(host or node):
            # In what order those of another host ended nobody saw.
            return _Killed(ranks if host else ranks[:1], signal.Signals(int(number)).name, host or node)
    return None


def _since_header(log: Path) -> str:
    """What a log says of its last start."""
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
