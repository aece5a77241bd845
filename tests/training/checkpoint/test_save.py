"""Checkpoints that are damaged, belong to a different run or cannot be written are named, and nothing is lost."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from artefacts import manifest
from artefacts.errors import RequestError
from artefacts.metrics_log import read_metrics
from tests.support.training.grid import Cell, Task, run_tasks
from tests.training.engine.test_engine import follow, weights_of
from training.checkpoint.full_weights import require_checkpoint
from training.checkpoint.index import FORMAT
from training.checkpoint.load import Resumption, newest_complete
from training.checkpoint.save import RunIdentity

pytestmark = [pytest.mark.engine, pytest.mark.apart]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints after 2, 4, 6 and 8 steps of two ranks."""
    folder = tmp_path_factory.mktemp("saved")
    run_tasks([Task(Cell(2, 2, 1), folder, ("train.save_every=2", "train.keep=9"))], folder)
    return folder / "checkpoints"


@pytest.fixture
def checkpoints(saved: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(saved, tmp_path / "checkpoints"))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, Path.unlink, flip])
@pytest.mark.parametrize("name", ["rank-00000.safetensors", "rank-00001.safetensors", "manifest.json"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    checkpoints: Path, damage: Callable[[Path], object], name: str
) -> None:
    damage(checkpoints / "step-00000008" / name)
    if name == "manifest.json" and damage is flip:
        (checkpoints / "step-00000008" / name).write_bytes(b"\xff{")
    checkpoint = newest_complete(checkpoints)
    assert checkpoint is not None
    assert checkpoint.step == 6
    (line,) = checkpoint.skipped
    assert line.startswith("step-00000008 skipped: ")
    assert name in line or line.endswith("no manifest")


def test_a_checkpoint_of_another_format_is_named(checkpoints: Path) -> None:
    newest = checkpoints / "step-00000008" / "manifest.json"
    written = json.loads(newest.read_text())
    del written["details"]["format"]
    newest.write_text(json.dumps(written))
    checkpoint = newest_complete(checkpoints)
    assert checkpoint is not None and checkpoint.step == 6
    assert checkpoint.skipped == [
        f"step-00000008 skipped: saved in format None by another version of Millrace, this one reads {FORMAT}"
    ]
    with pytest.raises(RequestError, match=r"step-00000008: saved in format None .* or move it away and run `make"):
        require_checkpoint(newest.parent, "pretrain")
    require_checkpoint(checkpoints / "step-00000006", "pretrain")


def test_when_all_are_damaged_the_user_decides(checkpoints: Path) -> None:
    for folder in checkpoints.iterdir():
        truncate(folder / "rank-00001.safetensors")
    with pytest.raises(RequestError, match="no checkpoint there can be read: move"):
        newest_complete(checkpoints)


def test_all_ranks_skip_a_checkpoint_that_is_damaged_for_one_of_them(checkpoints: Path, tmp_path: Path) -> None:
    flip(checkpoints / "step-00000008" / "rank-00001.safetensors")
    out = tmp_path / "out"
    task = Task(Cell(2, 2, 2), out, begin_from=checkpoints)
    run_tasks([task], tmp_path)
    assert len(task.seen()["losses"]) == 2, "from step 6 to 8"


def test_a_skipped_checkpoint_is_moved_aside_and_not_deleted(checkpoints: Path, tmp_path: Path) -> None:
    """It may be intact: written by another version, or on a file server that was unavailable."""
    newest = checkpoints / "step-00000008" / "manifest.json"
    written = json.loads(newest.read_text())
    written["details"]["format"] = FORMAT - 1
    newest.write_text(json.dumps(written))
    task = Task(Cell(2, 2, 1), tmp_path / "out", ("train.save_every=2", "train.keep=9"))
    shutil.copytree(checkpoints, task.out / "checkpoints")
    assert "step-00000008, which was skipped, is now " in run_tasks([task], tmp_path)
    (aside,) = (task.out / "checkpoints" / "previous").iterdir()
    assert manifest.faults(aside) == [] and aside.name.endswith("step-00000008")
    checkpoint = newest_complete(task.out / "checkpoints")
    assert checkpoint is not None and (checkpoint.step, checkpoint.skipped) == (8, [])


def test_a_skipped_checkpoint_does_not_count_among_those_kept(checkpoints: Path, tmp_path: Path) -> None:
    """Its step is between the resumed checkpoint's and the next one's."""
    shutil.rmtree(checkpoints / "step-00000008")
    truncate(checkpoints / "step-00000006" / "rank-00000.safetensors")
    shutil.copytree(checkpoints / "step-00000002", checkpoints / "step-00000002-good")
    task = Task(Cell(2, 2, 1), tmp_path / "out", ("train.save_every=4", "train.keep=2"))
    shutil.copytree(checkpoints, task.out / "checkpoints")
    assert "dropped" not in run_tasks([task], tmp_path)
    names = sorted(path.name for path in (task.out / "checkpoints").iterdir())
    assert names == ["previous", "step-00000002-good", "step-00000004", "step-00000008"]
    (aside,) = (task.out / "checkpoints" / "previous").iterdir()
    assert aside.name.endswith("step-00000006")


def test_a_failed_save_names_the_newest_complete_checkpoint(checkpoints: Path, tmp_path: Path) -> None:
    for step in (6, 8):
        truncate(checkpoints / f"step-{step:08d}" / "rank-00000.safetensors")
    task = Task(Cell(2, 2, 1), tmp_path / "out", ("train.save_every=1", "train.keep=9"), full_disk=(5, 7))
    shutil.copytree(checkpoints, task.out / "checkpoints")
    output = run_tasks([task], tmp_path)
    assert "the checkpoint at step 5 could not be written" in output
    assert "the newest is step-00000004" in output


def test_a_file_that_one_rank_cannot_read_is_skipped_by_all(checkpoints: Path, tmp_path: Path) -> None:
    """The system error is raised on one rank only, and the other rank must not wait for it."""
    newest = checkpoints / "step-00000008"
    unreadable, written = newest / "rank-00001.safetensors", json.loads((newest / "manifest.json").read_text())
    unreadable.unlink()
    unreadable.symlink_to("/proc/self/mem")  # a file without bytes that raises an error when it is read
    written["files"][unreadable.name]["bytes"] = 0
    (newest / "manifest.json").write_text(json.dumps(written))
    task = Task(Cell(2, 2, 1), tmp_path / "out", begin_from=checkpoints)
    run_tasks([task], tmp_path)
    assert len(task.seen()["losses"]) == 2, "from step 6 to 8"


def about(**changes: dict[str, Any]) -> RunIdentity:
    topology: dict[str, int | str] = {"ranks": 2, "expert_parallel": 2, "zero_stage": 1}
    return RunIdentity(**{"identity": {"run": "test"}, "inputs": {}, "model": {}, "topology": topology, **changes})


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"identity": {"run": "test", "model": {"hidden_size": 64}}}, "model null -> {…}"),
        ({"identity": {"run": "other"}}, "run test -> other"),
        ({"inputs": {"tokens": "123"}}, "inputs.tokens null -> 123"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_and_the_first_difference_named(saved, changes, difference) -> None:
    checkpoint = newest_complete(saved)
    assert checkpoint is not None
    with pytest.raises(RequestError, match="is a checkpoint of a different run: ") as caught:
        Resumption(checkpoint, about(**changes))
    assert difference in str(caught.value)
    assert Resumption(checkpoint, about()).changes == ""


def test_a_checkpoint_of_another_shape_is_refused_by_name(saved, tmp_path) -> None:
    with pytest.raises(
        AssertionError, match=r"model\.layers\.0\.mlp\.down_proj\.weight is \(32, 48\), in the recipe's model"
    ):
        run_tasks([Task(Cell(1, 1, 1), tmp_path, ("model.intermediate_size=64",), saved)], tmp_path)


def test_training_continues_when_the_disk_is_full_and_warns(tmp_path: Path) -> None:
    """The last rank cannot write at steps 4 and 6. These checkpoints are dropped, and 2 is kept until 8 is complete."""
    options = ("train.save_every=2", "train.keep=9")
    task = Task(Cell(2, 2, 1), tmp_path / "out", options, full_disk=(3, 7))
    output = run_tasks([task], tmp_path)
    assert "the checkpoint at step 4 could not be written (rank 1: File too large" in output
    assert "the newest is step-00000002" in output
    checkpoints = task.out / "checkpoints"
    assert sorted(p.name for p in checkpoints.iterdir()) == ["step-00000002", "step-00000008"]
    assert all(manifest.faults(folder) == [] for folder in checkpoints.iterdir())
    assert task.seen()["losses"] == pytest.approx(follow([])["losses"], abs=1e-5)


def test_training_continues_when_its_metrics_cannot_be_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "metrics.jsonl").symlink_to("/dev/full")
    task = Task(Cell(2, 2, 1), out)
    output = run_tasks([task], tmp_path)
    assert output.count("warning: metrics.jsonl cannot be written (No space left on device): training continues") == 1
    assert "tensorboard/ cannot" not in output
    assert len(task.seen()["losses"]) == 8
    assert manifest.faults(out / "checkpoints" / "step-00000008") == []


