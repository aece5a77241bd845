"""One worker of the engine grid, which runs many trainings in the same process.

``torchrun ... tests/support/training/grid_job.py PLAN.json``: a list of {"out": FOLDER, "overrides": [key=value ...],
"from": FOLDER of checkpoints to start from, or null, and the other fields of ``tests.support.training.grid.Task``};
``engine_job.py`` runs every one of them.
"""

import json
import sys
import time
from pathlib import Path

import torch

from tests.support.training.engine_job import train_once
from training.distributed.join import join
from training.distributed.ranks import destroy_process_group


def main(plan: Path) -> None:
    torch.set_num_threads(1)
    ranks = join()
    for number, task in enumerate(json.loads(plan.read_text())):
        began = time.monotonic()
        out = Path(task["out"])
        out.mkdir(parents=True, exist_ok=True)
        begin_from = Path(task["from"]) if task["from"] else None
        special = {key: task[key] for key in ("full_disk", "faults", "hang", "trained", "swap_to")}
        train_once(out, task["overrides"], ranks, begin_from, **special)
        if ranks.first:
            print(f"{number + 1}: {out.name} in {time.monotonic() - began:.1f} s", flush=True)
    destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
