"""Ranks that are missing, unresponsive or slow are named in the message."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.plan import free_port
from tests.support.fork_server import redirect, start
from tests.support.waiting import PATIENCE
from training.distributed import join as joining
from training.distributed.health_check import slow_ranks
from training.distributed.join import join
from training.distributed.ranks import destroy_process_group

pytestmark = [pytest.mark.engine, pytest.mark.apart]

_STORE = """
import sys, torch.distributed as dist
store = dist.TCPStore("127.0.0.1", int(sys.argv[1]), 2, True, wait_for_workers=False)
print("listens", flush=True)
input()
"""


def _join(environment: dict[str, str], log: Path, seconds: int, late: int | None, store: int | None) -> None:
    """A rank; rank ``late`` never takes part in the check, and kills the ``store`` when the other rank has."""
    os.environ.update(environment)
    redirect(log, 1, 2)
    probe = joining.probe

    def late_probe(ranks, meeting, limit):
        if ranks.rank == late:
            meeting.set(f"probe/node/{ranks.rank}", "n7")
            meeting.get(f"probe/an all-reduce/{1 - ranks.rank}")
            if store is not None:
                os.kill(store, signal.SIGKILL)
            time.sleep(PATIENCE)
        probe(ranks, meeting, limit)

    joining.probe = late_probe
    # The short limit is for a missing rank only: the others may take long to start.
    alone = environment["WORLD_SIZE"] != environment["STARTED"]
    ranks = join(wait_seconds=seconds if alone else PATIENCE, probe_seconds=PATIENCE if late is None else seconds)
    destroy_process_group()
    print(f"joined {ranks.rank} of {ranks.size}")


def _ranks(tmp_path: Path, *numbers: int, late: int | None = None, kill: bool = False) -> dict[int, tuple[int, str]]:
    """Exit status and output of some of two ranks, with limits of two seconds; without the rank that is late."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "LOCAL_SIZE": "2"}
    store = None
    if kill:
        argv = [sys.executable, "-c", _STORE, meeting["MASTER_PORT"]]
        store = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert store.stdout is not None and store.stdout.readline()
        meeting["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    started, logs = {}, {rank: tmp_path / f"{rank}.log" for rank in numbers}
    for rank in numbers:
        environment = {**meeting, "RANK": str(rank), "LOCAL_RANK": str(rank), "STARTED": str(len(numbers))}
        started[rank] = start(_join, environment, logs[rank], 2, late, store.pid if store else None)
    for rank in numbers:
        if rank != late:
            started[rank].join(PATIENCE)
    if late is not None:
        started.pop(late).kill()
    return {rank: (process.exitcode, logs[rank].read_text()) for rank, process in started.items()}


def test_both_join(tmp_path) -> None:
    for rank, (status, output) in _ranks(tmp_path, 0, 1).items():
        assert status == 0 and output.splitlines()[-1] == f"joined {rank} of 2", output


def test_a_missing_rank_is_named(tmp_path) -> None:
    status, output = _ranks(tmp_path, 0)[0]
    assert status == 1
    assert "RunError: 1 of 2 ranks did not join within 2 s (launch.join_seconds); missing: 1" in output


def test_an_address_where_nothing_listens(tmp_path) -> None:
    status, output = _ranks(tmp_path, 1)[1]
    assert status == 1 and "RunError: rank 1 could not connect to 127.0.0.1:" in output


def test_a_rank_that_does_not_answer_is_named(tmp_path) -> None:
    status, output = _ranks(tmp_path, 0, 1, late=1)[0]
    assert status == 1
    assert "error: rank 1 on n7 did not reach an all-reduce within 2 s (launch.probe_seconds)" in output, output


def test_a_lost_store_ends_the_wait(tmp_path) -> None:
    """The node that hosts the store is the faulty one."""
    status, output = _ranks(tmp_path, 0, 1, late=0, kill=True)[1]
    assert status == 1
    assert (
        "error: an all-reduce over all 2 ranks did not finish within 2 s, and the rendezvous store (127.0.0.1) no"
        in output
    )


def test_slow_ranks_are_those_far_from_most() -> None:
    nodes = ["n1", "n1", "n2", "n2"]
    assert slow_ranks([0.1, 0.12, 0.11, 0.1], nodes) == []
    assert slow_ranks([0.1, 0.12, 0.9, 0.1], nodes) == [
        "rank 2 on n2 is slow: it took 0.90 s for what most ranks do in 0.10 s"
    ]
    assert slow_ranks([0.001, 0.03], nodes) == []  # far apart, but too short to tell
    assert len(slow_ranks([0.1, 0.9], nodes)) == 1
