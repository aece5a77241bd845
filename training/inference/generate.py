"""Autoregressive generation with a KV cache."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from artefacts.errors import RequestError
from training.inference.sampling import Sampling, probabilities, sample
from training.models.causal_lm import CausalLM

#: Called at each step with the logits [B, V] from ``Limits.allow``, and a dict from sequence number to sampled id.
Observer = Callable[[torch.Tensor, dict[int, int]], None]


@dataclass(frozen=True)
class Limits:
    """Limits on generation: which tokens may be generated, and how many.

    Attributes:
        max_new_tokens: maximum number of new tokens per sequence.
        context_length: maximum number of tokens that the model can read. When it has read that many, one more token is
            sampled and the sequence ends, unless ``crop`` is set.
        vocabulary_size: number of ids in the tokenizer; any further rows of the head are padding.
        stop_ids: ids that end a sequence.
        banned_ids: ids (of control tokens) that are never sampled unless they are stop ids.
        crop: whether a sequence continues beyond the context. For each further token, the model then rereads the last
            ``context_length`` tokens.
        can_crop: whether error messages may suggest ``crop``. If False, a prompt that is too long must be shortened.
    """

    max_new_tokens: int
    context_length: int
    vocabulary_size: int
    stop_ids: Collection[int] = ()
    banned_ids: Collection[int] = ()
    crop: bool = False
    can_crop: bool = True

    def check(self, prompt_ids: Sequence[int]) -> None:
        """Reject a prompt that cannot be continued.

        Raises:
            RequestError: the prompt is empty, has an id outside the vocabulary, or is longer than the context while
                ``crop`` is off.
        """
        if not prompt_ids:
            raise RequestError("generate.prompt has no tokens: pass some text")
        outside = next((i for i in prompt_ids if not 0 <= i < self.vocabulary_size), None)
        if outside is not None:
            raise RequestError(
                f"prompt token {outside} is not in the vocabulary of {self.vocabulary_size}: "
                "the tokenizer and the weights must come from the same run"
            )
        if len(prompt_ids) > self.context_length and not self.crop:
            raise RequestError(
                f"generate.prompt has {len(prompt_ids)} tokens, beyond model.max_position_embeddings "
                f"({self.context_length}): shorten it{', or set generate.crop=true' if self.can_crop else ''}"
            )

    def capacity(self, prompt: int) -> int:
        """Return the maximum number of tokens read per sequence: the prompt and all new tokens but the last."""
        return min(self.context_length, prompt + self.max_new_tokens - 1)

    def budget(self, prompt: int) -> int:
        """Return the maximum number of new tokens for a prompt of ``prompt`` tokens."""
        return self.max_new_tokens if self.crop else min(self.max_new_tokens, self.context_length - prompt + 1)

    def allow(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the logits [..., V] in fp32, without the head's padding rows. Banned ids get minus infinity."""
        allowed = logits[..., : self.vocabulary_size].float()
        banned = sorted({i for i in self.banned_ids if i < self.vocabulary_size} - set(self.stop_ids))
        if banned:
            allowed[..., banned] = float("-inf")
        return allowed


def generate(
    model: CausalLM,
    prompt_ids: Sequence[int],
    limits: Limits,
    sampling: Sampling,
    *,
    seed: int,
    observe: Observer | None = None,
) -> Iterator[int]:
    """Yield the new ids of one sequence. If a stop id is sampled, it is yielded last.

    The same arguments always give the same ids: they are sampled on the CPU with a dedicated generator.

    Raises:
        RequestError: the prompt cannot be continued (see :class:`Limits`). Raised by the call itself, not on the first
            iteration.
    """
    limits.check(prompt_ids)
    return (ids[0] for ids in _steps(model, [list(prompt_ids)], limits, sampling, seed, observe))


