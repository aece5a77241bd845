"""Adapters and frozen layers on several processes: the same as on one device, and nothing else is trained."""

from typing import Any

import pytest
import torch

from tests.support.training.grid import Cell, Task, run_tasks
from tests.training.engine.test_engine import follow, weights_of
from training.checkpoint.full_weights import read_adapters
from training.trainer.load_balancer import BIAS

pytestmark = [pytest.mark.engine, pytest.mark.apart]

EVERYWHERE = ["attention", "dense", "shared_experts", "routed_experts"]
PARTS: dict[str, dict[str, Any]] = {
    "lora": {"lora": {"rank": 8, "alpha": 16, "targets": EVERYWHERE}, "rate_scales": {"*.lora_B": 4.0}},
    "dora": {"lora": {"rank": 4, "alpha": 4, "dora": True}},
    "frozen_experts": {"freeze": ["*.experts.*"]},
    "frozen_layers": {"freeze": ["model.embed_tokens.*", "model.layers.[01].*"], "rate_scales": {"*_proj*": 0.5}},
}


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("lora", [Cell(2, 2, 1), Cell(2, 2, 3, 2, "full")]),
        pytest.param("lora", [Cell(1, 1, 0), Cell(2, 1, 2)], marks=pytest.mark.slow),
        pytest.param("frozen_experts", [Cell(2, 2, 0), Cell(2, 2, 3)], marks=pytest.mark.slow),
        pytest.param("lora", [Cell(2, 2, stage, 2) for stage in (0, 2)], marks=pytest.mark.slow),
        pytest.param("lora", [Cell(4, 2, stage) for stage in (1, 3)], marks=pytest.mark.slow),
        pytest.param("dora", [Cell(1, 1, 1), Cell(2, 2, 3), Cell(2, 1, 0)], marks=pytest.mark.slow),
        pytest.param("frozen_experts", [Cell(2, 2, 1), Cell(2, 1, 2)], marks=pytest.mark.slow),
        pytest.param("frozen_layers", [Cell(2, 2, stage) for stage in (0, 1, 2, 3)], marks=pytest.mark.slow),
    ],
)
def test_the_trained_part_is_the_same_on_any_topology(tmp_path, name: str, cells: list[Cell]) -> None:
    expected = follow([], trained=PARTS[name])
    tasks = [Task(cell, tmp_path / str(number), trained=PARTS[name]) for number, cell in enumerate(cells)]
    run_tasks(tasks, tmp_path)
    for task in tasks:
        seen = task.seen()
        assert seen["losses"] == pytest.approx(expected["losses"], abs=1e-5), task.cell
        assert seen["norms"] == pytest.approx(expected["norms"], rel=1e-4), task.cell
        (checkpoint,) = (task.out / "checkpoints").glob("step-*")
        weights = {**weights_of(checkpoint, merge=False), **dict(read_adapters(checkpoint))}
        assert set(weights) == set(expected["weights"])
        for key, tensor in weights.items():
            torch.testing.assert_close(tensor, expected["weights"][key], atol=1e-4, rtol=0, msg=key)
            assert key in expected["trained"] or key.endswith(BIAS) or torch.equal(tensor, expected["weights"][key]), (
                key
            )


@pytest.mark.slow
def test_frozen_weights_in_bf16_survive_saving_and_resuming(tmp_path) -> None:
    """A frozen weight is kept in the compute dtype, so that it is the same in any topology and after any resume."""
    bf16, part = ("train.precision=bf16",), PARTS["lora"]
    first = Task(Cell(2, 2, 1), tmp_path / "first", (*bf16, "train.simulate_crash_at=4"), trained=part)
    run_tasks([first], tmp_path)
    tasks = [
        Task(cell, tmp_path / f"next-{cell.stage}", bf16, first.out / "checkpoints", trained=part)
        for cell in (Cell(2, 2, 1), Cell(2, 1, 3))
    ]
    run_tasks(tasks, tmp_path)
    weights = [
        weights_of(next((task.out / "checkpoints").glob(f"step-*{step}")), merge=False)
        for task, step in ((first, 4), (tasks[0], 8), (tasks[1], 8))
    ]
    for name, tensor in weights[0].items():
        same = [torch.equal(tensor, other[name]) for other in weights[1:]]
        assert all(same) or name.endswith(BIAS), name
        assert torch.equal(tensor, tensor.bfloat16().float()) or name.endswith(BIAS), name
    losses = [task.seen()["losses"] for task in tasks]
    assert losses[0] == pytest.approx(losses[1], abs=2e-2) and losses[0][-1] != first.seen()["losses"][-1]