def test_a_run_whose_last_checkpoint_fails_is_a_failure(tmp_path: Path) -> None:
    task = Task(Cell(2, 2, 1), tmp_path / "out", ("train.save_every=4",), full_disk=(5, 9))
    with pytest.raises(AssertionError, match=r"the last checkpoint could not be saved \(rank 1: File too large"):
        run_tasks([task], tmp_path)
    checkpoint = newest_complete(task.out / "checkpoints")
    assert checkpoint is not None and checkpoint.step == 4


def test_an_unwritable_folder_loses_no_step(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "checkpoints").write_text("a file where the folder should be")
    task = Task(Cell(2, 1, 1), out, ("train.save_every=4",))
    with pytest.raises(AssertionError, match="the last checkpoint could not be saved") as caught:
        run_tasks([task], tmp_path)
    assert "the checkpoint at step 4 could not be written (rank 0: " in str(caught.value)
    assert "training continues, no checkpoint is on disk" in str(caught.value)


def test_the_newest_every_fourth_and_the_best_are_kept(tmp_path: Path) -> None:
    """The learning rate grows until the loss grows too."""
    schedule = "train.schedule={kind: cosine, warmup_steps: 7}"
    options = ("train.save_every=1", "train.eval_every=1", "train.learning_rate=0.1", schedule)
    kept = ("train.keep=1", "train.keep_every=4", "train.keep_best=1")
    task = Task(Cell(2, 2, 1), tmp_path / "out", (*options, *kept))
    run_tasks([task], tmp_path)
    losses = {r["step"]: r["loss"] for r in read_metrics(task.out / "metrics.jsonl")["validation"]}
    best = min(losses, key=losses.__getitem__)
    assert best not in (4, 8), "or this would show nothing"
    names = sorted(path.name for path in (task.out / "checkpoints").iterdir())
    assert names == [f"step-{step:08d}" for step in sorted({best, 4, 8})]


