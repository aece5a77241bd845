"""Learning rate schedules equal their definition."""

from itertools import pairwise

import pytest

from configs.schema.train import ScheduleSection
from training.optim.schedules import learning_rate


def rates(steps: int, **keys: object) -> list[float]:
    schedule = ScheduleSection(**keys)
    return [learning_rate(step, steps, 1.0, schedule) for step in range(steps)]


def test_warm_up_is_a_line_to_the_peak() -> None:
    assert rates(100, warmup_steps=4)[:4] == [0.25, 0.5, 0.75, 1.0]


def test_cosine_falls_from_the_peak_to_the_final_fraction() -> None:
    seen = rates(1000, kind="cosine", warmup_steps=10, final_fraction=0.1)
    assert seen[10] == 1.0
    assert seen[505] == pytest.approx(0.55, abs=1e-3)
    assert seen[-1] == pytest.approx(0.1, abs=1e-4)
    assert all(a >= b for a, b in pairwise(seen[10:]))


def test_wsd_is_flat_and_then_a_line() -> None:
    seen = rates(100, kind="wsd", warmup_steps=5, final_fraction=0.0, decay_fraction=0.2)
    assert set(seen[5:80]) == {1.0}
    assert seen[90] == pytest.approx(0.5)
    assert seen[-1] == pytest.approx(0.05)
