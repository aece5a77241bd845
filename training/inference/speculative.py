"""Greedy speculative decoding: multi-token prediction drafts tokens, and one forward pass verifies them.

This follows DeepSeek-V3 (arXiv 2412.19437, section 5.4.3) and speculative decoding (arXiv 2211.17192). The result is
the same as with plain greedy generation.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from artefacts.errors import RequestError
from training.inference.generate import Limits


class Speculation:
    """A greedy speculative decoder, which counts how many drafted tokens it accepts.

    Attributes:
        drafted: number of drafted tokens.
        accepted: number of drafted tokens that were accepted.
    """

    def __init__(self, model: Any, limits: Limits) -> None:
        """Initialize the decoder for a DeepSeek model with ``prediction_layers``.

        Raises:
            RequestError: the model has no prediction layers.
        """
        if not getattr(model, "prediction_layers", ()):
            possible = hasattr(model, "prediction_layers")
            why = "model.num_nextn_predict_layers is 0" if possible else "the family has none"
            raise RequestError(
                f"generate.speculative drafts with multi-token prediction, but {why}: set generate.speculative=false"
            )
        self._model, self._limits = model, limits
        self.drafted, self.accepted = 0, 0

    def generate(self, prompt_ids: Sequence[int]) -> Iterator[int]:
        """Yield the new ids of one sequence. If a stop id is sampled, it is yielded last.

        Raises:
            RequestError: the prompt cannot be continued. Raised by the call itself, not on the first iteration.
        """
        self._limits.check(prompt_ids)
        return self._generate(list(prompt_ids))

    def _generate(self, ids: list[int]) -> Iterator[int]:
        left = self._limits.budget(len(ids))
        for token in self._verified(ids):
            yield token
            left -= 1
            if left == 0 or token in self._limits.stop_ids:
                return

    @torch.no_grad()
    def _verified(self, ids: list[int]) -> Iterator[int]:
        """Yield verified tokens until the context is full."""
        model, capacity = self._model, self._limits.capacity(len(ids))
        cache = model.new_cache(1, capacity)
        drafter = _Drafter(model, capacity)
        hidden_TD = model.hidden(self._tensor(ids), cache=cache)[0]
        cache.commit([len(ids)])
        ids.append(self._best(hidden_TD[-1:])[0])
        yield ids[-1]
        while len(ids) <= capacity:
            read = len(ids) - 1
            drafts = drafter.draft(ids, hidden_TD, self._best)[: capacity - read - 1]
            hidden_TD = model.hidden(self._tensor([ids[-1], *drafts]), cache=cache)[0]
            best = self._best(hidden_TD)
            accepted = next((i for i, draft in enumerate(drafts) if draft != best[i]), len(drafts))
            self.drafted, self.accepted = self.drafted + len(drafts), self.accepted + accepted
            cache.commit([read + 1 + accepted])
            hidden_TD = hidden_TD[: accepted + 1]
            for token in best[: accepted + 1]:
                ids.append(token)
                yield token

    def _best(self, hidden_TD: torch.Tensor) -> list[int]:
        """Return the most likely allowed token after each position."""
        best: list[int] = self._limits.allow(self._model.lm_head(hidden_TD)).argmax(-1).tolist()
        return best

    def _tensor(self, ids: list[int]) -> torch.Tensor:
        return torch.tensor([ids], device=self._model.lm_head.weight.device)


class _Drafter:
    """Drafts one token per depth of multi-token prediction.

    Depth k at position i reads the previous depth's hidden state at position i and the token at position i + k. If that
    token is itself a draft, depth k recomputes position i once the actual token is known. Each depth therefore keeps
    the previous depth's states for the positions that it must recompute.
    """

    def __init__(self, model: Any, capacity: int) -> None:
        self._model = model
        depths = len(model.prediction_layers)
        self._caches = [model.new_cache(1, capacity + depths, layers=1) for _ in range(depths)]
        self._pending: list[torch.Tensor] = [model.lm_head.weight.new_empty(0, model.lm_head.in_features)] * depths

    def draft(self, ids: list[int], hidden_TD: torch.Tensor, best: Any) -> list[int]:
        """Draft tokens to follow ``ids``.

        ``hidden_TD`` holds the hidden states of the positions that the model has read since the last call. The model
        has not yet read the last id in ``ids``.
        """
        positions = len(ids) - 1
        drafts: list[int] = []
        incoming_TD = hidden_TD
        for depth, layer in enumerate(self._model.prediction_layers, start=1):
            cache = self._caches[depth - 1]
            first = cache.lengths[0]
            before = positions - len(incoming_TD)  # position of the first incoming state
            source_TD = torch.cat((self._pending[depth - 1][: before - first], incoming_TD))
            ahead = torch.tensor([(ids + drafts)[first + depth : positions + depth]], device=source_TD.device)
            rope = self._model.model.rotary_table(cache.begin(len(source_TD)))
            embedded = self._model.model.embed_tokens(ahead)
            out_TD = layer.predict(source_TD[None], embedded, rope, None, cache.layer(0))[0]
            known = max(0, len(ids) - depth)  # positions whose token ``depth`` ahead is known
            cache.commit([known])
            self._pending[depth - 1] = source_TD[known - first :]
            drafts.append(best(out_TD[-1:])[0])
            incoming_TD = out_TD
        return drafts
