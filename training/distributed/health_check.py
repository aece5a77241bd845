"""Checks the network before anything is loaded, and reports hung or slow ranks.

Each rank records every step in the rendezvous store, which works even if the network between the ranks does not.
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

#: Number of elements that a rank sends in one all-to-all, and number of repetitions.
_NUMBERS, _ROUNDS = 2**20, 3
#: A rank is slow if its local work takes more than this multiple of the (lower) median, and this many seconds longer.
_SLOW_TIMES, _SLOW_SECONDS = 4.0, 0.05


def probe(ranks: Ranks, store: dist.Store, seconds: int) -> None:
    """Run an all-reduce, an all-to-all and some local work on all ranks within ``seconds``; 0 skips the check.

    If they do not finish in time, this process reports the ranks that did not take part and exits with status 1, since
    a collective cannot be interrupted. Rank 0 warns about ranks that compute or copy much more slowly than most.
    """
    if not seconds or ranks.size == 1:
        return
    with _Limit(ranks, store, seconds) as limit:
        limit.begin("an all-reduce")
        total = torch.ones(1, device=ranks.device)
        dist.all_reduce(total)
        _synchronize(ranks)
        limit.begin("an all-to-all")
        _all_to_all(ranks)
        limit.begin("local work")
        times = torch.tensor([_local_work_seconds(ranks)], device=ranks.device)
        gathered = [torch.zeros_like(times) for _ in range(ranks.size)]
        dist.all_gather(gathered, times)
        for line in slow_ranks([float(time) for time in gathered], limit.nodes()) if ranks.first else ():
            warn(line)


def slow_ranks(seconds: list[float], nodes: list[str]) -> list[str]:
    """Return a warning for each rank that took much longer for the same work than most ranks."""
    usual = sorted(seconds)[(len(seconds) - 1) // 2]
    return [
        f"rank {rank} on {nodes[rank]} is slow: it took {took:.2f} s for what most ranks do in {usual:.2f} s"
        for rank, took in enumerate(seconds)
        if took > _SLOW_TIMES * usual and took - usual > _SLOW_SECONDS
    ]


class _Limit:
    """Terminates the process if the check takes too long. Runs in a thread, because a hung collective never returns."""

    def __init__(self, ranks: Ranks, store: dist.Store, seconds: int) -> None:
        self._ranks, self._store, self._seconds = ranks, store, seconds
        self._step, self._done = "", threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._watcher_store = _second_connection(store, seconds)

    def __enter__(self) -> "_Limit":
        self._store.set(f"probe/node/{self._ranks.rank}", node_name())
        self._deadline = time.monotonic() + self._seconds
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def begin(self, step: str) -> None:
        """Record that this rank has reached a step."""
        self._store.set(f"probe/{step}/{self._ranks.rank}", "")
        self._step = step

    def nodes(self) -> list[str]:
        """Return the node name of each rank."""
        return [self._store.get(f"probe/node/{rank}").decode() for rank in range(self._ranks.size)]

    def _watch(self) -> None:
        if self._done.wait(self._seconds):
            return
        try:
            Worker().note_failure()
            log(f"error: {self._diagnosis()} (launch.probe_seconds)")
        finally:
            os._exit(1)

    def _diagnosis(self) -> str:
        try:
            return self._absent_ranks()
        except (dist.DistError, RuntimeError):
            # The store may have been hosted on the failed node.
            return (
                f"{self._step} over all {self._ranks.size} ranks did not finish within {self._seconds} s, and the "
                f"rendezvous store ({os.environ.get('MASTER_ADDR', 'on this host')}) no longer answers"
            )

    def _absent_ranks(self) -> str:
        absent = [rank for rank in range(self._ranks.size) if not self._has(f"probe/{self._step}/{rank}")]
        if not absent:
            return f"{self._step} over all {self._ranks.size} ranks did not finish within {self._seconds} s"
        named = ", ".join(f"rank {rank} on {self._node(rank)}" for rank in absent[:8])
        more = f" and {len(absent) - 8} more" if len(absent) > 8 else ""
        return f"{named}{more} did not reach {self._step} within {self._seconds} s"

    def _has(self, key: str) -> bool:
        return bool(self._watcher_store.check([key]))

    def _node(self, rank: int) -> str:
        key = f"probe/node/{rank}"
        return self._watcher_store.get(key).decode() if self._has(key) else "an unknown node"


def _second_connection(store: dist.Store, seconds: int) -> dist.Store:
    """Open a second connection to the store within ``seconds``. The first one may be blocked in a call."""
    usual = store.timeout  # type: ignore[attr-defined]  # torch's stubs lack this attribute and clone()
    store.set_timeout(datetime.timedelta(seconds=seconds))
    try:
        return store.clone()  # type: ignore[attr-defined]
    finally:
        store.set_timeout(usual)


def _all_to_all(ranks: Ranks) -> None:
    per_rank = max(1, _NUMBERS // ranks.size)
    sent = torch.full((per_rank * ranks.size,), float(ranks.rank), device=ranks.device)
    received = torch.empty_like(sent)
    for _ in range(_ROUNDS):
        dist.all_to_all_single(received, sent)
    _synchronize(ranks)


def _local_work_seconds(ranks: Ranks) -> float:
    """Return the time in seconds that matrix products and copies take, as the minimum over a few rounds."""
    size = 8192 if ranks.device.type == "cuda" else 1024  # takes tens of milliseconds on either device
    matrix = torch.randn(size, size, device=ranks.device)

    def work() -> None:
        for _ in range(4):
            (matrix @ matrix).cpu()

    return min(_timed(work, ranks) for _ in range(_ROUNDS + 1))


def _timed(work: Callable[[], None], ranks: Ranks) -> float:
    began = time.monotonic()
    work()
    _synchronize(ranks)
    return time.monotonic() - began


def _synchronize(ranks: Ranks) -> None:
    if ranks.device.type == "cuda":
        torch.cuda.synchronize(ranks.device)
    elif ranks.device.type == "mps":
        torch.mps.synchronize()
