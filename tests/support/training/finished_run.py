"""A run whose pretraining is finished, with several documents of ordinary words, for tests of evaluation and export."""

import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from artefacts import manifest
from artefacts.manifest import Manifest
from configs.load import dump_recipe
from configs.run_layout import RunLayout
from configs.schema import Recipe
from tests.support.training import tiny_run
from tests.support.training.shards import write
from tokenizer.base import Tokenizer
from tokenizer.registry import load_tokenizer
from training.checkpoint.save import RunIdentity
from training.checkpoint.write_full import write_full
from training.runs import pretrain_run

WORDS = "the quick brown fox jumps over lazy dogs and then runs away from many small houses near rivers".split()  # noqa: SIM905
VOCABULARY, CONTEXT = 128, 320


@dataclass(frozen=True)
class FinishedRun:
    """A run on disk, and its model in memory."""

    recipe: Recipe
    layout: RunLayout
    model: Any
    tokenizer: Tokenizer
    checkpoint: Path


def finished_run(root: Path, model: dict[str, Any], *overrides: str, seed: int = 0) -> FinishedRun:
    """Build a run in ``root``. Its weights are random, and large enough that no two scores are nearly equal."""
    root.mkdir(parents=True, exist_ok=True)
    characters, tiny_run.CHARACTERS = tiny_run.CHARACTERS, "\n" + "".join(map(chr, range(32, 127)))
    sizes = (f"tokenizer.vocab_size={VOCABULARY}", f"train.context_length={CONTEXT}")
    sizes += (f"train.global_batch_tokens={CONTEXT}",)
    try:
        recipe = tiny_run.tiny_recipe(
            root, {**model, "max_position_embeddings": CONTEXT}, *sizes, "train.steps=4", *overrides
        )
    finally:
        tiny_run.CHARACTERS = characters
    layout = RunLayout.of(recipe)
    tokenizer = load_tokenizer(layout.tokenizer)
    _write_tokens(layout, tokenizer)
    network = tiny_run.tiny_model(recipe)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.25, generator=generator)
    run = pretrain_run(recipe, layout)
    run.open(dump_recipe(recipe), replace=True)
    about = {"stage": "pretrain", "name": "pretrain", "steps": 0, "parameters": {"total": 9, "active": 9}}
    facts = {**recipe.model.identity(), "vocab_size": recipe.vocab_size}
    identity = RunIdentity(run.identity, run.inputs, facts, {}, about)
    checkpoint, _ = write_full(run.folder / "checkpoints", network, identity)
    run.finish(checkpoint)
    return FinishedRun(recipe, layout, network, tokenizer, checkpoint)


def later_checkpoint(run: FinishedRun, step: int) -> Path:
    """Copy the run's checkpoint as that of a later step. The run's last checkpoint stays the one at step 0."""
    folder = run.checkpoint.with_name(f"step-{step:08d}")
    shutil.copytree(run.checkpoint, folder)
    saved = manifest.require(folder, "pretrain")
    manifest.write(folder, Manifest(**{**vars(saved), "counts": {**saved.counts, "step": step}}))
    return folder


def _write_tokens(layout: RunLayout, tokenizer: Tokenizer) -> None:
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(20, 60))) for _ in range(24)]
    documents = [np.array([*tokenizer.encode(text), tokenizer.end_of_text_id]) for text in texts]
    counts = {"bytes": sum(map(len, texts)), "tokens": sum(map(len, documents)), "documents": len(texts)}
    for split in ("train", "val"):
        write(layout.tokens, split, [documents])
    about = {"vocab_size": VOCABULARY, "reserved": []}
    published = Manifest("tokenizer", {}, {}, {}, {}, manifest.describe_files(layout.tokenizer), about)
    manifest.write(layout.tokenizer, published)
    files, inputs = manifest.describe_files(layout.tokens), {"tokenizer": published.fingerprint}
    parts = {"train": counts, "validation": counts}
    manifest.write(layout.tokens, Manifest("tokens", {}, inputs, {}, parts, files, {"vocab_size": VOCABULARY}))
