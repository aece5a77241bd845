"""Log-probabilities of continuations, for multiple-choice questions and perplexity.

Only the logits that predict a continuation are computed. A context that several continuations share is read once, into
the KV cache.

Shape suffixes: B sequences, T positions, D hidden size, M scored positions, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F

from artefacts.errors import RequestError
from training.models.causal_lm import CausalLM

T = TypeVar("T")

#: Maximum number of logits to hold at a time: 64 MB in fp32.
_MOST_LOGITS = 1 << 24
#: A shared context with fewer tokens is read again for each continuation, which is faster than a second pass.
_LEAST_SHARED = 8
#: Maximum number of cached tokens for continuations, relative to the tokens in a batch.
_MOST_CACHED = 4


class Score(NamedTuple):
    """A continuation's score.

    Attributes:
        log_probability: log-probability of the continuation given its context, in nats.
        greedy: whether greedy decoding would produce the continuation.
    """

    log_probability: float
    greedy: bool


@dataclass
class _Group:
    """Continuations of the same context.

    Attributes:
        context: the context, which ends with the token that precedes the continuations.
        continuations: the distinct continuations, and the requests that they belong to.
    """

    context: tuple[int, ...]
    continuations: dict[tuple[int, ...], list[int]] = field(default_factory=dict)

    @property
    def shares(self) -> bool:
        """Whether to read the context once, and the continuations after it."""
        return len(self.continuations) > 1 and len(self.context) >= _LEAST_SHARED


@torch.no_grad()
def score(
    model: CausalLM,
    requests: Sequence[tuple[Sequence[int], Sequence[int]]],
    context_length: int,
    batch_tokens: int,
    on_scored: Callable[[int], object] = lambda _count: None,
) -> list[Score]:
    """Score pairs of a context and a continuation, both of which are non-empty token ids.

    A context that does not fit into ``context_length`` together with its continuation is truncated from the left.

    Args:
        model: the model.
        requests: pairs of a context and a continuation.
        context_length: maximum number of tokens that the model reads at once.
        batch_tokens: maximum number of tokens per forward pass, if a single sequence does not exceed it.
        on_scored: called after each forward pass with the number of requests that it completed.

    Returns:
        The scores, in the order of the requests.

    Raises:
        RequestError: a continuation is longer than the context length.
    """
    groups: dict[tuple[int, ...], _Group] = {}
    for number, (context, continuation) in enumerate(requests):
        if len(continuation) > context_length:
            raise RequestError(
                f"a continuation of {len(continuation)} tokens does not fit into the model's context of "
                f"{context_length}: shorten it, or evaluate it with a rolling task"
            )
        key = tuple(context[-(context_length + 1 - len(continuation)) :])
        groups.setdefault(key, _Group(key)).continuations.setdefault(tuple(continuation), []).append(number)
    scores: list[Score | None] = [None] * len(requests)

    def record(group: _Group, continuation: tuple[int, ...], result: Score) -> int:
        for number in group.continuations[continuation]:
            scores[number] = result
        return len(group.continuations[continuation])

    shared = [group for group in groups.values() if group.shares]
    alone = [(group, one) for group in groups.values() if not group.shares for one in group.continuations]
    for pairs in _batches(alone, lambda pair: len(pair[0].context) + len(pair[1]) - 1, batch_tokens):
        results = _read(model, [(group.context, continuation) for group, continuation in pairs])
        on_scored(sum(record(*pair, result) for pair, result in zip(pairs, results, strict=True)))
    for batch in _batches(shared, lambda group: len(group.context), batch_tokens):
        on_scored(sum(record(*scored) for scored in _read_shared(model, batch, context_length, batch_tokens)))
    return [result for result in scores if result is not None]


def _batches(items: list[T], length: Callable[[T], int], batch_tokens: int) -> Iterator[list[T]]:
    """Yield batches of items of similar length, longest first, padded to at most ``batch_tokens`` tokens."""
    ordered = sorted(items, key=length, reverse=True)
    while ordered:
        count = max(1, batch_tokens // length(ordered[0]))
        yield ordered[:count]
        ordered = ordered[count:]


def _read(model: CausalLM, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Score]:
    """Score continuations in one forward pass over contexts and continuations."""
    hidden_BTD = model.hidden(_padded(model, [[*context, *continuation[:-1]] for context, continuation in pairs]))
    rows = [row for row, (_, continuation) in enumerate(pairs) for _ in continuation]
    places = [len(context) - 1 + offset for context, continuation in pairs for offset in range(len(continuation))]
    hidden_MD = hidden_BTD[torch.tensor(rows, device=hidden_BTD.device), torch.tensor(places, device=hidden_BTD.device)]
    return _scores(model, hidden_MD, [continuation for _, continuation in pairs])


def _cached_batches(
    rows: list[tuple[int, tuple[int, ...]]], lengths: Sequence[int], context_length: int, batch_tokens: int
) -> Iterator[list[tuple[int, tuple[int, ...]]]]:
    """Yield batches of continuations, each with the number of its context, whose ``lengths`` are cached.

    A batch's longest context and longest continuation fit into the context length together, because padding has
    positions too.
    """
    waiting = sorted(rows, key=lambda row: len(row[1]), reverse=True)
    while waiting:
        new_tokens = len(waiting[0][1]) - 1
        fitting = [row for row in waiting if lengths[row[0]] + new_tokens <= context_length]
        cached = max(lengths[number] for number, _ in fitting)
        batch = fitting[: max(1, batch_tokens // max(new_tokens, cached // _MOST_CACHED))]
        yield batch
        taken = set(batch)
        waiting = [row for row in waiting if row not in taken]


def _read_shared(
    model: CausalLM, groups: Sequence[_Group], context_length: int, batch_tokens: int
) -> Iterator[tuple[_Group, tuple[int, ...], Score]]:
    """Score the continuations of several contexts: read each context once, then its continuations from the cache."""
    lengths = [len(group.context) for group in groups]
    contexts = model.new_cache(len(groups), max(lengths))
    hidden_BTD = model.hidden(_padded(model, [group.context for group in groups]), cache=contexts)
    contexts.commit(lengths)
    device = hidden_BTD.device
    last_BD = hidden_BTD[torch.arange(len(groups), device=device), torch.tensor(lengths, device=device) - 1]
    del hidden_BTD
    rows = [(number, one) for number, group in enumerate(groups) for one in group.continuations]
    single = [row for row in rows if len(row[1]) == 1]
    if single:
        results = _scores(model, last_BD[[number for number, _ in single]], [one for _, one in single])
        for (number, one), result in zip(single, results, strict=True):
            yield groups[number], one, result
    several = [row for row in rows if len(row[1]) > 1]
    for batch in _cached_batches(several, lengths, context_length, batch_tokens):
        numbers = [number for number, _ in batch]
        read = [list(one[:-1]) for _, one in batch]
        new_tokens = max(map(len, read))
        cache = contexts.select(numbers, max(lengths[number] for number in numbers) + new_tokens)
        hidden_BTD = model.hidden(_padded(model, read), cache=cache)
        # The context's last position predicts the first token.
        hidden_BTD = torch.cat((last_BD[numbers][:, None], hidden_BTD), dim=1)
        hidden_MD = torch.cat([hidden_BTD[row, : len(one)] for row, (_, one) in enumerate(batch)])
        results = _scores(model, hidden_MD, [one for _, one in batch])
        for (number, one), result in zip(batch, results, strict=True):
            yield groups[number], one, result


def _scores(model: CausalLM, hidden_MD: torch.Tensor, continuations: Sequence[Sequence[int]]) -> list[Score]:
    """Return the scores of continuations whose tokens are predicted by consecutive hidden states."""
    device = hidden_MD.device
    targets_M = torch.tensor([token for one in continuations for token in one], device=device)
    log_probabilities, greedy = [], []
    rows = max(1, _MOST_LOGITS // int(model.model.embed_tokens.num_embeddings))
    for hidden, targets in zip(hidden_MD.split(rows), targets_M.split(rows), strict=True):
        logits_MV = model.lm_head(hidden).float()
        log_probabilities.append(-F.cross_entropy(logits_MV, targets, reduction="none"))
        greedy.append(logits_MV.argmax(1) == targets)
    lengths = [len(one) for one in continuations]
    sums = [float(part.double().sum()) for part in torch.cat(log_probabilities).cpu().split(lengths)]
    same = [bool(part.all()) for part in torch.cat(greedy).cpu().split(lengths)]
    return [Score(*result) for result in zip(sums, same, strict=True)]


def _padded(model: CausalLM, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return the sequences as one tensor [B, T], padded on the right."""
    length = max(map(len, sequences))
    device = next(iter(model.parameters())).device
    return torch.tensor([[*sequence, *[0] * (length - len(sequence))] for sequence in sequences], device=device)
