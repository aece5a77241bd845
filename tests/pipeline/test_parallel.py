"""How many tasks are in memory at a time."""

import pytest

from pipeline import parallel


@pytest.mark.parametrize(("size", "most"), [(100, 6), (300, 2), (600, 1), (0, 8)])
def test_tasks_in_memory_stay_within_the_limit(size: int, most: int) -> None:
    taken, submitted = 0, []

    def tasks():
        nonlocal taken
        for number in range(20):
            taken += 1
            yield (number, 1)

    for result in parallel.ordered(pow, tasks(), 4, carried=lambda task: size << 20):
        submitted.append(result)
        assert taken - len(submitted) < most
    assert submitted == list(range(20))
