"""Every family under DeepSpeed: each topology computes what one process does and resumes from another's checkpoint."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.training.grid import Cell, Task, run_tasks
from tests.training.checkpoint.test_topologies import HALF, LOSS, NORM

pytestmark = [pytest.mark.engine, pytest.mark.apart]
_SIZES = "hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, max_position_embeddings: 64"
MODELS = {
    "gpt": f"{{family: gpt, {_SIZES}}}",
    "gpt-untied": f"{{family: gpt, {_SIZES}, positions: rope, window: 8, tie_word_embeddings: false}}",
    "bigram": "{family: bigram}",
    "encoder": f"{{family: encoder, {_SIZES}}}",
    "encoder_decoder": f"{{family: encoder_decoder, {_SIZES}, tie_word_embeddings: true, cross_downsample: 2}}",
    "classifier": f"{{family: classifier, classes: 3, backbone_rate: 0.5, backbone: {{family: gpt, {_SIZES}}}}}",
    "frozen": f"{{family: classifier, classes: 3, backbone_rate: 0, weights: a, backbone: {{{_SIZES}}}}}",
}
#: The tests use synthetic data, but recipes of some families require targets.
TARGETS = "data.source={kind: sequences}"
#: Removes the experts of the base recipe.
NO_EXPERTS = "train.router_bias_update_rate=0"
#: ZeRO-0 on one process is the reference; checkpointing and accumulation must not change the results.
PLAIN = Cell(1, 1, 0)
CELLS = (Cell(2, 1, 1, 2, "full"), Cell(2, 1, 2, 1, "selective"), Cell(2, 1, 3), Cell(1, 1, 1))
PAIRS = ((Cell(1, 1, 0), Cell(2, 1, 3)), (Cell(2, 1, 1, 2, "full"), Cell(1, 1, 1)), (Cell(2, 1, 3), Cell(2, 1, 2)))


# Twenty seconds: 77 trainings in four starts, since every family has different state.
def test_topologies_and_resumes_equal_one_process(tmp_path: Path) -> None:
    tasks: dict[tuple[Any, ...], Task] = {}
    for name, model in MODELS.items():
        more = (f"model={model}", TARGETS, NO_EXPERTS)
        for cell in (PLAIN, *CELLS):
            tasks[name, cell] = Task(cell, tmp_path / f"{name}-{len(tasks)}", more)
        for before, _ in PAIRS:
            stops = (*more, f"train.simulate_crash_at={HALF}")
            tasks[name, before, "stopped"] = Task(before, tmp_path / f"{name}-{len(tasks)}", stops)
    run_tasks(tasks.values(), tmp_path)
    resumes: dict[tuple[Any, ...], Task] = {}
    for name, model in MODELS.items():
        for before, after in PAIRS:
            begun = tasks[name, before, "stopped"].out / "checkpoints"
            out = tmp_path / f"{name}-resumed-{len(resumes)}"
            resumes[name, (before, after)] = Task(after, out, (f"model={model}", TARGETS, NO_EXPERTS), begin_from=begun)
    run_tasks(resumes.values(), tmp_path)
    for (name, *what), task in {**tasks, **resumes}.items():
        reference, seen = tasks[name, PLAIN].seen(), task.seen()
        first, last = (HALF, None) if (name, *what) in resumes else (0, HALF if what[-1] == "stopped" else None)
        for key, tolerance in (("losses", {"abs": LOSS}), ("norms", {"rel": NORM})):
            title = f"{name}, {what}: {key}"
            assert seen[key] == pytest.approx(reference[key][first:last], **tolerance), title
        assert reference["losses"][-1] < reference["losses"][0], f"{name} learns nothing"