def test_frozen_parameters_are_saved_and_restored_in_any_topology(tmp_path: Path) -> None:
    cells = [Cell(2, 2, stage) for stage in (0, 1, 2, 3)]
    firsts = [
        Task(
            cell, tmp_path / f"first-{number}", ("train.simulate_crash_at=4",), trained={"freeze": ["*.embed_tokens.*"]}
        )
        for number, cell in enumerate(cells)
    ]
    seconds = [
        Task(
            after,
            tmp_path / f"second-{number}",
            (),
            before.out / "checkpoints",
            trained={"freeze": ["*.embed_tokens.*"]},
        )
        for number, (before, after) in enumerate(zip(firsts, [*cells[1:], Cell(1, 1, 2)], strict=True))
    ]
    run_tasks(firsts, tmp_path)
    run_tasks(seconds, tmp_path)
    name = "model.embed_tokens.weight"
    weights = [
        weights_of(task.out / "checkpoints" / f"step-{step:08d}")
        for task, step in [*((task, 4) for task in firsts), *((task, 8) for task in seconds)]
    ]
    assert all(torch.equal(other[name], weights[0][name]) for other in weights)
    first, second = firsts[0].seen()["losses"], seconds[0].seen()["losses"]
    assert all(task.seen()["losses"] == pytest.approx(first, abs=1e-5) for task in firsts)
    assert all(task.seen()["losses"] == pytest.approx(second, abs=1e-5) for task in seconds)
    assert first != pytest.approx(follow([])["losses"][:4], abs=1e-5), "the table is trained otherwise"
