"""``python -m training evaluate attention``: every head's heat map and numbers, in ``runs/NAME/attention``."""

from collections.abc import Collection, Sequence
from typing import Any

import torch

from artefacts.errors import RequestError
from configs import command
from configs.run_layout import RunLayout
from configs.schema import Recipe
from pipeline.tokens.indexed_dataset import IndexedDataset, shard_prefixes
from tokenizer.base import Tokenizer
from tokenizer.registry import load_tokenizer
from training.evaluate.attention.collect import AttentionMap, attention_maps, attentions
from training.evaluate.attention.folder import LabelledMap, write_folder
from training.evaluate.attention.statistics import head_numbers, lines
from training.inference.answer import encoded
from training.model_loading import best_device, load_model, wanted_checkpoint
from training.models.registry import build_model

#: Tokens of a validation document that stand in for a text that is not given, and the most that a map can show.
_OF_A_DOCUMENT, _MOST = 32, 128


def evaluate_attention(
    recipe: Recipe, text: str | None = None, target: str | None = None, layers: Collection[int] = ()
) -> int:
    """Write the maps of a text and print the numbers; returns the exit status.

    Args:
        recipe: of the run.
        text: what the model reads; None: ``generate.prompt``, or else how a validation document begins.
        target: of a model of pairs, what the decoder reads.
        layers: numbers of those that are wanted; empty: all.

    Raises:
        RequestError: the model has no attention or no such layer, or cannot read the text.
    """
    layout, device = RunLayout.of(recipe), best_device(recipe)
    _require_layers(recipe, layers)
    checkpoint = wanted_checkpoint(recipe, layout)
    tokenizer = load_tokenizer(layout.tokenizer)
    read = _ids(recipe, layout, tokenizer, text)
    source: list[int] | None = None
    if recipe.model.task == "seq2seq":
        if target is None:
            raise RequestError("evaluate attention: this model reads a text and its target: give --target '…' as well")
        source, read = read, [tokenizer.first_id, *_checked(recipe, tokenizer, "--target", target, more=1)]
    elif target is not None:
        raise RequestError("--target is for a model of pairs: leave it out")
    model = load_model(recipe, checkpoint, device)
    more = {} if source is None else {"source": torch.tensor([source], device=device)}
    found = attention_maps(model, torch.tensor([read], device=device), layers=layers, **more)
    tokens = {"read": [tokenizer.label(token) for token in read]}
    if source is not None:
        tokens["source"] = [tokenizer.label(token) for token in source]
    maps = [_labelled(one, tokens, getattr(recipe.model, "cross_downsample", 1)) for one in found]
    numbers = [each for one in found for each in head_numbers(one)]
    about = {"checkpoint": str(checkpoint), "tokens": tokens, "heads": [each.as_json() for each in numbers]}
    write_folder(layout.attention, maps, about)
    print("\n".join(lines(numbers)))
    print(f"{layout.attention}: {len(numbers)} heads over the {len(read)} tokens {''.join(tokens['read'])!r}")
    return command.DONE


def _require_layers(recipe: Recipe, layers: Collection[int]) -> None:
    model: Any = recipe.model
    with torch.device("meta"):
        there = attentions(build_model(model, recipe.vocab_size))
    if not there:
        raise RequestError(f"model.family={model.family} has no attention: there are no maps to draw")
    sizes: Any = recipe.model.backbone_section
    depth = max(sizes.num_hidden_layers, getattr(sizes, "depth_of_decoder", 0))
    if wrong := [layer for layer in layers if not 0 <= layer < depth]:
        raise RequestError(f"--layers: there is no layer {wrong[0]}: the model has 0 to {depth - 1}")


def _ids(recipe: Recipe, layout: RunLayout, tokenizer: Tokenizer, text: str | None) -> list[int]:
    """Of the text, the prompt, or the first tokens of a validation document."""
    if text is not None:
        return _checked(recipe, tokenizer, "--text", text)
    if recipe.generate.prompt:
        return _checked(recipe, tokenizer, "generate.prompt", recipe.generate.prompt)
    for prefix in shard_prefixes(layout.tokens, "val"):
        shard = IndexedDataset(prefix)
        if len(shard):
            return [int(token) for token in shard.document(0)[: min(_OF_A_DOCUMENT, recipe.model.max_seq_len or _MOST)]]
    raise RequestError("evaluate attention: there is no text to look at: give --text '…'")


def _checked(recipe: Recipe, tokenizer: Tokenizer, key: str, text: str, more: int = 0) -> list[int]:
    """Ids of a text that a map has room for, and for so many ``more``."""
    ids = encoded(text, tokenizer, key)
    if not ids:
        raise RequestError(f"{key} has no tokens: give it some text")
    most = min(_MOST, recipe.model.max_seq_len or _MOST) - more
    if len(ids) > most:
        raise RequestError(f"{key} has {len(ids)} tokens, and a map shows {most} at most: shorten it")
    return ids


def _labelled(found: AttentionMap, tokens: dict[str, list[str]], pooled: int) -> LabelledMap:
    """The tokens on a map's axes: the encoder of two stacks sees the source, and cross-attention looks at it."""
    source = tokens.get("source", [])
    if found.cross:
        return LabelledMap(found, tokens["read"], _joined(source, pooled))
    queries = source if source and found.name.startswith("encoder") else tokens["read"]
    return LabelledMap(found, queries, queries)


def _joined(labels: Sequence[str], each: int) -> list[str]:
    """So many labels in one, as the encoder's output is averaged before cross-attention."""
    return ["".join(labels[first : first + each]) for first in range(0, len(labels), each)]
