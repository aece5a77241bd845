"""Unstable runs: steps with a non-finite loss or gradient, loss spikes, and a rank that hangs."""

import json
import math
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from artefacts.errors import RunError
from artefacts.metrics_log import read_metrics, read_records
from configs.load import load_recipe
from configs.run_layout import RunLayout
from tests.support.paths import CHECKOUT
from tests.support.training.grid import Cell, Task, run_tasks
from tests.support.waiting import PATIENCE, wait_until
from tests.training.engine.test_engine import follow, weights_of
from training.trainer.callbacks.stability import SkippedSteps, SpikeDetector

RECIPE = CHECKOUT / "tests" / "end-to-end.yaml"


def test_a_spike_is_reported_once_there_are_enough_losses() -> None:
    generator = random.Random(1)
    detector = SpikeDetector(window=64, deviations=6)
    assert detector.deviation(100.0) is None, "there is nothing to compare it with"
    detector = SpikeDetector(window=64, deviations=6)
    assert [detector.deviation(generator.gauss(3, 0.1)) for _ in range(200)] == [None] * 200
    above = detector.deviation(6.0)
    assert above is not None and above > 20
    assert detector.deviation(generator.gauss(3, 0.1)) is None
    assert detector.deviation(math.nan) is None


def test_a_new_level_soon_counts_as_normal() -> None:
    generator = random.Random(2)
    detector = SpikeDetector(window=32, deviations=5)
    for _ in range(40):
        detector.deviation(generator.gauss(3, 0.1))
    spikes = [detector.deviation(generator.gauss(5, 0.1)) is not None for _ in range(64)]
    assert spikes[0] and not any(spikes[32:])


def test_a_falling_loss_and_a_disabled_detector_report_nothing() -> None:
    detector = SpikeDetector(window=32, deviations=6)
    assert not any(detector.deviation(9 * 0.99**step) for step in range(300))
    off = SpikeDetector(window=32, deviations=0)
    assert not any(off.deviation(loss) for loss in [1.0] * 40 + [99.0])


def test_only_steps_in_a_row_end_the_run() -> None:
    skipped = SkippedSteps(2)
    for step, bad in enumerate([True, True, False] * 3):
        skipped.count(step, bad)
    assert (skipped.total, skipped.in_a_row) == (6, 0)
    skipped.count(10, True)
    skipped.count(11, True)
    with pytest.raises(RunError, match=r"step 12: 3 steps in a row .* lower train\.learning_rate"):
        skipped.count(12, True)


@pytest.mark.engine
@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_a_step_that_is_not_finite_changes_nothing_at_any_stage(tmp_path: Path, precision: str) -> None:
    """If one rank's loss, or only its gradient, is not finite, all ranks skip: weights, state and biases stay."""
    bad = {"rank": 1, "loss": [3], "gradient": [5, 6]}
    more = (f"train.precision={precision}",)
    tasks = [
        Task(Cell(2, size, stage, accumulation), tmp_path / f"{stage}-{size}-{accumulation}", more, faults=bad)
        for stage, size, accumulation in ((0, 2, 1), (1, 2, 1), (2, 2, 2), (3, 2, 1), (2, 1, 1), (0, 1, 2))
        if stage or precision == "fp32"
    ]
    run_tasks(tasks, tmp_path)
    expected = follow([], skipped=[3, 5, 6])
    for task in tasks:
        seen, name = task.seen(), f"{task.cell} {precision}"
        assert [step + 1 for step, why in enumerate(seen["skipped"]) if why == "non_finite"] == [3, 5, 6], name
        assert [step + 1 for step, loss in enumerate(seen["losses"]) if not math.isfinite(loss)] == [3], name
        records = list(read_records(task.out / "metrics.jsonl"))
        assert [r["step"] for r in records if r["kind"] == "event" and r["event"] == "skipped"] == [3, 5, 6], name
        assert [r["step"] for r in records if r["kind"] == "train" and r["loss"] is None] == [3], name
        assert (
            json.loads((task.out / "checkpoints/step-00000008/manifest.json").read_text())["details"]["state"][
                "skipped"
            ]["total"]
            == 3
        ), name
        if precision == "fp32":
            finite = [step for step in range(8) if step != 2]
            losses = [seen["losses"][step] for step in finite]
            assert losses == pytest.approx([expected["losses"][step] for step in finite], abs=1e-5), name
            assert seen["biases"] == [pytest.approx(b, abs=1e-7) for b in expected["biases"]], name
            weights = weights_of(task.out / "checkpoints" / "step-00000008")
            for key, tensor in expected["weights"].items():
                torch.testing.assert_close(weights[key], tensor, atol=1e-4, rtol=0, msg=f"{name} {key}")


@pytest.mark.engine
def test_too_many_in_a_row_end_the_run_on_all_ranks_and_save_nothing_more(tmp_path: Path) -> None:
    more = ("train.watch.skipped_in_a_row=2", "train.save_every=2")
    task = Task(Cell(2, 2, 1), tmp_path / "out", more, faults={"rank": 0, "loss": [5, 6, 7], "gradient": []})
    with pytest.raises(AssertionError, match="step 7: 3 steps in a row had a non-finite loss or gradient"):
        run_tasks([task], tmp_path)
    names = sorted(path.name for path in (task.out / "checkpoints").iterdir())
    assert names[-1] == "step-00000006", "a checkpoint that was begun before is complete"
    assert not any(name.startswith(".") for name in names)


