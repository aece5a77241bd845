"""A tiny run that is ready for a fine-tuning stage: finished pretraining, and answers or pairs of answers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet as pq
import torch

from artefacts import manifest
from artefacts.manifest import Manifest
from configs.run_layout import RunLayout
from configs.schema import Recipe
from tests.support.training.shapes import small
from tests.support.training.tiny_run import tiny_model, tiny_recipe
from tokenizer.chat_template import BUILT_IN
from tokenizer.special_tokens import ASSISTANT_ID, BEGIN_ID, END_OF_TURN_ID, IGNORED, USER_ID
from training.checkpoint.save import RunIdentity
from training.checkpoint.write_full import write_full
from training.runs import pretrain_run

MODEL: dict[str, Any] = small(hidden_size=16, num_attention_heads=2, n_routed_experts=4).model_dump()
#: 3 steps of 4 pairs; a stage of 1, 2 or 4 ranks.
SFT = ["finetune.examples.kind=files", "finetune.examples.path=pairs.jsonl"]
SFT += ["finetune.learning_rate=0.01", "finetune.max_length=16", "finetune.batch_examples=4"]
STAGE = ["finetune.method=dpo", *SFT]
PAIRS, HELD_OUT = 12, 5

Pair = tuple[list[int], list[int], list[int]]


def random_pairs(count: int, seed: int, vocab_size: int = 60) -> list[Pair]:
    """Prompts, chosen and rejected answers of different lengths. The rejected answer is longer and ends alike."""
    generator = np.random.default_rng(seed)

    def ids(low: int, high: int) -> list[int]:
        return generator.integers(8, vocab_size, generator.integers(low, high)).tolist()

    pairs = []
    for _ in range(count):
        chosen = ids(1, 5)
        pairs.append((ids(1, 4), chosen, ids(2, 5) + chosen))
    return pairs


def rendered(prompt: list[int], answer: list[int]) -> tuple[list[int], list[int]]:
    """The ids and labels of a conversation with one answer."""
    head = [BEGIN_ID, USER_ID, *prompt, END_OF_TURN_ID, ASSISTANT_ID]
    tail = [*answer, END_OF_TURN_ID]
    return head + tail, [IGNORED] * len(head) + tail


def write_pairs(folder: Path, split: str, pairs: list[Pair]) -> None:
    """Write ``SPLIT-00000.parquet`` as the examples stage does."""
    columns: dict[str, list[Any]] = {}
    for prompt, *answers in pairs:
        for side, answer in zip(("chosen", "rejected"), answers, strict=True):
            ids, labels = rendered(prompt, answer)
            columns.setdefault(f"ids_{side}", []).append(ids)
            columns.setdefault(f"labels_{side}", []).append(labels)
            columns.setdefault(side, []).append(str(answer))
        columns.setdefault("source", []).append("pairs")
        columns.setdefault("question", []).append(str(prompt))
    _write_table(folder, split, columns)


def write_answers(folder: Path, split: str, pairs: list[Pair]) -> None:
    """Write the pairs' chosen answers, as the examples stage does for ``method: sft``."""
    ids, labels = zip(*(rendered(prompt, chosen) for prompt, chosen, _ in pairs), strict=True)
    _write_table(folder, split, {"ids": [*ids], "labels": [*labels]})


def _write_table(folder: Path, split: str, columns: dict[str, list[Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lists = pyarrow.list_(pyarrow.int32())
    arrays = {
        name: pyarrow.array(values, lists if isinstance(values[0], list) else pyarrow.string())
        for name, values in columns.items()
    }
    pq.write_table(pyarrow.table(arrays), folder / f"{split}-00000.parquet")


def publish_examples(folder: Path, tokenizer: str) -> None:
    """Write the manifest of a folder of examples."""
    files, template = manifest.describe_files(folder), {"template": {"source": BUILT_IN["millrace"]}}
    counts = {
        split: {"examples": sum(pq.read_metadata(file).num_rows for file in folder.glob(f"{name}-*.parquet"))}
        for split, name in (("train", "train"), ("held_out", "held-out"))
    }
    manifest.write(folder, Manifest("examples", {}, {"tokenizer": tokenizer}, {}, counts, files, template))


def with_pairs(root: Path, model: dict[str, Any] | None = None, *overrides: str) -> tuple[Recipe, RunLayout]:
    """A run with random weights as its finished pretraining, and pairs for the stage ``dpo``."""
    return _with_examples(root, model, "dpo", write_pairs, [*STAGE, *overrides])


def with_answers(root: Path) -> tuple[Recipe, RunLayout]:
    """A run with random weights as its finished pretraining, and answers for the stage ``sft``."""
    return _with_examples(root, None, "sft", write_answers, SFT)


def _with_examples(
    root: Path, model: dict[str, Any] | None, stage: str, write: Callable[..., None], overrides: list[str]
) -> tuple[Recipe, RunLayout]:
    root.mkdir(parents=True, exist_ok=True)
    recipe = tiny_recipe(root, model or MODEL, *overrides)
    layout = RunLayout.of(recipe)
    files = manifest.describe_files(layout.tokenizer)
    tokenizer = Manifest("tokenizer", {}, {}, {}, {}, files, {"vocab_size": 80, "reserved": []})
    manifest.write(layout.tokenizer, tokenizer)
    inputs = {"tokenizer": tokenizer.fingerprint}
    files = manifest.describe_files(layout.tokens)
    counts = {"validation": {"bytes": 100, "tokens": 100}}
    manifest.write(layout.tokens, Manifest("tokens", {}, inputs, {}, counts, files, {"vocab_size": 80}))
    for split, count in (("train", PAIRS), ("held-out", HELD_OUT)):
        write(layout.examples_of(stage), split, random_pairs(count, count))
    publish_examples(layout.examples_of(stage), tokenizer.fingerprint)
    run = pretrain_run(recipe, layout)
    run.open("", replace=False)
    facts = {"stage": "pretrain", "name": "pretrain", "steps": 0, "parameters": {"total": 1, "active": 1}}
    section = {**recipe.model.identity(), "vocab_size": recipe.vocab_size}
    identity = RunIdentity(run.identity, run.inputs, section, {"ranks": 1}, facts)
    run.finish(write_full(run.folder / "checkpoints", tiny_model(recipe), identity)[0])
    return recipe, layout


def start_weights(recipe: Recipe) -> Any:
    """The model that the stage starts from."""
    return tiny_model(recipe).to(torch.float32)
