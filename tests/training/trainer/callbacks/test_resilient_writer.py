"""Metrics that cannot be written: one warning per file, and they are written again once that is possible."""

from pathlib import Path

import pytest

from artefacts.metrics_log import read_metrics
from artefacts.training_folder import TrainingRun
from tests.support.training.contexts import stub_context
from training.trainer.callbacks.metrics import MetricsCallback


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file where TensorBoard's folder should be."""
    (tmp_path / "tensorboard").write_text("")
    return tmp_path


def test_either_file_fails_and_recovers_without_the_other(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = MetricsCallback(stub_context(run=TrainingRun("test", folder, {}, {})))
    metrics.on_train_begin()

    def steps(*numbers: int) -> str:
        for step in numbers:
            metrics.write({"kind": "train", "step": step, "loss": 1.0})
        return capsys.readouterr().err

    output = capsys.readouterr().err + steps(1, 2)
    assert output.count("tensorboard/ cannot be written (File exists): training continues without it") == 1
    (folder / "tensorboard").unlink()
    assert "cannot be written" not in steps(3)
    assert len(list((folder / "tensorboard").glob("events.out.tfevents.*"))) == 1
    metrics._lines.close()
    (folder / "metrics.jsonl").rename(folder / "kept")
    (folder / "metrics.jsonl").symlink_to("/dev/full")
    output = steps(4, 5)
    assert output.count("metrics.jsonl cannot be written (No space left on device): training continues without it") == 1
    (folder / "metrics.jsonl").unlink()
    (folder / "kept").rename(folder / "metrics.jsonl")
    assert "cannot be written" not in steps(6)
    metrics.close()
    assert [record["step"] for record in read_metrics(folder / "metrics.jsonl")["train"]] == [1, 2, 3, 6]
