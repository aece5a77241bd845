"""A text for a text: the best target that an encoder-decoder finds for each source, greedily or by beam search.

The source is encoded once, keys and values of it for every decoder layer too; the target has a cache of what is read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch

from training.inference.generate import Limits


class PairsModel(Protocol):
    """A model that reads a source and continues a target, such as ``training.models.encoder_decoder``."""

    lm_head: Any

    def encode(self, source: torch.Tensor, source_lengths: torch.Tensor | None = None) -> Any: ...

    def hidden(self, input_ids_BT: torch.Tensor, encoded: Any, cache: Any = None) -> torch.Tensor: ...

    def new_cache(self, sequences: int, capacity: int) -> Any: ...

    def parameters(self) -> Any: ...


class Found(NamedTuple):
    """A target without the id it begins with; its end is the last id, unless there was no room for it.

    ``score``: by which it was the best, see :func:`length_penalty`.
    """

    ids: list[int]
    score: float


def length_penalty(length: int, alpha: float) -> float:
    """((5 + length) / 6) ^ alpha, by which a target's log-probability is divided (GNMT, arXiv 1609.08144, eq. 14).

    Targets of one id have 1 whatever alpha; at 0 the most probable target is the best, and short ones are.
    """
    return float(((5.0 + length) / 6.0) ** alpha)


@torch.no_grad()
def greedy(model: PairsModel, sources: Sequence[Sequence[int]], begin: int, limits: Limits) -> list[list[int]]:
    """Each source's target of the likeliest id at each step; sources of any lengths are read together.

    Args:
        model: in evaluation mode.
        sources: ids.
        begin: id that the decoder reads first.
        limits: of the targets; a stop id ends one and is its last.

    Raises:
        RequestError: a source cannot be read, see :class:`Limits`.
    """
    if not sources:
        return []
    encoded, device = _encode(model, sources, limits)
    budget = limits.budget(1)
    cache = model.new_cache(len(sources), budget)
    targets: list[list[int]] = [[] for _ in sources]
    ids_B1 = torch.full((len(sources), 1), begin, device=device)
    going = set(range(len(sources)))
    for step in range(budget):
        logits_BV = limits.allow(_next(model, ids_B1, encoded, cache, step))
        best = logits_BV.argmax(-1)
        for row, token in enumerate(best.tolist()):
            if row in going:
                targets[row].append(token)
                going -= {row} if token in limits.stop_ids else set()
        if not going:
            break
        ids_B1 = best[:, None]
    return targets


@torch.no_grad()
def beam_search(
    model: PairsModel, sources: Sequence[Sequence[int]], begin: int, limits: Limits, beams: int, alpha: float = 0.6
) -> list[Found]:
    """Each source's best target among those that the ``beams`` likeliest beginnings at each step lead to.

    The best is that of the highest log-probability over :func:`length_penalty`. A source is done when none of its
    beginnings can lead to a better target than the best that has ended. ``beams``: beginnings that are followed of each
    source; ``alpha``: of the length penalty, from 0: the higher, the longer. The rest, and faults: as :func:`greedy`.
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
        chances_BWV = logits_RV.log_softmax(-1).unflatten(0, (len(sources), beams)).cpu()
        before, tokens = [], []
        for row, (search, chances_WV) in enumerate(zip(searches, chances_BWV, strict=True)):
            came_from, came = search.extend(chances_WV)
            before += [row * beams + beam for beam in came_from]
            tokens += came
        if all(search.done for search in searches):
            break
        cache.reorder(torch.tensor(before))
        ids_R1 = torch.tensor(tokens, device=device)[:, None]
    return [search.best() for search in searches]


@dataclass
class _Search:
    """The search for one source's target."""

    beams: int
    alpha: float
    budget: int
    limits: Limits

    def __post_init__(self) -> None:
        # All but one begin as impossible, or the first step would find the same beams several times.
        self._scores = torch.full((self.beams,), float("-inf"))
        self._scores[0] = 0.0
        self._beginnings: list[list[int]] = [[] for _ in range(self.beams)]
        self._found: Found | None = None

    @property
    def done(self) -> bool:
        """Whether no beginning can lead to a better target: probabilities only fall, the penalty at most grows."""
        highest = float(self._scores.max())
        if highest == float("-inf") or len(self._beginnings[0]) == self.budget:
            return True
        return self._found is not None and self._found.score >= highest / length_penalty(self.budget, self.alpha)

    def extend(self, chances_WV: torch.Tensor) -> tuple[list[int], list[int]]:
        """One id more for the likeliest beginnings, from log-probabilities: of each the beam it was, and the id."""
        width, vocab = chances_WV.shape
        # At most one in a beam for each stop id ends: of so many enough go on.
        count = min(width * (1 + len(self.limits.stop_ids)), width * vocab)
        scores, places = (self._scores[:, None] + chances_WV).flatten().topk(count)
        kept: list[tuple[float, int, int]] = []
        for score, place in zip(scores.tolist(), places.tolist(), strict=True):
            beam, token = divmod(place, vocab)
            if score == float("-inf"):
                break
            if token in self.limits.stop_ids:
                self._end([*self._beginnings[beam], token], score)
            elif len(kept) < width:
                kept.append((score, beam, token))
        kept += [(float("-inf"), 0, 0)] * (width - len(kept))
        self._scores = torch.tensor([score for score, _, _ in kept])
        self._beginnings = [[*self._beginnings[beam], token] for _, beam, token in kept]
        if len(self._beginnings[0]) == self.budget:
            for (score, _, _), ids in zip(kept, self._beginnings, strict=True):
                self._end(ids, score)
        return [beam for _, beam, _ in kept], [token for _, _, token in kept]

    def best(self) -> Found:
        assert self._found is not None
        return self._found

    def _end(self, ids: list[int], score: float) -> None:
        found = Found(ids, score / length_penalty(len(ids), self.alpha))
        if self._found is None or found.score > self._found.score:
            self._found = found


def _encode(model: PairsModel, sources: Sequence[Sequence[int]], limits: Limits) -> tuple[Any, torch.device]:
    """All sources, filled up at the right, and the device they are on."""
    for source in sources:
        limits.check(source)
    device = next(iter(model.parameters())).device
    longest = max(map(len, sources))
    padded = torch.tensor([[*source, *[0] * (longest - len(source))] for source in sources], device=device)
    return model.encode(padded, torch.tensor([len(source) for source in sources], device=device)), device


def _next(model: PairsModel, ids_R1: torch.Tensor, encoded: Any, cache: Any, step: int) -> torch.Tensor:
    """Logits [R, V] of what follows one id more of each target, the id at position ``step``."""
    hidden_R1D = model.hidden(ids_R1, encoded, cache)
    cache.commit([step + 1] * len(ids_R1))
    out: torch.Tensor = model.lm_head(hidden_R1D[:, -1])
    return out
