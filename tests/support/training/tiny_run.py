"""A run on disk with a character tokenizer and tokens, and its model in memory, for tests of commands."""

import json
import string
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from artefacts import atomic
from configs.load import load_recipe
from configs.schema import Recipe
from tests.support.training.shards import write
from tokenizer import special_tokens
from tokenizer.registry import load_tokenizer
from training.models.registry import build_model, init_weights

CHARACTERS = "".join(sorted(string.ascii_letters + " .$\n"))
GPT: dict[str, Any] = {"family": "gpt", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
GPT |= {"max_position_embeddings": 64, "initializer_range": 0.2}
TRAIN: dict[str, Any] = {"context_length": 16, "global_batch_tokens": 64, "steps": 4, "learning_rate": 1e-2}
TRAIN |= {"precision": "fp32"}
TEXT = "The quick brown fox jumps over the lazy dog.\nA dog sleeps."


def tiny_recipe(root: Path, model: dict[str, Any], *overrides: str) -> Recipe:
    """A recipe file in ``root`` for a model, on one CPU process; with its tokenizer and shards of ``TEXT``."""
    recipe = {
        "run": {"name": "tiny", "root": str(root)},
        "tokenizer": {"kind": "characters", "vocab_size": 80},
        "model": model,
        "train": TRAIN,
        "launch": {"device": "cpu"},
    }
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    folder = character_tokenizer(root / "tiny" / "tokenizer")
    ids = load_tokenizer(folder).encode(TEXT)
    for split in ("train", "val"):
        write(root / "tiny" / "tokens", split, [[torch.tensor([*ids, special_tokens.END_OF_TEXT_ID]).numpy()] * 12])
    return load_recipe(str(root / "recipe.yaml"), list(overrides))


def character_tokenizer(folder: Path) -> Path:
    """Write a tokenizer with an id for each of ``CHARACTERS`` to a folder; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    reserved = [*special_tokens.RESERVED, *special_tokens.spare(8)]
    # Atomically, because all ranks of a test write the same file.
    atomic.write_text(folder / "characters.json", json.dumps({"reserved": reserved, "characters": CHARACTERS}))
    return folder


def tiny_model(recipe: Recipe) -> Any:
    model = build_model(recipe.model, recipe.vocab_size)
    init_weights(model, 0)
    return model.eval()


def as_trained(monkeypatch: pytest.MonkeyPatch, module: Any, model: Any) -> None:
    """Let the module of a command load this model as the newest checkpoint of the run."""
    monkeypatch.setattr(module, "wanted_checkpoint", lambda _recipe, layout: layout.pretrain / "step-00000004")
    monkeypatch.setattr(module, "load_model", lambda *_: model)
