"""Greedy completion of fixed prompts during training, through the engine and on all ranks in lockstep."""

from typing import Any

import torch
import torch.distributed as dist

from artefacts.errors import RequestError
from configs.schema import Recipe
from tokenizer.base import Tokenizer, writable
from tokenizer.chat_template import ChatTemplate
from training.distributed.ranks import Ranks
from training.inference.answer import encode_prompt
from training.inference.generate import Limits

_KEY = "train.samples.prompts"
#: The batch is padded to a multiple of this many tokens, so that compiled models see few different shapes.
_MULTIPLE = 32


class PromptSampler:
    """Completes the prompts of ``train.samples`` with a model in training.

    Under expert parallelism and at ZeRO stage 3, a forward pass is a collective. All ranks therefore read the same
    tokens, and rank 0's choice of the next tokens counts: rounding may differ between ranks. The prefix is read again
    for every new token, because sharded models have no KV cache.

    Attributes:
        prompts: the prompts, as in the recipe.
    """

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer, template: ChatTemplate | None) -> None:
        """Tokenize the prompts.

        Args:
            recipe: a language model's recipe with a ``train.samples`` section.
            tokenizer: the run's tokenizer.
            template: renders each prompt as a user message that the assistant answers. None continues it as text.

        Raises:
            RequestError: a prompt has characters that the tokenizer does not know, or is too long for the model.
        """
        section = recipe.train.samples
        assert section is not None
        self.prompts, self._tokenizer = section.prompts, tokenizer
        self._ids = [_encode(prompt, tokenizer, template) for prompt in section.prompts]
        tokens = max(map(len, self._ids))
        self._limits = Limits(
            section.max_new_tokens,
            context_length=recipe.model.max_seq_len or tokens + section.max_new_tokens,
            vocabulary_size=tokenizer.vocab_size,
            stop_ids=set(template.stop_ids if template else tokenizer.stop_ids),
            banned_ids=[i for i in range(tokenizer.vocab_size) if tokenizer.is_reserved(i)],
        )
        if tokens > self._limits.context_length:
            raise RequestError(
                f"{_KEY}: a prompt has {tokens} tokens, beyond model.max_position_embeddings "
                f"({self._limits.context_length}): shorten it"
            )

    @torch.no_grad()
    def complete(self, engine: Any, ranks: Ranks) -> list[str]:
        """Return each prompt's completion. Collective. The engine must be in evaluation mode."""
        rows = [list(ids) for ids in self._ids]
        left = {row: self._limits.budget(len(ids)) for row, ids in enumerate(self._ids)}
        while left:
            best = self._next_tokens(engine, rows, ranks)
            for row in list(left):
                rows[row].append(best[row])
                left[row] -= 1
                if not left[row] or best[row] in self._limits.stop_ids:
                    del left[row]
        return [self._text(ids[len(prompt) :]) for ids, prompt in zip(rows, self._ids, strict=True)]

    def _next_tokens(self, engine: Any, rows: list[list[int]], ranks: Ranks) -> list[int]:
        """Return each row's most likely next token. A finished row may be as long as the context allows, or longer."""
        context = self._limits.context_length
        read = [ids[:context] for ids in rows]
        length = min(context, -(-max(map(len, read)) // _MULTIPLE) * _MULTIPLE)
        inputs_BT = torch.tensor([ids + [0] * (length - len(ids)) for ids in read], device=ranks.device)
        last_B = torch.tensor([len(ids) - 1 for ids in read], device=ranks.device)
        logits_BTV = engine(inputs_BT)
        best_B = self._limits.allow(logits_BTV[torch.arange(len(rows), device=ranks.device), last_B]).argmax(-1)
        if ranks.size > 1:
            dist.broadcast(best_B, src=0)
        best: list[int] = best_B.tolist()
        return best

    def _text(self, ids: list[int]) -> str:
        stop = next((place for place, token in enumerate(ids) if token in self._limits.stop_ids), len(ids))
        return writable(self._tokenizer.decode(ids[:stop]))


def prompt_sampler(recipe: Recipe, tokenizer: Tokenizer, template: ChatTemplate | None = None) -> PromptSampler | None:
    """Return the sampler for a recipe's ``train.samples``, or None if it has none.

    Raises:
        RequestError: a prompt cannot be completed.
    """
    return None if recipe.train.samples is None else PromptSampler(recipe, tokenizer, template)


def _encode(prompt: str, tokenizer: Tokenizer, template: ChatTemplate | None) -> list[int]:
    ids = encode_prompt(prompt, tokenizer, _KEY)
    if template:
        return template.prompt([{"role": "user", "content": prompt}])
    if not ids:
        raise RequestError(f"{_KEY}: {prompt!r} has no tokens: write some text")
    return ids
