"""Recipes of supervised models, with small corpora of texts with targets."""

import json
from pathlib import Path

from configs.load import load_recipe
from configs.schema import Recipe
from tests.support.paths import CHECKOUT

CONFIGS = CHECKOUT / "configs" / "teaching"
RECIPES = {
    "token_classification": "encoder-copy",
    "seq2seq": "seq2seq-reverse",
    "sequence_classification": "classifier",
}


def task_recipe(root: Path, task: str, *more: str) -> Recipe:
    """The shipped recipe of a family, made small, with a tokenizer of characters."""
    return load_recipe(CONFIGS / f"{RECIPES[task]}.yaml", task_overrides(root, *more))


def task_overrides(root: Path, *more: str) -> list[str]:
    kept = ("tokenizer={kind: characters, vocab_size: 200}", "data.clean.min_chars=0", "data.workers=1")
    return [f"run.root={root}", *kept, "data.tokens.validation_fraction=0.1", *more]


def write_records(path: Path, records: list[tuple[str, object]]) -> list[str]:
    """Write (text, target) records; returns the overrides to read them."""
    lines = (json.dumps({"text": text, "target": target}) + "\n" for text, target in records)
    path.write_text("".join(lines), encoding="utf-8")
    return [f"data.source={{kind: jsonl, path: {path}, target_field: target}}"]
