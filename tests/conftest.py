"""What holds for all tests: how processes next to each other share them (``pytest -n 2 --dist loadgroup``)."""

import os

import pytest

# Before torch is imported: threads of several processes on one core wait for each other at every step.
if processes := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(processes))))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that start training go one by one, and first, as they take longest; of others a file stays together.

    So at the end no process is left with a long one alone, and few fixtures are made twice.
    """
    for item in items:
        if not _trains(item) and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))
    items.sort(key=lambda item: not _trains(item))


def _trains(item: pytest.Item) -> bool:
    return item.get_closest_marker("engine") is not None
