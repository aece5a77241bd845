"""A task model's answer to a text: a target text, a tag for each token, or class probabilities."""

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
    """Return the model's answer to ``generate.prompt`` as lines of text.

    Raises:
        RequestError: the prompt has a character that the tokenizer does not know, or is too long for the model.
    """
    ids = encode_prompt(recipe.generate.prompt, tokenizer, "generate.prompt")
    _limits(recipe, tokenizer, recipe.generate.max_new_tokens).check(ids)
    if recipe.task == "seq2seq":
        (target,) = decode_targets(recipe, model, tokenizer, [ids], recipe.generate.max_new_tokens)
        return [tokenizer.decode(target)]
    device = next(iter(model.parameters())).device
    logits = model(torch.tensor([ids], device=device))[0].float()
    if recipe.task == "token_classification":
        return [tokenizer.decode(logits[:, : tokenizer.vocab_size].argmax(-1).tolist())]
    names = manifest.require(layout.examples, "data").details["classes"]
    ranked = sorted(zip(logits.softmax(-1).tolist(), names, strict=True), reverse=True)
    return [f"{probability:6.1%}  {name}" for probability, name in ranked]


def encode_prompt(text: str, tokenizer: Tokenizer, key: str) -> list[int]:
    """Tokenize a text. ``key`` is the recipe key or command-line option that it comes from, for error messages.

    Raises:
        RequestError: the text has characters that the tokenizer does not know.
    """
    ids = tokenizer.encode(text)
    if tokenizer.unknown_id in ids:
        unknown = sorted({c for c in text if tokenizer.unknown_id in tokenizer.encode(c)})
        raise RequestError(
            f"{key}: the tokenizer does not know {', '.join(map(repr, unknown))}: remove it from the text"
        )
    return ids


def decode_targets(
    recipe: Recipe, model: Any, tokenizer: Tokenizer, sources: Sequence[Sequence[int]], max_new_tokens: int
) -> list[list[int]]:
    """Decode each source's target with an encoder-decoder, greedily or by beam search (``generate.beams`` > 1).

    A target has at most ``max_new_tokens`` ids. The last id is end-of-text unless the target was cut off at that limit.
    """
    limits, begin = _limits(recipe, tokenizer, max_new_tokens), tokenizer.first_id
    if recipe.generate.beams == 1:
        return greedy(model, sources, begin, limits)
    beams, alpha = recipe.generate.beams, recipe.generate.length_penalty
    return [hypothesis.ids for hypothesis in beam_search(model, sources, begin, limits, beams, alpha)]


def _limits(recipe: Recipe, tokenizer: Tokenizer, max_new_tokens: int) -> Limits:
    return Limits(
        max_new_tokens,
        context_length=recipe.model.max_seq_len or recipe.train.context_length,
        vocabulary_size=tokenizer.vocab_size,
        stop_ids={tokenizer.end_of_text_id},
        banned_ids=[i for i in range(tokenizer.vocab_size) if tokenizer.is_reserved(i)],
        can_crop=False,
    )
