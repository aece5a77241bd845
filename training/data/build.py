"""Builds a run's training and validation data from its artefacts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from artefacts import manifest
from configs.run_layout import RunLayout
from configs.schema import Recipe
from tokenizer.registry import load_tokenizer
from training.data.batch import Samples
from training.data.examples import ExampleData, Examples
from training.data.packed import PackedSamples
from training.data.pretraining import PretrainingData
from training.data.replay import Replay
from training.data.tasks import LabelExamples, PairExamples, TagExamples
from training.data.windows import TokenWindows
from training.runs import mixture_weights


def pretraining_data(recipe: Recipe, layout: RunLayout) -> PretrainingData | ExampleData:
    """Build the pretraining data: token shards of one or several weighted sources, or examples, depending on the task.

    Batches mark document starts if ``train.mask_documents`` is set. Batches of packed samples always do.

    Raises:
        RequestError: shards, packing or examples are missing, damaged or made for another recipe, or they contain less
            than one sample.
    """
    if recipe.task != "language_modeling":
        return ExampleData(task_examples(recipe, layout, "train"), recipe.train.global_batch, recipe.run.seed)
    samples, weights = _training_samples(recipe, layout)
    return PretrainingData(samples, recipe.train.global_batch, recipe.run.seed, weights)


def replayed(recipe: Recipe, layout: RunLayout, samples: int, length: int) -> Replay:
    """Return pretraining text for the steps of fine-tuning, in the proportions of pretraining.

    Args:
        recipe: the recipe.
        layout: the run's layout.
        samples: samples per step.
        length: tokens per sample.

    Raises:
        RequestError: shards are missing or damaged, or they contain less than one sample.
    """
    windows = recipe.train.model_copy(update={"context_length": length, "packing": "windows"})
    sources, weights = _training_samples(recipe.model_copy(update={"train_section": windows}), layout)
    return Replay(PretrainingData(sources, samples, recipe.run.seed, weights), samples, length)


def _training_samples(recipe: Recipe, layout: RunLayout) -> tuple[dict[str, Samples], Mapping[str, float]]:
    """Return the training samples of every source, and the sources' weights."""
    tokens = manifest.require(layout.tokens, "data")
    weights: Mapping[str, float] = {"the training data": 1.0}
    folders = {"the training data": Path()}
    if "sources" in tokens.counts:
        weights = mixture_weights(recipe, layout, tokens)
        folders = {name: Path(name) for name in weights}
    length = recipe.train.context_length
    samples: dict[str, Samples] = {}
    if recipe.train.packing == "best_fit":
        # Padding is never a target, so any token will do, and every tokenizer has this one.
        pad = load_tokenizer(layout.tokenizer).end_of_text_id
        for name, folder in folders.items():
            samples[name] = PackedSamples(layout.tokens / folder, layout.packing / folder, length, pad)
    else:
        end_of_text = _boundary(recipe, layout)
        for name, folder in folders.items():
            samples[name] = TokenWindows(layout.tokens / folder, "train", length, end_of_text)
    return samples, weights


def task_examples(recipe: Recipe, layout: RunLayout, split: Literal["train", "held-out"]) -> Examples:
    """Read one split of the examples for a task other than language modeling.

    Raises:
        RequestError: the examples are missing or damaged.
    """
    if recipe.task == "token_classification":
        return TagExamples(layout.examples, split)
    if recipe.task == "sequence_classification":
        return LabelExamples(layout.examples, split)
    tokenizer = load_tokenizer(layout.tokenizer)
    return PairExamples(layout.examples, split, tokenizer.first_id, tokenizer.end_of_text_id)


def held_out(recipe: Recipe, layout: RunLayout) -> TokenWindows | Examples:
    """Return the validation data: windows of the validation split, or the held-out examples.

    Raises:
        RequestError: shards or examples are missing or damaged.
    """
    return (
        validation_windows(recipe, layout)
        if recipe.task == "language_modeling"
        else task_examples(recipe, layout, "held-out")
    )


def validation_windows(recipe: Recipe, layout: RunLayout) -> TokenWindows:
    """Return the validation split as windows. They mark document starts if ``train.mask_documents`` is set.

    Raises:
        RequestError: shards are missing or damaged.
    """
    return TokenWindows(layout.tokens, "val", recipe.train.context_length, _boundary(recipe, layout))


def _boundary(recipe: Recipe, layout: RunLayout) -> int | None:
    """Return the end-of-text token's id, or None if batches need not mark document starts."""
    return load_tokenizer(layout.tokenizer).end_of_text_id if recipe.train.mask_documents else None
