"""The grid of topologies, and many trainings in few processes."""

import itertools
import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.training import grid_job
from tests.support.training.workers import fork_workers, torchrun_workers
from tests.support.waiting import PATIENCE

RANKS, STAGES, ACCUMULATION, CHECKPOINTING = (1, 2, 4), (0, 1, 2, 3), (1, 2), ("none", "full")
#: Samples of a global batch in tests/support/training/engine.yaml.
_SAMPLES = 8


@dataclass(frozen=True)
class Cell:
    """One topology and how it computes."""

    ranks: int
    expert_parallel: int
    stage: int
    accumulation: int = 1
    checkpointing: str = "none"

    def __str__(self) -> str:
        kind = f"{self.ranks} ranks, EP {self.expert_parallel}, ZeRO {self.stage}"
        return f"{kind}, accumulation {self.accumulation}, checkpointing {self.checkpointing}"

    @property
    def overrides(self) -> list[str]:
        return [
            f"launch.processes={self.ranks}",
            f"train.expert_parallel={self.expert_parallel}",
            f"train.zero_stage={self.stage}",
            f"train.micro_batch={_SAMPLES // self.ranks // self.accumulation}",
            f"train.activation_checkpointing={self.checkpointing}",
        ]


@dataclass(frozen=True)
class Task:
    """One training of a cell, and the faults to simulate.

    Attributes:
        cell: its topology.
        out: where it writes.
        more: overrides of the recipe.
        begin_from: a folder of checkpoints to start from.
        full_disk: the steps between which the disk of the last rank is full.
        faults: ``rank``, and the steps at which its ``loss`` or its ``gradient`` is not finite.
        hang: ``rank``, and the ``step`` after which it hangs.
        trained: fields of ``TrainedPart``, with the keys of its ``lora``.
        swap_to: folder to which DeepSpeed swaps, also where recipes may not set one.
    """

    cell: Cell
    out: Path
    more: tuple[str, ...] = ()
    begin_from: Path | None = None
    full_disk: tuple[int, int] | None = None
    faults: dict[str, Any] | None = None
    hang: dict[str, int] | None = None
    trained: dict[str, Any] | None = None
    swap_to: Path | None = None

    def seen(self) -> dict[str, Any]:
        results: dict[str, Any] = json.loads((self.out / "seen.json").read_text())
        return results


def legal_cells() -> list[Cell]:
    """Every cell whose expert-parallel size divides its ranks."""
    every = itertools.product(RANKS, RANKS, STAGES, ACCUMULATION, CHECKPOINTING)
    return [Cell(*values) for values in every if values[0] % values[1] == 0]


def topologies() -> list[Cell]:
    """Every legal ranks, expert-parallel size and stage."""
    return [cell for cell in legal_cells() if cell.accumulation == 1 and cell.checkpointing == "none"]


def pairs_of_topologies(sampled: int) -> list[tuple[Cell, Cell]]:
    """Every ordered pair of different topologies with ZeRO 1 or 2, and ``sampled`` of the other pairs."""
    pairs = list(itertools.permutations(topologies(), 2))
    among = [pair for pair in pairs if {cell.stage for cell in pair} <= {1, 2}]
    others = [pair for pair in pairs if pair not in among]
    return among + random.Random(0).sample(others, sampled)


def run_tasks(tasks: Iterable[Task], folder: Path, environment: dict[str, str] | None = None) -> str:
    """Do all tasks, with one start of processes per number of ranks; returns their output.

    ``environment``: variables that differ from those for CPU; with it, torchrun starts the processes.
    """
    output = ""
    tasks = sorted(tasks, key=lambda task: task.cell.ranks)
    for ranks, group in itertools.groupby(tasks, key=lambda task: task.cell.ranks):
        plan = folder / f"plan-{ranks}.json"
        entries = [
            {
                "out": str(task.out),
                "overrides": [*task.cell.overrides, *task.more],
                "from": str(task.begin_from) if task.begin_from else None,
                "full_disk": task.full_disk,
                "faults": task.faults,
                "hang": task.hang,
                "trained": task.trained,
                "swap_to": str(task.swap_to) if task.swap_to else None,
            }
            for task in group
        ]
        plan.write_text(json.dumps(entries))
        patience = PATIENCE + 60 * len(entries)
        if environment:
            output += torchrun_workers("tests/support/training/grid_job.py", ranks, [str(plan)], environment, patience)
        else:
            output += fork_workers(grid_job.main, ranks, plan, plan.with_suffix(".log"), patience)
    return output
