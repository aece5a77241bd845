"""A first exchange between all ranks, before anything is loaded: who is missing, who does not answer, who is slow.

Each step of it is noted in the store that the ranks met at, which works when the network between them does not.
"""

import datetime
import os
import threading
import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from artefacts.progress import log, warn
from artefacts.worker_status import Worker, node_name
from training.distributed.ranks import Ranks

#: Numbers that a rank sends to each other in an all-to-all, in all about so many, and so often to time it.
_NUMBERS, _ROUNDS = 2**20, 3
#: A rank is slow when it takes so many times the lower median's time for its own work, and at least so many seconds.
_SLOW_TIMES, _SLOW_SECONDS = 4.0, 0.05


def probe(ranks: Ranks, store: dist.Store, seconds: int) -> None:
    """All-reduce and all-to-all over all ranks within a time limit; 0: nothing is done.

    Where they do not end in time this process says which ranks have not done their part, and ends with status 1: the
    collective that it waits in cannot be left. Rank 0 warns of ranks that compute or copy much slower than most.
    """
    if not seconds or ranks.size == 1:
        return
    with _Limit(ranks, store, seconds) as limit:
        limit.begin("an all-reduce")
        total = torch.ones(1, device=ranks.device)
        dist.all_reduce(total)
        _settle(ranks)
        limit.begin("an all-to-all")
        _all_to_all(ranks)
        limit.begin("work of its own")
        times = torch.tensor([_own_work(ranks)], device=ranks.device)
        everyone = [torch.zeros_like(times) for _ in range(ranks.size)]
        dist.all_gather(everyone, times)
        for line in slow_ranks([float(time) for time in everyone], limit.nodes()) if ranks.first else ():
            warn(line)


def slow_ranks(seconds: list[float], nodes: list[str]) -> list[str]:
    """A line for each rank that took much longer than most for the same work."""
    usual = sorted(seconds)[(len(seconds) - 1) // 2]
    return [
        f"rank {rank} on {nodes[rank]} is slow: {took:.2f} s for what most ranks do in {usual:.2f} s"
        for rank, took in enumerate(seconds)
        if took > _SLOW_TIMES * usual and took - usual > _SLOW_SECONDS
    ]


class _Limit:
    """Ends the process where a step is not done in time; a thread, since the step itself does not come back."""

    def __init__(self, ranks: Ranks, store: dist.Store, seconds: int) -> None:
        self._ranks, self._store, self._seconds = ranks, store, seconds
        self._step, self._done = "", threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._watching = _second_connection(store, seconds)

    def __enter__(self) -> "_Limit":
        self._store.set(f"probe/node/{self._ranks.rank}", node_name())
        self._deadline = time.monotonic() + self._seconds
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def begin(self, step: str) -> None:
        """Note that this rank has come to a step."""
        self._store.set(f"probe/{step}/{self._ranks.rank}", "")
        self._step = step

    def nodes(self) -> list[str]:
        """The node of each rank."""
        return [self._store.get(f"probe/node/{rank}").decode() for rank in range(self._ranks.size)]

    def _watch(self) -> None:
        if self._done.wait(self._seconds):
            return
        try:
            Worker().note_failure()
            log(f"error: {self._said()} (launch.probe_seconds)")
        finally:
            os._exit(1)

    def _said(self) -> str:
        try:
            return self._absent()
        except (dist.DistError, RuntimeError):
            # The node that holds the store may be the one that is bad.
            return (
                f"{self._step} over all {self._ranks.size} ranks did not end within {self._seconds} s, and where they "
                f"met ({os.environ.get('MASTER_ADDR', 'here')}) nobody answers any more"
            )

    def _absent(self) -> str:
        absent = [rank for rank in range(self._ranks.size) if not self._has(f"probe/{self._step}/{rank}")]
        if not absent:
            return f"{self._step} over all {self._ranks.size} ranks did not end within {self._seconds} s"
        named = ", ".join(f"rank {rank} on {self._node(rank)}" for rank in absent[:8])
        more = f" and {len(absent) - 8} more" if len(absent) > 8 else ""
        return f"{named}{more} did not come to {self._step} within {self._seconds} s"

    def _has(self, key: str) -> bool:
        return bool(self._watching.check([key]))

    def _node(self, rank: int) -> str:
        key = f"probe/node/{rank}"
        return self._watching.get(key).decode() if self._has(key) else "an unknown node"


def _second_connection(store: dist.Store, seconds: int) -> dist.Store:
    """To the same store, tried for so long: the first may be waiting in a call, and what listened may be gone."""
    usual = store.timeout  # type: ignore[attr-defined]  # its stubs leave both out
    store.set_timeout(datetime.timedelta(seconds=seconds))
    try:
        return store.clone()  # type: ignore[attr-defined]
    finally:
        store.set_timeout(usual)


def _all_to_all(ranks: Ranks) -> None:
    each = max(1, _NUMBERS // ranks.size)
    sent = torch.full((each * ranks.size,), float(ranks.rank), device=ranks.device)
    received = torch.empty_like(sent)
    for _ in range(_ROUNDS):
        dist.all_to_all_single(received, sent)
    _settle(ranks)


def _own_work(ranks: Ranks) -> float:
    """Seconds for a product and a copy, of which the first is not counted."""
    size = 8192 if ranks.device.type == "cuda" else 1024  # some tens of milliseconds on either
    matrix = torch.randn(size, size, device=ranks.device)

    def work() -> None:
        for _ in range(4):
            (matrix @ matrix).cpu()

    return min(_timed(work, ranks) for _ in range(_ROUNDS + 1))


def _timed(work: Callable[[], None], ranks: Ranks) -> float:
    began = time.monotonic()
    work()
    _settle(ranks)
    return time.monotonic() - began


def _settle(ranks: Ranks) -> None:
    if ranks.device.type == "cuda":
        torch.cuda.synchronize(ranks.device)
    elif ranks.device.type == "mps":
        torch.mps.synchronize()
