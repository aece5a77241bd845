"""Ranks that are missing, that do not answer and that are slow are named."""

import os
import subprocess
import sys
import time

import pytest

from launch.plan import free_port
from tests.training.workers import CHECKOUT, worker_environment
from training.engine.probe import slow_ranks

pytestmark = pytest.mark.engine

_JOIN = """
import os, sys, time
from training.engine.joining import join
from training.engine import joining
from training.engine.distributed import leave
late, seconds, wait = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
found = joining.probe
def late_probe(ranks, store, limit):
    if ranks.rank == late:
        store.set(f"probe/node/{ranks.rank}", "n7")
        if len(sys.argv) > 4:
            time.sleep(2)
            os.kill(int(sys.argv[4]), 9)
        time.sleep(seconds)
    found(ranks, store, limit)
joining.probe = late_probe
ranks = join(wait_seconds=wait, probe_seconds=wait if late < 0 else 4)
leave()
print(f"joined {ranks.rank} of {ranks.size}")
"""


def _ranks(numbers: list[int], late: int = -1, seconds: float = 0, kill: bool = False) -> dict[int, tuple[int, str]]:
    """Exit status and output of these of two ranks; one may come late to the first exchange, and kill the store."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "LOCAL_SIZE": "2"}
    # All are to meet but where one is missing, however long they take to start.
    started, more, wait = {}, [], 60 if len(numbers) == 2 else 4
    if kill:
        made = f"TCPStore('127.0.0.1', {meeting['MASTER_PORT']}, 2, True)"
        code = f"from torch.distributed import TCPStore; store = {made}; input()"
        store = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
        meeting["TORCHELASTIC_USE_AGENT_STORE"], more = "True", [str(store.pid)]
    for rank in numbers:
        environment = {**os.environ, **worker_environment(), **meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        argv = [sys.executable, "-c", _JOIN, str(late), str(seconds), str(wait), *more]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        started[rank] = subprocess.Popen(argv, env=environment, cwd=CHECKOUT, text=True, **pipes)
    said = {rank: process.communicate(timeout=120)[0] for rank, process in started.items()}
    return {rank: (process.returncode, said[rank]) for rank, process in started.items()}


def test_both_join() -> None:
    for rank, (status, said) in _ranks([0, 1]).items():
        assert status == 0 and said.splitlines()[-1] == f"joined {rank} of 2", said


def test_a_missing_rank_is_named() -> None:
    status, said = _ranks([0])[0]
    assert status == 1
    assert "RunError: of 2 ranks these did not join within 4 s (launch.join_seconds): 1" in said


def test_nobody_to_meet() -> None:
    began = time.monotonic()
    status, said = _ranks([1])[1]
    assert status == 1 and "RunError: rank 1 finds nobody at 127.0.0.1:" in said
    assert time.monotonic() - began < 60


def test_a_rank_that_does_not_answer_is_named() -> None:
    status, said = _ranks([0, 1], late=1, seconds=12)[0]
    assert status == 1
    assert "error: rank 1 on n7 did not come to an all-reduce within 4 s (launch.probe_seconds)" in said, said


def test_a_store_that_is_gone_ends_the_wait_too() -> None:
    """The node on which the ranks met is the one that is bad."""
    status, said = _ranks([0, 1], late=0, seconds=12, kill=True)[1]
    assert status == 1
    assert "error: an all-reduce over all 2 ranks did not end within 4 s, and where they met (127.0.0.1) nobody" in said


def test_slow_ranks_are_those_far_from_most() -> None:
    nodes = ["n1", "n1", "n2", "n2"]
    assert slow_ranks([0.1, 0.12, 0.11, 0.1], nodes) == []
    assert slow_ranks([0.1, 0.12, 0.9, 0.1], nodes) == ["rank 2 on n2 is slow: 0.90 s for what most ranks do in 0.10 s"]
    assert slow_ranks([0.001, 0.03], nodes) == []  # far apart, and too short to tell
    assert len(slow_ranks([0.1, 0.9], nodes)) == 1
