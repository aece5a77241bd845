"""Evaluates a run: models and baselines on the validation text, loss on held-out answers, and a sample."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from configs.run_layout import RunLayout
from configs.schema import Recipe
from pipeline.tokens.indexed_dataset import IndexedDataset, shard_prefixes
from tokenizer.registry import load_tokenizer
from training.data.build import validation_windows
from training.data.chat import ChatExamples
from training.evaluate.baselines import bigram_nats, compressed_bytes
from training.evaluate.loss import Measured, measure
from training.evaluate.preferences import evaluate_preferences
from training.inference.completion import complete
from training.model_loading import best_device, chat_template_of, load_model
from training.objective import Objective
from training.runs import finished_checkpoint

#: Maximum number of training tokens that the bigram baseline counts.
_BIGRAM_TOKENS = 50_000_000


def evaluate_run(
    recipe: Recipe, layout: RunLayout, counts: dict[str, Any], pretrained: Path, finetuned: Mapping[str, Path]
) -> dict[str, Any]:
    """Evaluate a run and return the contents of ``evaluation.json``.

    Args:
        recipe: the run's recipe.
        layout: the run's layout.
        counts: the token manifest's counts for the validation split.
        pretrained: folder of the pretrained checkpoint.
        finetuned: stage name -> folder of its checkpoint, for every fine-tuning stage to evaluate.
    """
    device = best_device(recipe)
    limit, batch = recipe.evaluate.max_tokens, recipe.evaluate.batch
    windows = validation_windows(recipe, layout).in_order(batch, limit)
    objective = Objective(recipe.model, recipe.train)
    text = _validation_text(layout, limit)
    text_bytes = len(text) if limit else int(counts["bytes"])
    tokenizer = load_tokenizer(layout.tokenizer)
    model = load_model(recipe, pretrained, device)
    base = measure(model, objective, windows, device, "validation")
    results: dict[str, Any] = {
        "pretrain": {
            "checkpoint": pretrained.name,
            "loss": base.loss,
            "tokens": base.targets,
            "bytes": text_bytes,
            "bits_per_byte": base.bits_per_byte(text_bytes),
        },
        "baselines": _baselines(recipe, layout, text, text_bytes),
        "experts": {layer: _load_facts(load) for layer, load in base.loads.items()},
    }
    held_out = {
        stage: ChatExamples(layout.examples_of(stage), "held-out", tokenizer.pad_id)
        for stage in finetuned
        if not recipe.stage(stage).preference
    }
    before = {
        stage: _measure_answers(recipe, model, examples, device, f"{stage}, before")
        for stage, examples in held_out.items()
    }
    results["finetune"] = {}
    for stage, checkpoint in finetuned.items():
        answers: dict[str, Any] = {}
        if stage not in held_out:
            answers = _preferences(recipe, layout, stage, checkpoint, device)
        model = load_model(recipe, checkpoint, device)
        if stage in held_out:
            after = _measure_answers(recipe, model, held_out[stage], device, f"{stage}, after")
            answers = {
                "examples": len(held_out[stage]),
                "held_out_loss_before": before[stage].loss,
                "held_out_loss_after": after.loss,
            }
        tuned = measure(model, objective, windows, device, f"validation, after {stage}")
        results["finetune"][stage] = {
            "checkpoint": checkpoint.name,
            **answers,
            "bits_per_byte": tuned.bits_per_byte(text_bytes),
        }
    if recipe.generate.prompt:
        template = chat_template_of([pretrained, *finetuned.values()][-1], tokenizer)
        completion = "".join(complete(recipe, model, tokenizer, template=template))
        results["samples"] = [{"prompt": recipe.generate.prompt, "completion": completion}]
    return results


def _preferences(
    recipe: Recipe, layout: RunLayout, stage: str, checkpoint: Path, device: torch.device
) -> dict[str, Any]:
    section = recipe.stage(stage)
    start = finished_checkpoint(layout.training(recipe.start_of(section)))
    assert start is not None, "the command has checked the stages"
    load = partial(load_model, recipe, device=device)
    return evaluate_preferences(recipe, layout, section, load, start[0], checkpoint, device)


def _baselines(recipe: Recipe, layout: RunLayout, text: bytes, text_bytes: int) -> dict[str, dict[str, float]]:
    bigram = _bigram(layout, recipe.evaluate.max_tokens, recipe.vocab_size)
    return {
        "bigram": {"bits_per_byte": bigram.bits_per_byte(text_bytes)},
        "zstd -19": {"bits_per_byte": 8 * compressed_bytes(text) / text_bytes},
    }


def _measure_answers(recipe: Recipe, model: Any, examples: ChatExamples, device: torch.device, when: str) -> Measured:
    """Measure a model's loss on held-out answers.

    ``when`` labels the progress bar: the stage, and ``before`` or ``after`` fine-tuning.
    """
    # Each answer is a separate sample, so there are no document boundaries to mask.
    objective = Objective(recipe.model, recipe.train.model_copy(update={"mask_documents": False}))
    return measure(model, objective, examples.in_order(recipe.evaluate.batch), device, f"held-out answers, {when}")


def _load_facts(load: list[float]) -> dict[str, Any]:
    return {"load": load, "max_over_mean": max(load), "variation": float(np.std(load))}


def _streams(folder: Path, split: str, limit: int | None) -> list[np.ndarray]:
    """Return a split's shards as token streams, up to ``limit`` tokens in total."""
    streams, left = [], limit
    for prefix in shard_prefixes(folder, split):
        stream = IndexedDataset(prefix).tokens[:left]
        streams.append(stream)
        if left is not None:
            left = max(0, left - len(stream))
    return [stream for stream in streams if len(stream) > 1]


def _validation_text(layout: RunLayout, limit: int | None) -> bytes:
    """Decode the validation tokens, and return the concatenated text as UTF-8."""
    tokenizer = load_tokenizer(layout.tokenizer)
    return "".join(tokenizer.decode(stream.tolist()) for stream in _streams(layout.tokens, "val", limit)).encode()


def _bigram(layout: RunLayout, limit: int | None, vocab_size: int) -> Measured:
    validation = _streams(layout.tokens, "val", limit)
    nats = bigram_nats(_streams(layout.tokens, "train", _BIGRAM_TOKENS), validation, vocab_size)
    return Measured(nats, sum(len(stream) - 1 for stream in validation), {})
