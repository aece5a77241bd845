"""What a model of a task makes of a text: a target, a tag for each of its tokens, or the chances of its classes."""

from collections.abc import Sequence
from typing import Any

import torch

from artefacts import manifest
from artefacts.errors import RequestError
from configs.run_layout import RunLayout
from configs.schema import Recipe
from tokenizer.base import Tokenizer
from training.inference.generate import Limits
from training.inference.seq2seq import beam_search, greedy


@torch.no_grad()
def answer(recipe: Recipe, layout: RunLayout, model: Any, tokenizer: Tokenizer) -> list[str]:
    """Lines that answer ``generate.prompt``.

    Raises:
        RequestError: the prompt has a character that the tokenizer has never seen, or is too long for the model.
    """
    ids = encoded(recipe.generate.prompt, tokenizer, "generate.prompt")
    _limits(recipe, tokenizer, recipe.generate.max_new_tokens).check(ids)
    if recipe.task == "seq2seq":
        (target,) = decode_targets(recipe, model, tokenizer, [ids], recipe.generate.max_new_tokens)
        return [tokenizer.decode(target)]
    device = next(iter(model.parameters())).device
    logits = model(torch.tensor([ids], device=device))[0].float()
    if recipe.task == "token_classification":
        return [tokenizer.decode(logits[:, : tokenizer.vocab_size].argmax(-1).tolist())]
    names = manifest.require(layout.examples, "data").details["classes"]
    chances = sorted(zip(logits.softmax(-1).tolist(), names, strict=True), reverse=True)
    return [f"{chance:6.1%}  {name}" for chance, name in chances]


def encoded(text: str, tokenizer: Tokenizer, key: str) -> list[int]:
    """Ids of a text that a key or option gave.

    Raises:
        RequestError: the tokenizer has never seen some of it.
    """
    ids = tokenizer.encode(text)
    if tokenizer.unknown_id in ids:
        strange = sorted({c for c in text if tokenizer.unknown_id in tokenizer.encode(c)})
        raise RequestError(f"{key}: the tokenizer has never seen {', '.join(map(repr, strange))}: leave that out")
    return ids


def decode_targets(
    recipe: Recipe, model: Any, tokenizer: Tokenizer, sources: Sequence[Sequence[int]], most: int
) -> list[list[int]]:
    """An encoder-decoder's target for each source, by ``generate.beams``; the end's id, where it came, is the last.

    ``most``: ids of a target.
    """
    limits, begin = _limits(recipe, tokenizer, most), tokenizer.first_id
    if recipe.generate.beams == 1:
        return greedy(model, sources, begin, limits)
    found = beam_search(model, sources, begin, limits, recipe.generate.beams, recipe.generate.length_penalty)
    return [each.ids for each in found]


def _limits(recipe: Recipe, tokenizer: Tokenizer, most: int) -> Limits:
    return Limits(
        most,
        context_length=recipe.model.max_seq_len or recipe.train.context_length,
        vocabulary_size=tokenizer.vocab_size,
        stop_ids={tokenizer.end_of_text_id},
        banned_ids=[i for i in range(tokenizer.vocab_size) if tokenizer.is_reserved(i)],
        can_crop=False,
    )
