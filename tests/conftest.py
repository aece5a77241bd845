"""Settings of all tests: how they are spread over processes (``pytest -n auto --dist loadscope``), and seeds."""

import contextlib
import os
import random
import sys
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

import configs.command  # noqa: F401 - messages are worded as in a command

_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
#: Bytes per process, with the ranks that it starts.
_MEMORY = 2**31
_MOST_PROCESSES = 8

# Before torch is imported: threads of several processes on one core wait for each other at every step.
if processes := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _CORES // int(processes))))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Start one process per available core, as far as memory allows."""
    return max(1, min(_CORES, psutil.virtual_memory().total // _MEMORY, _MOST_PROCESSES))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file's tests stay in one process, so that no fixture is made twice, except in files that use the mark `apart`.

    Only the names of tests are known here, so the mark is searched for in the file's text.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return nodeid if "pytest.mark.apart" in (config.rootpath / file).read_text(encoding="utf-8") else file

    return Scheduling(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with tests that start training come first: they take longest, and the last one would run alone."""
    training = {item.path for item in items if item.get_closest_marker("engine")}
    items.sort(key=lambda item: item.path not in training)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(call: pytest.CallInfo[None]) -> None:
    """Stop the launchers that a failed test left running. They would keep training during later tests."""
    if call.excinfo is None or call.excinfo.errisinstance(pytest.skip.Exception):
        return
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if "launch" in child.cmdline():
                child.terminate()


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup() -> None:
    """Seed each fixture and test, so that random numbers do not depend on the order of the tests."""
    _seed()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call() -> None:
    _seed()


def _seed() -> None:
    random.seed(0)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(0)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


def _forget_rank() -> Iterator[None]:
    """Remove the variables of a rank that tests set. Otherwise, ``accelerate`` would join a group in a later test of
    another library, and leave it to the tests after that.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    before = {name: os.environ.get(name) for name in names}
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


# After each file too: the tests of a file may share the rank that a fixture of the file sets.
_forget_after_test = pytest.fixture(autouse=True)(_forget_rank)
_forget_after_file = pytest.fixture(autouse=True, scope="module")(_forget_rank)
