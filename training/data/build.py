"""A run's training samples, from its artefacts."""

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
from training.data.tasks import LabelExamples, PairExamples, TagExamples
from training.data.windows import TokenWindows
from training.runs import mixture_weights


def pretraining_data(recipe: Recipe, layout: RunLayout) -> PretrainingData | ExampleData:
    """Global batches of the recipe's source, or of its sources by weight; of examples where its model takes those.

    With ``train.mask_documents`` batches say where documents begin; packed ones always do.

    Args:
        recipe: of the run.
        layout: of the run.

    Raises:
        RequestError: shards, packing or examples are missing or damaged, are not the recipe's, or hold less than one
            sample.
    """
    if recipe.task != "language_modeling":
        return ExampleData(task_examples(recipe, layout, "train"), recipe.train.global_batch, recipe.run.seed)
    tokens = manifest.require(layout.tokens, "data")
    weights: Mapping[str, float] = {"the training data": 1.0}
    folders = {"the training data": Path()}
    if "sources" in tokens.counts:
        weights = mixture_weights(recipe, layout, tokens)
        folders = {name: Path(name) for name in weights}
    length = recipe.train.context_length
    samples: dict[str, Samples] = {}
    if recipe.train.packing == "best_fit":
        # Nothing is learnt from padding, and of the reserved tokens this is the one that every tokenizer has.
        pad = load_tokenizer(layout.tokenizer).end_of_text_id
        for name, folder in folders.items():
            samples[name] = PackedSamples(layout.tokens / folder, layout.packing / folder, length, pad)
    else:
        end_of_text = _boundary(recipe, layout)
        for name, folder in folders.items():
            samples[name] = TokenWindows(layout.tokens / folder, "train", length, end_of_text)
    return PretrainingData(samples, recipe.train.global_batch, recipe.run.seed, weights)


def task_examples(recipe: Recipe, layout: RunLayout, split: Literal["train", "held-out"]) -> Examples:
    """One split of the examples of a model that learns from no running text.

    Raises:
        RequestError: they are missing or damaged.
    """
    if recipe.task == "token_classification":
        return TagExamples(layout.examples, split)
    if recipe.task == "sequence_classification":
        return LabelExamples(layout.examples, split)
    tokenizer = load_tokenizer(layout.tokenizer)
    return PairExamples(layout.examples, split, tokenizer.first_id, tokenizer.end_of_text_id)


def held_out(recipe: Recipe, layout: RunLayout) -> TokenWindows | Examples:
    """What validation looks at: the validation split in windows, or the held-out examples.

    Raises:
        RequestError: shards or examples are missing or damaged.
    """
    return (
        validation_windows(recipe, layout)
        if recipe.task == "language_modeling"
        else task_examples(recipe, layout, "held-out")
    )


def validation_windows(recipe: Recipe, layout: RunLayout) -> TokenWindows:
    """The validation split in windows, which say where documents begin if ``train.mask_documents`` asks for it.

    Raises:
        RequestError: shards are missing or damaged.
    """
    return TokenWindows(layout.tokens, "val", recipe.train.context_length, _boundary(recipe, layout))


def _boundary(recipe: Recipe, layout: RunLayout) -> int | None:
    """The token that ends documents, where batches are to say where they begin."""
    return load_tokenizer(layout.tokenizer).end_of_text_id if recipe.train.mask_documents else None
