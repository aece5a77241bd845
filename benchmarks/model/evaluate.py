"""Tasks of lm-eval on our decoder against lm-eval's backend ``hf`` on the exported model: the battery, 17M in fp32.

    python -m benchmarks.model.evaluate [--quick]

Both run the same tasks through lm-eval with the same batch size. ``hf`` uses transformers' fastest implementation of
experts, which is determined in the same run. The scores must agree to 1e-6. The weights are untrained, so generated
text rarely ends before its limit. lm-eval's own work, such as computing the metrics, is included for both. Loading the
tasks' data is not.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from artefacts.checkout import CHECKOUT
from benchmarks.corpus import web_pages
from benchmarks.model.shapes import EXPERTS, SHAPES, VOCAB, ours
from benchmarks.model.step import quickest
from benchmarks.paired import Ratio, compare, seconds

CONTEXT, BATCH = 512, 16
TASKS = ("text", "cloze", "continuation", "pydocs", "needle", "copy", "arithmetic")


def measure(quick: bool = False) -> Iterator[Ratio]:
    """Measure every task of the battery, and all tasks together. ``quick`` uses a fifth of the examples."""
    with tempfile.TemporaryDirectory() as folder:
        run, limit, rounds = _Run(Path(folder)), 20 if quick else 100, 2 if quick else 3
        run.require_same_scores(limit)
        for name in TASKS:
            yield run.compared(f"battery_{name}", limit, rounds, None)
        yield run.compared("battery", limit, rounds, 2.0)


class _Run:
    """A run with an untrained model, its export and its battery."""

    def __init__(self, root: Path) -> None:
        from configs.run_layout import RunLayout
        from tokenizer.registry import load_tokenizer
        from training.commands.export import export
        from training.evaluate.battery.build import write_battery
        from training.evaluate.harness.language_model import MillraceLM

        self.recipe = _recipe(root)
        layout = RunLayout.of(self.recipe)
        _save(self.recipe, layout)
        export(self.recipe)
        tokenizer = load_tokenizer(layout.tokenizer)
        self.folders, self.tasks = [root / "battery"], dict[str, Any]()
        write_battery(self.folders[0], self.recipe, layout, tokenizer)
        from training.layers import cpu

        cpu.compile_kernels()
        model = ours(SHAPES["17M"], _fp32(), VOCAB).eval()
        self.ours = MillraceLM(model, tokenizer, CONTEXT, BATCH)
        self.experts, self.theirs = self._fastest(str(layout.export))

    def _fastest(self, export: str) -> tuple[str, Any]:
        """Return lm-eval's ``hf`` with transformers' fastest implementation of experts, and its name."""
        from lm_eval.models.huggingface import HFLM

        backends = {
            name: HFLM(export, device="cpu", dtype="float32", batch_size=BATCH, experts_implementation=name)
            for name in EXPERTS
        }
        few = {
            name: min(self.seconds(backend, "battery_cloze", 8) for _ in range(2)) for name, backend in backends.items()
        }
        close = [name for name in EXPERTS if few[name] < 5 * min(few.values())]
        best = quickest({name: partial(self.scores, backends[name], "battery_cloze", 50) for name in close}, 2)
        return best, backends[best]

    def scores(self, model: Any, task: str, limit: int) -> Any:
        from training.evaluate.harness.run import Tasks

        if task not in self.tasks:
            self.tasks[task] = Tasks([task], self.folders)
        return self.tasks[task].run(model, None, limit, chat=False)

    def seconds(self, model: Any, task: str, limit: int) -> float:
        return seconds(lambda: self.scores(model, task, limit))

    def require_same_scores(self, limit: int) -> None:
        # Task by task: the cache of hf mixes up requests of different tasks that have the same tokens.
        for task in (f"battery_{name}" for name in TASKS):
            mine, theirs = (self.scores(model, task, limit)[task]["metrics"] for model in (self.ours, self.theirs))
            for metric, score in mine.items():
                peer = theirs[metric]["value"]
                difference = abs(score["value"] - peer) / max(1.0, abs(peer))
                assert difference < 1e-6, f"{task} {metric}: {score['value']}, but hf {peer}"

    def compared(self, task: str, limit: int, rounds: int, target: float | None) -> Ratio:
        return compare(
            f"lm-eval {task}, 17M fp32, against hf ({self.experts} experts)",
            lambda: self.seconds(self.ours, task, limit),
            lambda: self.seconds(self.theirs, task, limit),
            len(TASKS) * limit if task == "battery" else limit,
            "examples/s",
            target,
            rounds,
        )


def _recipe(root: Path) -> Any:
    """Write a recipe for the 17M model, and build its tokenizer and token shards."""
    from configs.load import load_recipe

    pages = root / "pages.jsonl"
    pages.write_text("".join(json.dumps({"text": text}) + "\n" for text in web_pages()), encoding="utf-8")
    recipe = {
        "run": {"name": "bench", "root": str(root)},
        "data": {"source": {"kind": "jsonl", "path": str(pages)}, "tokens": {"validation_fraction": 0.3}},
        "tokenizer": {"vocab_size": VOCAB},
        "model": {**SHAPES["17M"].model_dump(mode="json"), "max_position_embeddings": CONTEXT},
        "train": {
            "context_length": CONTEXT,
            "global_batch_tokens": 8 * CONTEXT,
            "steps": 1,
            "learning_rate": 1e-3,
            "precision": "fp32",
        },
        "launch": {"device": "cpu"},
    }
    path = root / "recipe.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")
    command = [sys.executable, "-m", "pipeline", "run", "--recipe", str(path)]
    subprocess.run(command, cwd=CHECKOUT, check=True, capture_output=True)
    return load_recipe(str(path), [])


def _save(recipe: Any, layout: Any) -> None:
    """Save the untrained weights as a checkpoint of pretraining."""
    from training.checkpoint.save import RunIdentity
    from training.checkpoint.write_full import write_full

    facts = {**recipe.model.identity(), "vocab_size": recipe.vocab_size}
    write_full(layout.pretrain / "checkpoints", ours(SHAPES["17M"], _fp32(), VOCAB), RunIdentity({}, {}, facts, {}))


def _fp32() -> Any:
    import torch

    return torch.float32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer examples and rounds")
    for ratio in measure(parser.parse_args().quick):
        print(ratio, flush=True)


if __name__ == "__main__":
    main()
