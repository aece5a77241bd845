"""TensorBoard reads the files that we write."""

import resource
import signal
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.trainer.callbacks.tensorboard import TensorBoardWriter


def test_tensorboard_reads_the_curves_and_drops_steps_that_a_resume_repeats(tmp_path: Path) -> None:
    first = TensorBoardWriter(tmp_path, 1)
    for step in range(1, 7):
        first.add(step, {"train/loss": 10.0 - step, "train/grad_norm": float(step)})
    first.close()
    # Event files are named by time in seconds, and read in the order of their names.
    Path(*tmp_path.glob("events.*")).rename(tmp_path / "events.out.tfevents.0000000001.first")
    second = TensorBoardWriter(tmp_path, 5)
    for step in range(5, 9):
        second.add(step, {"train/loss": 20.0 - step})
    second.close()
    read = EventAccumulator(str(tmp_path))
    read.Reload()
    assert [(s.step, s.value) for s in read.Scalars("train/loss")] == [
        *((step, 10.0 - step) for step in range(1, 5)),
        *((step, 20.0 - step) for step in range(5, 9)),
    ]
    assert [s.step for s in read.Scalars("train/grad_norm")] == [1, 2, 3, 4]


def test_a_full_disk_leaves_no_file_behind(tmp_path: Path) -> None:
    """Otherwise every further record would leave another file behind."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            TensorBoardWriter(tmp_path / "board", 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list((tmp_path / "board").iterdir()) == []
