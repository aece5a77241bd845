"""Numbers that cannot be written: told once for each place, and written again once they can be."""

from pathlib import Path

import pytest
import torch

from artefacts.metrics_log import read_metrics
from training.distributed.ranks import Ranks
from training.trainer.callbacks.metrics import MetricsHook


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a file where TensorBoard's folder should be."""
    (tmp_path / "tensorboard").write_text("")
    return tmp_path


def test_either_place_fails_and_comes_back_without_the_other(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hook = MetricsHook(folder, "test", 0, 8, 1.0, 1, Ranks(0, 1, 0, torch.device("cpu")))

    def steps(*numbers: int) -> str:
        for step in numbers:
            hook.write({"kind": "train", "step": step, "loss": 1.0})
        return capsys.readouterr().err

    said = capsys.readouterr().err + steps(1, 2)
    assert said.count("tensorboard/ cannot be written (File exists): training goes on without it") == 1
    (folder / "tensorboard").unlink()
    assert "cannot be written" not in steps(3)
    assert len(list((folder / "tensorboard").glob("events.out.tfevents.*"))) == 1
    hook._lines.close()
    (folder / "metrics.jsonl").rename(folder / "kept")
    (folder / "metrics.jsonl").symlink_to("/dev/full")
    said = steps(4, 5)
    assert said.count("metrics.jsonl cannot be written (No space left on device): training goes on without it") == 1
    (folder / "metrics.jsonl").unlink()
    (folder / "kept").rename(folder / "metrics.jsonl")
    assert "cannot be written" not in steps(6)
    hook.at_end(6)
    assert [record["step"] for record in read_metrics(folder / "metrics.jsonl")["train"]] == [1, 2, 3, 6]
