"""Continuing a prompt, token by token."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any, Protocol

import torch

from configs.errors import RequestError
from training.inference.sampling import Sampling, draw, probabilities


class CausalLM(Protocol):
    """A model that gives hidden states [B, T, D] for ids [B, T], and its head over the vocabulary."""

    lm_head: Any

    def hidden(self, input_ids_BT: torch.Tensor) -> torch.Tensor: ...


def generate(
    model: CausalLM,
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    sampling: Sampling,
    *,
    stop_ids: Collection[int],
    banned_ids: Collection[int],
    vocabulary_size: int,
    context_length: int,
    seed: int,
) -> Iterator[int]:
    """Yield up to ``max_new_tokens`` new ids; a stop id is the last one when it is drawn.

    ``banned_ids`` (control tokens) are never drawn unless they are stop ids, and neither are the rows of the head from
    ``vocabulary_size`` on, which pad the tokenizer's vocabulary. Once prompt and answer exceed ``context_length`` the
    model sees the latest ``context_length`` ids only. The same arguments give the same ids: drawing happens on the
    CPU, from a generator of its own.

    Raises RequestError when the prompt is empty or holds an id outside the vocabulary.
    """
    if not prompt_ids:
        raise RequestError("the prompt has no tokens: give it some text")
    strange = next((i for i in prompt_ids if not 0 <= i < vocabulary_size), None)
    if strange is not None:
        raise RequestError(
            f"prompt token {strange} is not in the vocabulary of {vocabulary_size}: "
            "the tokenizer and the weights must come from the same run"
        )
    forbidden = sorted({i for i in banned_ids if i < vocabulary_size} - set(stop_ids))
    return _continue(
        model, list(prompt_ids), max_new_tokens, sampling, stop_ids, forbidden, vocabulary_size, context_length, seed
    )


def _continue(
    model: CausalLM,
    ids: list[int],
    max_new_tokens: int,
    sampling: Sampling,
    stop_ids: Collection[int],
    forbidden: list[int],
    vocabulary_size: int,
    context_length: int,
    seed: int,
) -> Iterator[int]:
    generator = torch.Generator("cpu").manual_seed(seed)
    for _ in range(max_new_tokens):
        logits_V = next_logits(model, ids[-context_length:])[:vocabulary_size]
        logits_V[forbidden] = float("-inf")
        ids.append(int(draw(probabilities(logits_V, sampling), generator)))
        yield ids[-1]
        if ids[-1] in stop_ids:
            return


@torch.no_grad()
def next_logits(model: CausalLM, ids: Sequence[int]) -> torch.Tensor:
    """Logits [V] of the token that follows ``ids``, fp32 on the CPU."""
    weight = model.lm_head.weight
    last_D = model.hidden(torch.tensor([ids], device=weight.device))[0, -1]
    return model.lm_head(last_D).float().cpu()
