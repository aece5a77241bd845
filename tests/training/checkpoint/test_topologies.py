"""Every valid topology computes the same as one process, and resumes from the checkpoint of any other."""

import math
from pathlib import Path
from typing import Any

import pytest

from tests.support.training.grid import (
    ACCUMULATION,
    CHECKPOINTING,
    RANKS,
    STAGES,
    Cell,
    Task,
    legal_cells,
    pairs_of_topologies,
    run_tasks,
    topologies,
)
from tests.training.engine.test_engine import follow, weights_of

pytestmark = [pytest.mark.engine, pytest.mark.apart]
HALF = 4
#: Tolerances for a different order of sums; larger for weights, since Adam divides by small numbers.
LOSS, NORM, WEIGHT = 1e-5, 1e-5, 1e-4


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    return follow([])


def differences(seen: dict[str, Any], reference: dict[str, Any], start: int = 0) -> list[str]:
    """Differences from the reference, from step ``start`` on."""
    wrong = []
    losses, norms = reference["losses"][start:], reference["norms"][start:]
    if len(seen["losses"]) != len(losses) or seen["losses"] != pytest.approx(losses, abs=LOSS):
        wrong.append(f"losses {seen['losses']}, not {losses}")
    if seen["norms"] != pytest.approx(norms, rel=NORM):
        wrong.append(f"gradient norms {seen['norms']}, not {norms}")
    if any(o != pytest.approx(t, abs=1e-7) for o, t in zip(seen["biases"], reference["biases"], strict=True)):
        wrong.append(f"biases {seen['biases']}, not {reference['biases']}")
    return wrong


def different_weights(task: Task, reference: dict[str, Any]) -> list[str]:
    """Differences of the last checkpoint's weights from the reference."""
    *_, checkpoint = sorted((task.out / "checkpoints").glob("step-*"))
    weights = weights_of(checkpoint)
    worst = {name: float((weights[name] - tensor).abs().max()) for name, tensor in reference["weights"].items()}
    return [f"{name} differs by {by}" for name, by in worst.items() if not by <= WEIGHT]


def complain(wrong: dict[str, list[str]]) -> None:
    assert not wrong, "\n".join(f"{name}: {'; '.join(faults)}" for name, faults in wrong.items())


def check_cells(cells: list[Cell], folder: Path, reference: dict[str, Any]) -> None:
    tasks = [Task(cell, folder / str(number)) for number, cell in enumerate(cells)]
    run_tasks(tasks, folder)
    failures = {str(t.cell): differences(t.seen(), reference) + different_weights(t, reference) for t in tasks}
    complain({name: faults for name, faults in failures.items() if faults})


def test_the_reference_exercises_clipping_and_balancing(reference, tmp_path) -> None:
    """In the reference, every step is clipped, the biases change, and half of the experts get no tokens at first."""
    assert min(reference["norms"]) > 2 * 0.5
    assert all(len(set(biases)) > 1 for biases in reference["biases"])
    task = Task(Cell(2, 2, 1), tmp_path / "out")
    run_tasks([task], tmp_path)
    first, *_, last = (loads[0] for loads in task.seen()["loads"])
    assert first[:4] == [0.0] * 4, "the first of two and the first two of four expert-parallel ranks must get none"
    assert max(last[:4]) > 0, "and later some"


# Twenty seconds: every ninth legal cell, which covers ranks, expert parallelism, stages and checkpointing.
def test_a_sample_of_the_grid(reference, tmp_path) -> None:
    check_cells([cell for number, cell in enumerate(legal_cells()) if number % 9 == 4], tmp_path, reference)


@pytest.mark.slow
def test_every_legal_cell(reference, tmp_path, capsys) -> None:
    cells = legal_cells()
    divisors = sum(sum(1 for size in RANKS if ranks % size == 0) for ranks in RANKS)
    assert len(cells) == divisors * len(STAGES) * len(ACCUMULATION) * len(CHECKPOINTING) == 96
    check_cells(cells, tmp_path, reference)
    with capsys.disabled():
        print(f"\n{len(cells)} cells of the grid: losses, gradient norms, biases and read_weights equal one process's")


def check_pairs(pairs: list[tuple[Cell, Cell]], folder: Path, reference: dict[str, Any]) -> None:
    writers = {
        cell: Task(cell, folder / f"from-{n}", (f"train.simulate_crash_at={HALF}",))
        for n, cell in enumerate(topologies())
    }
    needed = {before for before, _ in pairs}
    run_tasks([task for cell, task in writers.items() if cell in needed], folder)
    readers = [
        Task(after, folder / f"pair-{n}", begin_from=writers[before].out / "checkpoints")
        for n, (before, after) in enumerate(pairs)
    ]
    run_tasks(readers, folder)
    wrong = {}
    for (before, after), task in zip(pairs, readers, strict=True):
        faults = differences(task.seen(), reference, HALF) + different_weights(task, reference)
        if faults:
            wrong[f"{before} -> {after}"] = faults
    complain(wrong)


def test_a_sample_of_elastic_pairs(reference, tmp_path) -> None:
    """From fewer to more ranks and back, between expert-parallel sizes, and from every stage to every other."""
    pairs = [
        (Cell(2, 2, 1), Cell(1, 1, 2)),
        (Cell(1, 1, 1), Cell(2, 2, 1)),
        (Cell(2, 1, 3), Cell(2, 2, 1)),
        (Cell(2, 2, 1), Cell(2, 2, 3)),
        (Cell(2, 2, 3), Cell(1, 1, 0)),
        (Cell(1, 1, 0), Cell(2, 2, 2)),
        (Cell(2, 2, 3), Cell(4, 4, 3)),
    ]
    check_pairs(pairs, tmp_path, reference)


@pytest.mark.slow
def test_every_elastic_pair(reference, tmp_path, capsys) -> None:
    pairs = pairs_of_topologies(sampled=60)
    check_pairs(pairs, tmp_path, reference)
    assert sum({before.stage, after.stage} <= {1, 2} for before, after in pairs) == math.perm(12, 2)
    with capsys.disabled():
        print(f"\n{len(pairs)} elastic pairs: the second topology resumes from the first's checkpoint as one run would")
