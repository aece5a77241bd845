"""Decoding with an encoder-decoder: finds a target for each source, greedily or by beam search.

Each source is encoded once, including its keys and values for every decoder layer. Targets use a KV cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch

from training.inference.generate import Limits


class Seq2SeqModel(Protocol):
    """A model that reads a source and continues a target, as in ``training.models.encoder_decoder``."""

    lm_head: Any

    def encode(self, source: torch.Tensor, source_lengths: torch.Tensor | None = None) -> Any: ...

    def hidden(self, input_ids_BT: torch.Tensor, encoded: Any, cache: Any = None) -> torch.Tensor: ...

    def new_cache(self, sequences: int, capacity: int) -> Any: ...

    def parameters(self) -> Any: ...


class Hypothesis(NamedTuple):
    """A decoded target, without its start id. It ends with a stop id unless it was cut off at the maximum length.

    ``score`` is the log-probability divided by :func:`length_penalty`.
    """

    ids: list[int]
    score: float


def length_penalty(length: int, alpha: float) -> float:
    """Return ((5 + length) / 6) ^ alpha, the divisor of a target's log-probability (GNMT, arXiv 1609.08144, eq. 14).

    The penalty is 1 for a target with one id. With alpha = 0, the most probable target is the best, which favors short
    targets.
    """
    return float(((5.0 + length) / 6.0) ** alpha)


@torch.no_grad()
def greedy(model: Seq2SeqModel, sources: Sequence[Sequence[int]], begin: int, limits: Limits) -> list[list[int]]:
    """Decode all sources greedily as one batch, taking the most likely id at each step. Sources may differ in length.

    Args:
        model: the model, in evaluation mode.
        sources: token ids of each source.
        begin: the id that the decoder reads first.
        limits: limits on the targets. A stop id ends a target and is its last id.

    Raises:
        RequestError: a source cannot be read (see :class:`Limits`).
    """
    if not sources:
        return []
    encoded, device = _encode(model, sources, limits)
    budget = limits.budget(1)
    cache = model.new_cache(len(sources), budget)
    targets: list[list[int]] = [[] for _ in sources]
    ids_B1 = torch.full((len(sources), 1), begin, device=device)
    unfinished = set(range(len(sources)))
    for step in range(budget):
        logits_BV = limits.allow(_next(model, ids_B1, encoded, cache, step))
        best = logits_BV.argmax(-1)
        for row, token in enumerate(best.tolist()):
            if row in unfinished:
                targets[row].append(token)
                unfinished -= {row} if token in limits.stop_ids else set()
        if not unfinished:
            break
        ids_B1 = best[:, None]
    return targets


@torch.no_grad()
def beam_search(
    model: Seq2SeqModel, sources: Sequence[Sequence[int]], begin: int, limits: Limits, beams: int, alpha: float = 0.6
) -> list[Hypothesis]:
    """Find each source's best target by beam search. Scores are log-probabilities divided by :func:`length_penalty`.

    The search for a source ends when none of its beams can lead to a better target than the best finished target.

    Args:
        model: the model, in evaluation mode.
        sources: token ids of each source.
        begin: the id that the decoder reads first.
        limits: limits on the targets. A stop id ends a target and is its last id.
        beams: number of beams per source.
        alpha: exponent of the length penalty, at least 0. Higher values favor longer targets.

    Raises:
        RequestError: a source cannot be read (see :class:`Limits`).
    """
    if not sources:
        return []
    encoded, device = _encode(model, sources, limits)
    budget = limits.budget(1)
    searches = [_Search(beams, alpha, budget, limits) for _ in sources]
    cache = model.new_cache(len(sources) * beams, budget)
    ids_R1 = torch.full((len(sources) * beams, 1), begin, device=device)
    for step in range(budget):
        logits_RV = limits.allow(_next(model, ids_R1, encoded, cache, step))
        log_probs_BWV = logits_RV.log_softmax(-1).unflatten(0, (len(sources), beams)).cpu()
        parents, tokens = [], []
        for row, (search, log_probs_WV) in enumerate(zip(searches, log_probs_BWV, strict=True)):
            parent_beams, new_tokens = search.extend(log_probs_WV)
            parents += [row * beams + beam for beam in parent_beams]
            tokens += new_tokens
        if all(search.done for search in searches):
            break
        cache.reorder(torch.tensor(parents))
        ids_R1 = torch.tensor(tokens, device=device)[:, None]
    return [search.best() for search in searches]


@dataclass
class _Search:
    """The beam search for one source."""

    beams: int
    alpha: float
    budget: int
    limits: Limits

    def __post_init__(self) -> None:
        # All beams but one start with probability 0. Otherwise the first step would select the same ids several times.
        self._scores = torch.full((self.beams,), float("-inf"))
        self._scores[0] = 0.0
        self._beams: list[list[int]] = [[] for _ in range(self.beams)]
        self._best: Hypothesis | None = None

    @property
    def done(self) -> bool:
        """Whether no beam can lead to a better target.

        Extending a beam cannot raise its probability, and its length penalty is at most the penalty at the maximum
        length.
        """
        highest = float(self._scores.max())
        if highest == float("-inf") or len(self._beams[0]) == self.budget:
            return True
        return self._best is not None and self._best.score >= highest / length_penalty(self.budget, self.alpha)

    def extend(self, log_probs_WV: torch.Tensor) -> tuple[list[int], list[int]]:
        """Extend the beams by one id and keep the most likely ones. Returns each new beam's parent and its new id."""
        width, vocab = log_probs_WV.shape
        # Each beam can end at most once per stop id, so this many candidates include enough to continue with.
        count = min(width * (1 + len(self.limits.stop_ids)), width * vocab)
        scores, indices = (self._scores[:, None] + log_probs_WV).flatten().topk(count)
        kept: list[tuple[float, int, int]] = []
        for score, index in zip(scores.tolist(), indices.tolist(), strict=True):
            beam, token = divmod(index, vocab)
            if score == float("-inf"):
                break
            if token in self.limits.stop_ids:
                self._end([*self._beams[beam], token], score)
            elif len(kept) < width:
                kept.append((score, beam, token))
        kept += [(float("-inf"), 0, 0)] * (width - len(kept))
        self._scores = torch.tensor([score for score, _, _ in kept])
        self._beams = [[*self._beams[beam], token] for _, beam, token in kept]
        if len(self._beams[0]) == self.budget:
            for (score, _, _), ids in zip(kept, self._beams, strict=True):
                self._end(ids, score)
        return [beam for _, beam, _ in kept], [token for _, _, token in kept]

    def best(self) -> Hypothesis:
        assert self._best is not None
        return self._best

    def _end(self, ids: list[int], score: float) -> None:
        hypothesis = Hypothesis(ids, score / length_penalty(len(ids), self.alpha))
        if self._best is None or hypothesis.score > self._best.score:
            self._best = hypothesis


def _encode(model: Seq2SeqModel, sources: Sequence[Sequence[int]], limits: Limits) -> tuple[Any, torch.device]:
    """Encode the sources as a right-padded batch. Returns the result and its device."""
    for source in sources:
        limits.check(source)
    device = next(iter(model.parameters())).device
    length = max(map(len, sources))
    padded = torch.tensor([[*source, *[0] * (length - len(source))] for source in sources], device=device)
    return model.encode(padded, torch.tensor([len(source) for source in sources], device=device)), device


def _next(model: Seq2SeqModel, ids_R1: torch.Tensor, encoded: Any, cache: Any, step: int) -> torch.Tensor:
    """Feed each target's id at position ``step`` to the decoder, and return the logits [R, V] that follow it."""
    hidden_R1D = model.hidden(ids_R1, encoded, cache)
    cache.commit([step + 1] * len(ids_R1))
    out: torch.Tensor = model.lm_head(hidden_R1D[:, -1])
    return out
