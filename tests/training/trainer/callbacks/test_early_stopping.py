"""Early stopping: when training ends, and that a resumed run ends at the same step with the same best checkpoint."""

import math
from pathlib import Path

import pytest

from artefacts import manifest
from artefacts.metrics_log import read_metrics
from artefacts.training_folder import STOPPED_EARLY, saved_steps
from configs.schema.tracking import EarlyStoppingSection
from tests.support.training.grid import Cell, Task, run_tasks
from training.trainer.callbacks.early_stopping import LowestLoss


def ends_at(losses: list[float], patience: int, min_delta: float = 0.0) -> tuple[int | None, int | None]:
    """The number of validations after which training ends, and the number of the best one."""
    lowest = LowestLoss(EarlyStoppingSection(patience=patience, min_delta=min_delta))
    for number, loss in enumerate(losses, 1):
        # The state survives a resume after every validation.
        state, lowest = lowest.state_dict(), LowestLoss(EarlyStoppingSection(patience=patience, min_delta=min_delta))
        lowest.load_state_dict(state)
        lowest.add(number, loss)
        if lowest.patience_is_exhausted:
            return number, lowest.step
    return None, lowest.step


def test_training_ends_after_validations_in_a_row_without_improvement() -> None:
    assert ends_at([3, 2, 2.5, 1.9, 2.0, 2.1, 1.0], 2) == (6, 4)
    assert ends_at([3, 2, 1], 1) == (None, 3)
    assert ends_at([3, 3], 1) == (2, 1), "an equal loss is no improvement, and the earlier one is kept"
    assert ends_at([3, math.nan, math.inf], 2) == (3, 1)
    assert ends_at([math.nan, math.nan], 2) == (2, None)


def test_a_small_improvement_does_not_count_but_is_kept() -> None:
    assert ends_at([3, 2.95, 2.91, 2.85, 2.8], 2, min_delta=0.1) == (3, 3)
    assert ends_at([3, 2.95, 2.89, 2.8, 2.7], 2, min_delta=0.1) == (None, 5), "small ones add up"


def test_without_a_section_training_never_ends_early() -> None:
    lowest = LowestLoss(None)
    for step in range(9):
        lowest.add(step, 1.0)
    assert not lowest.patience_is_exhausted and lowest.step == 0


@pytest.mark.engine
def test_a_resumed_run_on_other_ranks_ends_at_the_same_step_and_keeps_the_best(tmp_path: Path) -> None:
    more = ("train.eval_every=1", "train.keep=1", "train.learning_rate=0.1", "train.early_stopping.patience=2")
    crashed = Task(Cell(2, 2, 1), tmp_path / "out", (*more, "train.simulate_crash_at=2"))
    resumed = Task(Cell(2, 1, 2), tmp_path / "out", more)
    run_tasks([crashed, resumed], tmp_path)
    records = read_metrics(resumed.out / "metrics.jsonl")
    end, best = ends_at([record["loss"] for record in records["validation"]], patience=2)
    assert end is not None and best is not None and 2 < end < 8
    (event,) = records["event"]
    assert (event["event"], event["step"], event["lowest_step"]) == ("early_stop", end, best)
    assert records["train"][-1]["step"] == end
    assert saved_steps(resumed.out / "checkpoints") == [best, end], "train.keep=1 keeps the best too"
    last = manifest.require(resumed.out / "checkpoints" / f"step-{end:08d}", "pretrain")
    assert last.counts[STOPPED_EARLY] and last.details["state"]["early_stopping"]["waited"] == 2
