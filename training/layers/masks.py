"""Which positions attention may look at, and how much less it does so with distance (ALiBi, arXiv 2108.12409)."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from training.layers.packed_documents import Documents, block_mask_of


@dataclass
class Mask:
    """What holds for every layer of one forward pass.

    Attributes:
        causal: a query sees no position after its own.
        window: positions that a query reaches, its own among them, back and, where it is not causal, ahead; None: all.
        slopes_N: ALiBi: by how much a head's scores fall with each position of distance; None: not at all.
        lengths_B: of the keys of each sequence those that are there, from the left; None: all.
        documents: a query sees its own document alone; None: all.
        sides_N: a head at -1 sees no position after the query's, one at 1 none before, one at 0 both; None: all both.
    """

    causal: bool
    window: int | None = None
    slopes_N: torch.Tensor | None = None
    lengths_B: torch.Tensor | None = None
    documents: Documents | None = None
    sides_N: torch.Tensor | None = None
    _block_masks: dict[tuple[int, int], Any] = field(default_factory=dict)
    _widened: dict[int, "Mask"] = field(default_factory=dict)

    @property
    def plain(self) -> bool:
        """Whether nothing but causality and documents hides anything."""
        narrowed = self.window, self.slopes_N, self.lengths_B, self.sides_N
        return self.causal and all(each is None for each in narrowed)

    def reach(self, start: int, end: int, keys: int) -> tuple[int, int]:
        """The keys, from and up to which, that queries ``start`` .. ``end``-1 see any of."""
        first = 0 if self.window is None else max(0, start - self.window + 1)
        last = end if self.causal else keys if self.window is None else end + self.window - 1
        return first, min(last, keys)

    def bias(self, queries: torch.Tensor, keys_L: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
        """What is added to scores [B, N, T, L], broadcast to them: the lowest number there is where a key is hidden.

        Not minus infinity: padding may see nothing, and its softmax would then be no number, which spoils every
        gradient that passes by.

        Args:
            queries: positions [T], or [B, T].
            keys_L: positions.
            dtype: of the scores.

        Returns:
            [T, L] where nothing differs between sequences and heads; None: nothing.
        """
        ahead = keys_L - queries[..., None]  # [T, L] or [B, T, L]
        hidden = ahead > 0 if self.causal else None
        if self.window is not None:
            far = (ahead if self.causal else -ahead.abs()) <= -self.window
            hidden = far if hidden is None else hidden | far
        if ahead.dim() == 3:
            ahead, hidden = ahead[:, None], None if hidden is None else hidden[:, None]
        if self.sides_N is not None:
            aside = ahead * self.sides_N[:, None, None] < 0
            hidden = aside if hidden is None else hidden | aside
        if self.lengths_B is not None:
            missing = (keys_L >= self.lengths_B[:, None])[:, None, None]
            hidden = missing if hidden is None else hidden | missing
        added = None
        if self.slopes_N is not None:
            added = (ahead.abs().float() * -self.slopes_N[:, None, None]).to(dtype)
        if hidden is None:
            return added
        if added is None:
            added = torch.zeros((), dtype=dtype, device=hidden.device)
        lowest = hiding(dtype)
        return added.masked_fill_(hidden, lowest) if hidden.dim() <= added.dim() else added.masked_fill(hidden, lowest)

    def bias_of_all(self, queries: int, keys: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor | None:
        """The same of whole sequences, documents and all; needs as much memory as all their scores of a head."""
        bias = self.bias(torch.arange(queries, device=device), torch.arange(keys, device=device), dtype)
        if self.documents is None:
            return bias
        ids_BT = self.documents.ids_BT
        apart = ids_BT[:, None, :, None] != ids_BT[:, None, None, :]
        bias = torch.zeros((), dtype=dtype, device=device) if bias is None else bias
        return bias.masked_fill(apart, hiding(dtype))

    def of_keys(self, samples: int, keys: int, device: torch.device) -> "Mask":
        """The same where more keys follow than there are: nobody sees those."""
        if self.causal or self.lengths_B is not None:
            return self
        if keys not in self._widened:
            lengths_B = torch.full((samples,), keys, device=device)
            self._widened[keys] = replace(self, lengths_B=lengths_B, _block_masks={}, _widened={})
        return self._widened[keys]

    def flex(self, queries: int, keys: int, device: torch.device) -> tuple[Any, Any]:
        """FlexAttention's ``score_mod`` and ``block_mask`` of so many queries and keys; of the latter made once."""
        slopes, sides, lengths, window = self.slopes_N, self.sides_N, self.lengths_B, self.window
        causal = self.causal
        ids_BT = None if self.documents is None else self.documents.ids_BT

        def seen(b: Any, _head: Any, query: Any, key: Any) -> Any:
            ahead = key - query
            shown = ahead <= 0 if causal else ahead == ahead
            if window is not None:
                shown = shown & (ahead > -window) & (ahead < window)
            if lengths is not None:
                shown = shown & (key < lengths[b])
            if ids_BT is not None:
                shown = shown & (ids_BT[b, query] == ids_BT[b, key])
            return shown

        def lowered(score: Any, _b: Any, head: Any, query: Any, key: Any) -> Any:
            if slopes is not None:
                score = score - slopes[head] * (query - key).abs()
            if sides is not None:
                # Here, as blocks are made for all heads at once.
                score = torch.where((key - query) * sides[head] < 0, hiding(torch.float32), score)
            return score

        if (queries, keys) not in self._block_masks:
            samples = next((len(each) for each in (lengths, ids_BT) if each is not None), None)
            self._block_masks[queries, keys] = block_mask_of(seen, samples, queries, keys, device)
        return None if slopes is None and sides is None else lowered, self._block_masks[queries, keys]


def hiding(dtype: torch.dtype) -> float:
    """What hides a key when it is added to its score.

    Half of the lowest number: with a score beside it, it is a number still, and a row that sees nothing no 0/0.
    """
    return torch.finfo(dtype).min / 2


def alibi_slopes(heads: int, device: torch.device | None = None, causal: bool = True) -> torch.Tensor:
    """Each head's slope [N] in fp32: a geometric row from 2^(-8/N); where N is no power of two, as the paper's code
    does, those of the power below and every other one of the power above.

    Where the stack looks both ways, a head that looks back and one that looks ahead share a slope, every other one of
    the same row, see :func:`alibi_sides`.
    """
    if not causal:
        return alibi_slopes(heads, device)[::2].repeat_interleave(2)[:heads]
    power = 2 ** (heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * (i + 1) / power) for i in range(power)]
    slopes += [2.0 ** (-4.0 * (2 * i + 1) / power) for i in range(heads - power)]
    return torch.tensor(slopes, device=device)


def alibi_sides(heads: int, device: torch.device | None = None) -> torch.Tensor:
    """To which side each head [N] of a stack that is not causal looks: -1 back, 1 ahead, 0 both (of an odd number the
    last).

    A score that falls to both sides alike tells no "before" from "after", and a stack of such scores none at all: it
    reads a word and the same word backwards alike. The paper has causal models alone, where this does not arise.
    """
    sides = torch.tensor([-1, 1], device=device).repeat((heads + 1) // 2)
    if heads % 2:
        sides[heads - 1] = 0
    return sides[:heads]
