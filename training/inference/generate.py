"""Continuing prompts, token by token, with a cache of what has been read."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from artefacts.errors import RequestError
from training.inference.sampling import Sampling, draw, probabilities

#: Told the logits [B, V] of each step as ``Limits.allow`` left them, and the ids that were drawn, by sequence.
Observer = Callable[[torch.Tensor, dict[int, int]], None]


class CausalLM(Protocol):
    """A model that gives hidden states [B, T, D] for ids [B, T], and its head over the vocabulary."""

    lm_head: Any

    def hidden(
        self, input_ids_BT: torch.Tensor, starts: torch.Tensor | None = None, cache: Any = None
    ) -> torch.Tensor: ...

    def new_cache(self, sequences: int, capacity: int) -> Any: ...

    def parameters(self) -> Iterator[torch.nn.Parameter]: ...


@dataclass(frozen=True)
class Limits:
    """What may come out, and how much.

    Attributes:
        max_new_tokens: of each sequence.
        context_length: tokens that the model can read; with one more, drawn from the last, a sequence ends.
        crop: it goes on, and what the model reads is the last ``context_length`` tokens, anew for each further one.
        can_crop: whoever asks could ask for that; False: a prompt that is too long can only be made shorter.
        vocabulary_size: ids of the tokenizer; the head's rows from there on are padding.
        stop_ids: a sequence ends with the first of these.
        banned_ids: never drawn unless they are stop ids (control tokens).
    """

    max_new_tokens: int
    context_length: int
    vocabulary_size: int
    stop_ids: Collection[int] = ()
    banned_ids: Collection[int] = ()
    crop: bool = False
    can_crop: bool = True

    def check(self, prompt_ids: Sequence[int]) -> None:
        """Refuse a prompt that cannot be continued.

        Raises:
            RequestError: it is empty, longer than the context where that is not cropped, or holds an id outside the
                vocabulary.
        """
        if not prompt_ids:
            raise RequestError("generate.prompt has no tokens: give it some text")
        strange = next((i for i in prompt_ids if not 0 <= i < self.vocabulary_size), None)
        if strange is not None:
            raise RequestError(
                f"prompt token {strange} is not in the vocabulary of {self.vocabulary_size}: "
                "the tokenizer and the weights must come from the same run"
            )
        if len(prompt_ids) > self.context_length and not self.crop:
            raise RequestError(
                f"generate.prompt has {len(prompt_ids)} tokens, beyond model.max_position_embeddings "
                f"({self.context_length}): shorten it{', or set generate.crop=true' if self.can_crop else ''}"
            )

    def capacity(self, prompt: int) -> int:
        """Tokens that are read of a sequence at most: the prompt and all new ones but the last."""
        return min(self.context_length, prompt + self.max_new_tokens - 1)

    def budget(self, prompt: int) -> int:
        """New tokens of a sequence at most."""
        return self.max_new_tokens if self.crop else min(self.max_new_tokens, self.context_length - prompt + 1)

    def allow(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits [..., V] in fp32 without padding rows, those of banned ids at minus infinity."""
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
    """Yield new ids of one sequence; a stop id is the last one when it is drawn.

    The same arguments give the same ids: drawing happens on the CPU, from a generator of its own.

    Raises RequestError at once when the prompt cannot be continued (see :class:`Limits`).
    """
    limits.check(prompt_ids)
    return (ids[0] for ids in _steps(model, [list(prompt_ids)], limits, sampling, seed, observe))


def generate_batch(
    model: CausalLM, prompts: Sequence[Sequence[int]], limits: Limits, sampling: Sampling, *, seed: int
) -> list[list[int]]:
    """New ids of several sequences of any lengths, read together; each is what ``seed`` + its number gives alone.

    Raises RequestError when a prompt cannot be continued.
    """
    if not prompts:
        return []
    for prompt in prompts:
        limits.check(prompt)
    answers: list[list[int]] = [[] for _ in prompts]
    for ids in _steps(model, [list(prompt) for prompt in prompts], limits, sampling, seed):
        for row, token in ids.items():
            answers[row].append(token)
    return answers


@torch.no_grad()
def _steps(
    model: CausalLM,
    prompts: list[list[int]],
    limits: Limits,
    sampling: Sampling,
    seed: int,
    observe: Observer | None = None,
) -> Iterator[dict[int, int]]:
    """The next id of every sequence that goes on, by its number, step by step."""
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
            drawn = {row: best[row] for row in left}
        else:
            chances_BV = probabilities(allowed_BV.cpu(), sampling)
            drawn = {row: int(draw(chances_BV[row], generators[row])) for row in left}
        if observe is not None:
            observe(allowed_BV, drawn)
        yield drawn
        left = {row: count - 1 for row, count in left.items() if count > 1 and drawn[row] not in limits.stop_ids}
        if not left:
            return
        for row, token in drawn.items():
            read[row].append(token)
        # From then on for good: what was read so is not in the cache.
        cropped = cropped or max(len(read[row]) for row in left) > limits.context_length
        if cropped:
            read = [ids[-limits.context_length :] for ids in read]
            logits_BV = _read_prompts(model, read)
            continue
        ids_B1 = torch.tensor([[drawn.get(row, 0)] for row in range(len(prompts))], device=_device(model))
        # A sequence that has ended stays in the batch: its last place is written anew and nobody looks at the result.
        before = [length - (row not in left) for row, length in enumerate(lengths)]
        cache.commit(before)
        hidden_B1D = model.hidden(ids_B1, cache=cache)
        lengths = [length + 1 for length in before]
        cache.commit(lengths)
        logits_BV = model.lm_head(hidden_B1D[:, -1])


def _read_prompts(model: CausalLM, prompts: list[list[int]], cache: Any = None) -> torch.Tensor:
    """Logits [B, V] after each prompt, read together, filled up at the right; with a ``cache``, into it."""
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
