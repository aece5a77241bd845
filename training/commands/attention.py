"""``python -m training evaluate attention``: heat maps and statistics of every head, in ``runs/NAME/attention``."""

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
from training.evaluate.attention.folder import LabeledMap, write_folder
from training.evaluate.attention.statistics import head_numbers, lines
from training.inference.answer import encode_prompt
from training.model_loading import best_device, load_model, wanted_checkpoint
from training.models.registry import build_model

#: Number of tokens taken from a validation document if there is no text, and maximum number of tokens in a map.
_DOCUMENT_TOKENS, _MAX_TOKENS = 32, 128


def evaluate_attention(
    recipe: Recipe, text: str | None = None, target: str | None = None, layers: Collection[int] = ()
) -> int:
    """Write the attention maps for a text and print their statistics. Returns the exit status.

    Args:
        recipe: the run's recipe.
        text: the input. Defaults to ``generate.prompt`` or, if that is empty, the start of a validation document.
        target: the decoder's input, for encoder-decoder models.
        layers: indices of the layers to draw. If empty, all layers are drawn.

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
            raise RequestError("evaluate attention: this model reads a text and its target: pass --target '…' as well")
        source, read = read, [tokenizer.first_id, *_checked(recipe, tokenizer, "--target", target, more=1)]
    elif target is not None:
        raise RequestError("--target is for encoder-decoder models only: leave it out")
    model = load_model(recipe, checkpoint, device)
    more = {} if source is None else {"source": torch.tensor([source], device=device)}
    collected = attention_maps(model, torch.tensor([read], device=device), layers=layers, **more)
    tokens = {"read": [tokenizer.label(token) for token in read]}
    if source is not None:
        tokens["source"] = [tokenizer.label(token) for token in source]
    maps = [_labeled(one, tokens, getattr(recipe.model, "cross_downsample", 1)) for one in collected]
    heads = [head for one in collected for head in head_numbers(one)]
    about = {"checkpoint": str(checkpoint), "tokens": tokens, "heads": [head.as_json() for head in heads]}
    write_folder(layout.attention, maps, about)
    print("\n".join(lines(heads)))
    print(f"{layout.attention}: {len(heads)} heads over the {len(read)} tokens {''.join(tokens['read'])!r}")
    return command.DONE


def _require_layers(recipe: Recipe, layers: Collection[int]) -> None:
    model: Any = recipe.model
    with torch.device("meta"):
        modules = attentions(build_model(model, recipe.vocab_size))
    if not modules:
        raise RequestError(f"model.family={model.family} has no attention, so there are no maps to draw")
    sizes: Any = recipe.model.backbone_section
    depth = max(sizes.num_hidden_layers, getattr(sizes, "depth_of_decoder", 0))
    if wrong := [layer for layer in layers if not 0 <= layer < depth]:
        raise RequestError(f"--layers: there is no layer {wrong[0]}; the model has layers 0 to {depth - 1}")


def _ids(recipe: Recipe, layout: RunLayout, tokenizer: Tokenizer, text: str | None) -> list[int]:
    """Return the token ids of ``text``. Defaults to the prompt or, if that is empty, to a validation document."""
    if text is not None:
        return _checked(recipe, tokenizer, "--text", text)
    if recipe.generate.prompt:
        return _checked(recipe, tokenizer, "generate.prompt", recipe.generate.prompt)
    for prefix in shard_prefixes(layout.tokens, "val"):
        shard = IndexedDataset(prefix)
        if len(shard):
            return [
                int(token)
                for token in shard.document(0)[: min(_DOCUMENT_TOKENS, recipe.model.max_seq_len or _MAX_TOKENS)]
            ]
    raise RequestError("evaluate attention: there is no text to read: pass --text '…'")


def _checked(recipe: Recipe, tokenizer: Tokenizer, key: str, text: str, more: int = 0) -> list[int]:
    """Return a text's token ids.

    Raises:
        RequestError: the text has no tokens, or it has too many to fit in a map together with ``more`` other tokens.
    """
    ids = encode_prompt(text, tokenizer, key)
    if not ids:
        raise RequestError(f"{key} has no tokens: pass some text")
    limit = min(_MAX_TOKENS, recipe.model.max_seq_len or _MAX_TOKENS) - more
    if len(ids) > limit:
        raise RequestError(f"{key} has {len(ids)} tokens, but a map shows at most {limit}: shorten it")
    return ids


def _labeled(attention: AttentionMap, tokens: dict[str, list[str]], pooled: int) -> LabeledMap:
    """Label a map's axes with tokens. Encoder maps and the key axis of cross-attention maps use the source tokens."""
    source = tokens.get("source", [])
    if attention.cross:
        return LabeledMap(attention, tokens["read"], _joined(source, pooled))
    queries = source if source and attention.name.startswith("encoder") else tokens["read"]
    return LabeledMap(attention, queries, queries)


def _joined(labels: Sequence[str], size: int) -> list[str]:
    """Join each group of ``size`` labels into one, because cross-attention pools the encoder outputs in such groups."""
    return ["".join(labels[first : first + size]) for first in range(0, len(labels), size)]