@pytest.mark.engine
def test_the_count_of_skipped_steps_continues_after_a_resume(tmp_path: Path) -> None:
    bad = {"rank": 1, "loss": [2], "gradient": []}
    first = Task(Cell(2, 2, 1), tmp_path / "first", ("train.simulate_crash_at=4",), faults=bad)
    second = Task(
        Cell(2, 1, 2), tmp_path / "second", (), tmp_path / "first" / "checkpoints", faults={**bad, "loss": [6]}
    )
    run_tasks([first, second], tmp_path)
    manifest = json.loads((second.out / "checkpoints" / "step-00000008" / "manifest.json").read_text())
    assert manifest["details"]["state"]["skipped"]["total"] == 2


@pytest.mark.engine
def test_skipped_steps_in_a_row_are_counted_across_a_resume(tmp_path: Path) -> None:
    """Otherwise a run that cannot recover but saves often would be restarted forever."""
    bad, more = {"rank": 1, "loss": [3, 4, 5], "gradient": []}, ("train.watch.skipped_in_a_row=2",)
    first = Task(Cell(2, 2, 1), tmp_path / "first", (*more, "train.simulate_crash_at=4"), faults=bad)
    run_tasks([first], tmp_path)
    second = Task(Cell(2, 2, 1), tmp_path / "second", more, first.out / "checkpoints", faults=bad)
    with pytest.raises(AssertionError, match="step 5: 3 steps in a row"):
        run_tasks([second], tmp_path)


@pytest.mark.engine
def test_every_rank_writes_its_stack_even_if_one_never_releases_the_gil(tmp_path: Path) -> None:
    task = Task(Cell(2, 2, 1), tmp_path / "out", ("train.watch.hang_seconds=4",), hang={"rank": 1, "step": 3})
    with pytest.raises(AssertionError, match=rf"exit codes \[.*-{signal.SIGALRM:d}\b"):
        run_tasks([task], tmp_path)
    stacks = [(task.out / "stacks" / f"rank-0000{rank}.txt").read_text() for rank in (0, 1)]
    assert "in on_step_end" in stacks[1] and "engine_job.py" in stacks[1]
    assert "in sum_over_ranks" in stacks[0], "it waits for the other rank in a collective"


def start(root: Path, *overrides: str) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "launch", "local", "pretrain", "--recipe", str(RECIPE), f"run.root={root}"]
    argv += overrides
    return subprocess.Popen(argv, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with the small recipe's data."""
    folder = tmp_path_factory.mktemp("watched")
    argv = [sys.executable, "-m", "pipeline", "run", "--recipe", str(RECIPE), f"run.root={folder}"]
    subprocess.run(argv, cwd=CHECKOUT, check=True, capture_output=True)
    return folder


@pytest.mark.engine
def test_a_run_that_diverges_ends_with_one_line(root: Path) -> None:
    process = start(root, "run.name=end-to-end", "train.learning_rate=1e25", "train.watch.skipped_in_a_row=2")
    output = "".join(process.communicate(timeout=PATIENCE))
    assert process.returncode == 1
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert "3 steps in a row" in line and "restart with a lower train.learning_rate" in line
    assert "Traceback" not in output
    layout = RunLayout.of(load_recipe(RECIPE, [f"run.root={root}"]))
    assert not list((layout.pretrain / "checkpoints").glob("step-*"))
    events = read_metrics(layout.pretrain / "metrics.jsonl")["event"]
    assert [event["event"] for event in events] == ["skipped"] * 3


# Twenty seconds, including the limit of six, which avoids false alarms on a busy machine.
@pytest.mark.engine
def test_a_rank_that_hangs_ends_the_run_so_that_it_can_be_restarted(root: Path) -> None:
    """A suspended rank cannot write its stack, but the other one does, and the launcher returns 75."""
    layout = RunLayout.of(load_recipe(RECIPE, [f"run.root={root}"]))
    shutil.rmtree(layout.pretrain, ignore_errors=True)
    process = start(root, "train.steps=100000", "train.watch.hang_seconds=6", "launch.grace_seconds=5")
    metrics = layout.pretrain / "metrics.jsonl"
    wait_until(lambda: sum(1 for _ in read_records(metrics)) >= 4 or process.poll() is not None, "step")
    ranks = {p.environ().get("RANK"): p for p in psutil.Process(process.pid).children(recursive=True)}
    ranks["1"].suspend()
    _, alive = psutil.wait_procs([ranks["0"]], timeout=PATIENCE)
    assert not alive
    ranks["1"].kill()  # torchrun would wait half a minute for it to handle a signal
    _, output = process.communicate(timeout=PATIENCE)
    assert process.returncode == 75, output
    stacks = layout.pretrain / "stacks"
    assert f"no step in 6 s (train.watch.hang_seconds); the stack of every rank is in {stacks}. Run the same" in output
    assert "in run" in (stacks / "rank-00000.txt").read_text()
