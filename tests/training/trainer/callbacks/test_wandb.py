"""W&B: what it gets, that a resumed run continues, and that no failure reaches training."""

import contextlib
import importlib.util
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from artefacts.errors import RequestError
from artefacts.training_folder import TrainingRun
from configs.load import dump_recipe, load_recipe
from configs.schema.tracking import WandbSection
from tests.support.paths import CHECKOUT
from tests.support.training.contexts import stub_context
from tests.support.training.wandb_file import history, read_wandb
from tests.support.waiting import wait_until
from training.trainer.callbacks import wandb as ours
from training.trainer.callbacks.metrics import MetricsCallback
from training.trainer.callbacks.wandb import ID_FILE, WandbWriter, check_wandb
from training.trainer.context import TrainingContext

SECTION = WandbSection(project="books", tags=("small",))


@pytest.fixture(autouse=True)
def without_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No key and no settings of the user, and patience for a busy machine."""
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(ours, "_FINISH_SECONDS", 600)
    yield
    end_process()


def end_process() -> None:
    """Wait until wandb's own process has written its files and ended, as at the end of training."""
    with contextlib.suppress(ConnectionError):  # a killed process cannot be asked to end
        wandb.teardown()


def context(root: Path, mode: str | None, start: int = 0) -> TrainingContext:
    """The context of a fine-tuning stage, with its resolved recipe on disk."""
    recipe = load_recipe(CHECKOUT / "configs" / "demo.yaml", [f"train.learning_rate={0.1 if start else 0.2}"])
    folder = root / "finetune" / "sft"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(dump_recipe(recipe))
    stub = stub_context()
    train = stub.train.model_copy(update={"wandb": SECTION.model_copy(update={"mode": mode})})
    return stub_context(train=train, run=TrainingRun("finetune", folder, {}, {}, "sft"), start_step=start)


def log_steps(context: TrainingContext, *steps: int) -> None:
    metrics = MetricsCallback(context)
    metrics.on_train_begin()
    for step in steps:
        metrics.write({"kind": "train", "step": step, "loss": 4.0 - step, "skipped": False})
    metrics.write_samples(steps[-1], [("Why", "Because")])
    metrics.close()


# Two starts of wandb's own process.
def test_a_resumed_run_continues_the_same_wandb_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with the steps that it repeats, and with the curves of TensorBoard."""
    log_steps(context(tmp_path, "offline"), 1, 2, 3)
    end_process()
    monkeypatch.setenv("WANDB_MODE", "offline")
    log_steps(context(tmp_path, None, start=1), 2, 3, 4)
    end_process()
    folder = tmp_path / "finetune" / "sft"
    files = sorted((folder / "wandb").glob("offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    assert len(files) == 2
    identifier = (folder / ID_FILE).read_text().strip()
    for path, steps, rate in zip(files, ([1, 2, 3], [2, 3, 4]), (0.2, 0.1), strict=True):
        records = read_wandb(path)
        (run,) = [record.run for record in records if record.WhichOneof("record_type") == "run"][:1]
        assert (run.run_id, run.project, run.display_name) == (identifier, "books", "demo-sft")
        assert (run.run_group, run.job_type, list(run.tags)) == ("demo", "finetune", ["small"])
        values = {item.key: item.value_json for record in records for item in _config_items(record)}
        assert json.loads(values["train"])["learning_rate"] == rate
        *rows, table = history(records)
        assert rows == [{"step": step, "train/loss": 4.0 - step} for step in steps]
        assert table["step"] == steps[-1] and any(key.startswith("samples") for key in table)
        axes = {r.metric.glob_name or r.metric.name: r.metric.step_metric for r in records if r.HasField("metric")}
        assert axes["*"] == "step", "otherwise W&B would drop the steps that a resume repeats"
        assert any(record.WhichOneof("record_type") == "exit" for record in records)
    board = EventAccumulator(str(folder / "tensorboard"))
    board.Reload()
    assert board.Tags()["scalars"] == ["train/loss"]
    assert b"    Because" in board.Tensors("samples/0")[-1].tensor_proto.string_val[0]


def _config_items(record):
    kind = record.WhichOneof("record_type")
    return record.config.update if kind == "config" else record.run.config.update if kind == "run" else ()


def test_a_failure_is_reported_once_and_training_continues(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log_steps(context(tmp_path, "online"), 1, 2, 3)
    error = capsys.readouterr().err
    assert error.count("W&B failed") == 1
    assert "no API key; run `wandb login`, or set train.wandb.mode=offline): training continues without it" in error
    assert (tmp_path / "finetune" / "sft" / "metrics.jsonl").read_bytes().count(b"\n") == 3


def test_the_death_of_wandbs_process_does_not_reach_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = context(tmp_path, "offline").run
    writer = WandbWriter(SECTION.model_copy(update={"mode": "offline"}), run)
    writer.add(1, {"train/loss": 1.0})
    wait_until(lambda: any(run.folder.glob("wandb/offline-run-*/*.wandb")), "file")
    for process in psutil.Process().children(recursive=True):
        if "wandb" in process.name():
            process.kill()
    for step in range(2, 200):
        writer.add(step, {"train/loss": 1.0})
    writer.close()
    assert capsys.readouterr().err.count("warning") <= 1


# One start of wandb's own process.
def test_a_slow_wandb_gets_the_last_records_and_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The backlog stays full until ``close`` waits for the thread, and adding records does not wait."""
    run, ready = context(tmp_path, "offline").run, threading.Event()
    start = WandbWriter._init

    def slow_start(self: WandbWriter, package: Any) -> Any:
        ready.wait()
        return start(self, package)

    monkeypatch.setattr(WandbWriter, "_init", slow_start)
    monkeypatch.setattr(ours, "_BACKLOG", 3)
    writer = WandbWriter(SECTION.model_copy(update={"mode": "offline"}), run)
    for step in range(1, 10):
        writer.add(step, {"train/loss": float(step)})
    join = writer._thread.join

    def join_when_ready(timeout: float) -> None:
        ready.set()
        join(timeout)

    monkeypatch.setattr(writer._thread, "join", join_when_ready)
    writer.close()
    assert capsys.readouterr().err.count("W&B cannot keep up: some records are not logged there") == 1
    (path,) = run.folder.glob("wandb/offline-run-*/*.wandb")
    end_process()
    records = read_wandb(path)
    assert [row["step"] for row in history(records)] == [8, 9]
    assert any(record.WhichOneof("record_type") == "exit" for record in records)


def test_a_missing_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_wandb(None)
    with pytest.raises(RequestError, match=r"train\.wandb needs the package wandb: `pip install"):
        check_wandb(SECTION)
