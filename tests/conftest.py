"""What holds for all tests: how many processes share them, and how (``pytest -n auto --dist loadscope``)."""

import os
from typing import Any

import pytest

_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
#: Each takes a gigabyte or two.
_MOST_PROCESSES = 8
#: Of files with this line each test is taken by itself: most start training, and they share no expensive fixture.
_ALONE = "\npytestmark = pytest.mark.engine\n"

# Before torch is imported: threads of several processes on one core wait for each other at every step.
if processes := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _CORES // int(processes))))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """A process for each core that this one may use."""
    return min(_CORES, _MOST_PROCESSES)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Files stay together, so that no fixture is made twice, but for those whose tests take long by themselves."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return nodeid if _ALONE in (config.rootpath / file).read_text(encoding="utf-8") else file

    return Scheduling(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with tests that start training come first, as they take longest: so no process ends with one, alone."""
    training = {item.path for item in items if item.get_closest_marker("engine")}
    items.sort(key=lambda item: item.path not in training)