def generate_batch(
    model: CausalLM,
    prompts: Sequence[Sequence[int]],
    limits: Limits,
    sampling: Sampling,
    *,
    seed: int,
    complete: Callable[[list[int]], bool] | None = None,
) -> list[list[int]]:
    """Generate new ids for a batch of prompts, whose lengths may differ.

    Sequence i is identical to a sequence generated alone with seed ``seed`` + i. A sequence also ends once ``complete``
    returns True for its new ids.

    Raises:
        RequestError: a prompt cannot be continued.
    """
    if not prompts:
        return []
    for prompt in prompts:
        limits.check(prompt)
    answers: list[list[int]] = [[] for _ in prompts]
    ended: set[int] = set()
    for ids in _steps(model, [list(prompt) for prompt in prompts], limits, sampling, seed, ended=ended):
        for row, token in ids.items():
            answers[row].append(token)
            if complete is not None and complete(answers[row]):
                ended.add(row)
    return answers


@torch.no_grad()
def _steps(
    model: CausalLM,
    prompts: list[list[int]],
    limits: Limits,
    sampling: Sampling,
    seed: int,
    observe: Observer | None = None,
    ended: Collection[int] = (),
) -> Iterator[dict[int, int]]:
    """At each step, yield a dict that maps each unfinished sequence's number to its next id.

    The caller may add a sequence's number to ``ended``, to end it.
    """
    generators = [torch.Generator("cpu").manual_seed(seed + row) for row in range(len(prompts))]
    cache = model.new_cache(len(prompts), limits.capacity(max(map(len, prompts))))
    read = [prompt[-limits.context_length :] for prompt in prompts]
    logits_BV = _read_prompts(model, read, cache)
    lengths = [len(prompt) for prompt in read]
    left = {row: limits.budget(len(prompt)) for row, prompt in enumerate(prompts)}
    cropped = False
    while left:
        allowed_BV = limits.allow(logits_BV)
        if sampling.greedy:
            best = allowed_BV.argmax(-1).tolist()
            sampled = {row: best[row] for row in left}
        else:
            probabilities_BV = probabilities(allowed_BV.cpu(), sampling)
            sampled = {row: int(sample(probabilities_BV[row], generators[row])) for row in left}
        if observe is not None:
            observe(allowed_BV, sampled)
        yield sampled
        left = {
            row: count - 1
            for row, count in left.items()
            if count > 1 and sampled[row] not in limits.stop_ids and row not in ended
        }
        if not left:
            return
        for row, token in sampled.items():
            read[row].append(token)
        # Once cropped, always crop: tokens read without the cache are not in it.
        cropped = cropped or max(len(read[row]) for row in left) > limits.context_length
        if cropped:
            read = [ids[-limits.context_length :] for ids in read]
            logits_BV = _read_prompts(model, read)
            continue
        ids_B1 = torch.tensor([[sampled.get(row, 0)] for row in range(len(prompts))], device=_device(model))
        # A finished sequence stays in the batch. Its last cache entry is overwritten, and its result is ignored.
        before = [length - (row not in left) for row, length in enumerate(lengths)]
        cache.commit(before)
        hidden_B1D = model.hidden(ids_B1, cache=cache)
        lengths = [length + 1 for length in before]
        cache.commit(lengths)
        logits_BV = model.lm_head(hidden_B1D[:, -1])


def _read_prompts(model: CausalLM, prompts: list[list[int]], cache: Any = None) -> torch.Tensor:
    """Read the prompts as one right-padded batch into ``cache``, if set. Returns each prompt's last logits [B, V]."""
    device = _device(model)
    lengths = [len(prompt) for prompt in prompts]
    padded = [prompt + [0] * (max(lengths) - len(prompt)) for prompt in prompts]
    hidden_BTD = model.hidden(torch.tensor(padded, device=device), cache=cache)
    if cache is not None:
        cache.commit(lengths)
    last = torch.tensor(lengths, device=device) - 1
    return model.lm_head(hidden_BTD[torch.arange(len(prompts), device=device), last])


def _device(model: CausalLM) -> torch.device:
    return next(iter(model.parameters())).device
