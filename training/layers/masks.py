"""Attention masks: which positions a query may attend to, and ALiBi's distance penalty (arXiv 2108.12409)."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from training.layers.packed_documents import Documents, make_block_mask


@dataclass
class Mask:
    """The attention mask of one forward pass, shared by all layers.

    Attributes:
        causal: whether queries are kept from attending to later positions.
        window: number of positions, including its own, that a query can look back and, if not causal, also ahead. None
            for no limit.
        slopes_N: ALiBi's slopes, i.e. how much each head's scores decrease per position of distance. None without
            ALiBi.
        lengths_B: number of valid keys in each right-padded sequence. None if all keys are valid.
        documents: documents whose boundaries attention must not cross. None if there are no such boundaries.
        sides_N: direction in which each head looks: -1 for backward, 1 for forward, 0 for both. The query's own
            position is always included. None if every head looks both ways.
    """

    causal: bool
    window: int | None = None
    slopes_N: torch.Tensor | None = None
    lengths_B: torch.Tensor | None = None
    documents: Documents | None = None
    sides_N: torch.Tensor | None = None
    _block_masks: dict[tuple[int, int], Any] = field(default_factory=dict)
    _limited: dict[int, "Mask"] = field(default_factory=dict)

    @property
    def causal_only(self) -> bool:
        """Whether the mask is purely causal, with or without documents."""
        restrictions = self.window, self.slopes_N, self.lengths_B, self.sides_N
        return self.causal and all(restriction is None for restriction in restrictions)

    def key_range(self, start: int, end: int, keys: int) -> tuple[int, int]:
        """Return the range (first, end) of keys that at least one of the queries ``start`` .. ``end``-1 attends to."""
        first = 0 if self.window is None else max(0, start - self.window + 1)
        last = end if self.causal else keys if self.window is None else end + self.window - 1
        return first, min(last, keys)

    def bias(self, queries: torch.Tensor, keys_L: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
        """Return the bias to add to scores [B, N, T, L]. It is :func:`mask_value` where a key is masked.

        Masked keys do not get minus infinity, because all keys of a padding row may be masked. The row's softmax would
        then be NaN, which would propagate to every gradient.

        Args:
            queries: query positions [T] or [B, T].
            keys_L: key positions.
            dtype: dtype of the scores.

        Returns:
            A bias that broadcasts to the scores ([T, L] if it is the same for all sequences and heads), or None if
            there is nothing to add.
        """
        ahead = keys_L - queries[..., None]  # [T, L] or [B, T, L]
        masked = ahead > 0 if self.causal else None
        if self.window is not None:
            far = (ahead if self.causal else -ahead.abs()) <= -self.window
            masked = far if masked is None else masked | far
        if ahead.dim() == 3:
            ahead, masked = ahead[:, None], None if masked is None else masked[:, None]
        if self.sides_N is not None:
            other_side = ahead * self.sides_N[:, None, None] < 0
            masked = other_side if masked is None else masked | other_side
        if self.lengths_B is not None:
            padding = (keys_L >= self.lengths_B[:, None])[:, None, None]
            masked = padding if masked is None else masked | padding
        bias = None
        if self.slopes_N is not None:
            bias = (ahead.abs().float() * -self.slopes_N[:, None, None]).to(dtype)
        if masked is None:
            return bias
        if bias is None:
            bias = torch.zeros((), dtype=dtype, device=masked.device)
        value = mask_value(dtype)
        return bias.masked_fill_(masked, value) if masked.dim() <= bias.dim() else bias.masked_fill(masked, value)

    def full_bias(self, queries: int, keys: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor | None:
        """Return :meth:`bias` for complete sequences, with document boundaries. It covers all pairs of positions."""
        bias = self.bias(torch.arange(queries, device=device), torch.arange(keys, device=device), dtype)
        if self.documents is None:
            return bias
        ids_BT = self.documents.ids_BT
        different = ids_BT[:, None, :, None] != ids_BT[:, None, None, :]
        bias = torch.zeros((), dtype=dtype, device=device) if bias is None else bias
        return bias.masked_fill(different, mask_value(dtype))

    def limited_to(self, samples: int, keys: int, device: torch.device) -> "Mask":
        """Return this mask for sequences that are padded to more than ``keys`` keys, with the padding masked."""
        if self.causal or self.lengths_B is not None:
            return self
        if keys not in self._limited:
            lengths_B = torch.full((samples,), keys, device=device)
            self._limited[keys] = replace(self, lengths_B=lengths_B, _block_masks={}, _limited={})
        return self._limited[keys]

    def flex(self, queries: int, keys: int, device: torch.device) -> tuple[Any, Any]:
        """Return FlexAttention's ``score_mod`` and ``block_mask``. Block masks are cached per pair of lengths."""
        slopes, sides, lengths, window = self.slopes_N, self.sides_N, self.lengths_B, self.window
        causal = self.causal
        ids_BT = None if self.documents is None else self.documents.ids_BT

        def mask_mod(b: Any, _head: Any, query: Any, key: Any) -> Any:
            ahead = key - query
            visible = ahead <= 0 if causal else ahead == ahead
            if window is not None:
                visible = visible & (ahead > -window) & (ahead < window)
            if lengths is not None:
                visible = visible & (key < lengths[b])
            if ids_BT is not None:
                visible = visible & (ids_BT[b, query] == ids_BT[b, key])
            return visible

        def score_mod(score: Any, _b: Any, head: Any, query: Any, key: Any) -> Any:
            if slopes is not None:
                score = score - slopes[head] * (query - key).abs()
            if sides is not None:
                # This is not in mask_mod because all heads share one block mask.
                score = torch.where((key - query) * sides[head] < 0, mask_value(torch.float32), score)
            return score

        if (queries, keys) not in self._block_masks:
            samples = next((len(tensor) for tensor in (lengths, ids_BT) if tensor is not None), None)
            self._block_masks[queries, keys] = make_block_mask(mask_mod, samples, queries, keys, device)
        return None if slopes is None and sides is None else score_mod, self._block_masks[queries, keys]


def mask_value(dtype: torch.dtype) -> float:
    """Return the value to add to a masked key's score.

    The value is half the dtype's minimum, so that the sum stays finite and a fully masked row's softmax is not 0/0.
    """
    return torch.finfo(dtype).min / 2


def alibi_slopes(heads: int, device: torch.device | None = None, causal: bool = True) -> torch.Tensor:
    """Return ALiBi's slope for each head, [N] in fp32: a geometric sequence that starts at 2^(-8/N).

    If N is not a power of two, the sequence for the power of two below N is followed by every other slope of the
    sequence for the power of two above N, as in the paper's code. In a bidirectional stack, each backward-looking head
    shares its slope with a forward-looking head, so only every other slope of the sequence is used (see
    :func:`alibi_sides`).
    """
    if not causal:
        return alibi_slopes(heads, device)[::2].repeat_interleave(2)[:heads]
    power = 2 ** (heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * (i + 1) / power) for i in range(power)]
    slopes += [2.0 ** (-4.0 * (2 * i + 1) / power) for i in range(heads - power)]
    return torch.tensor(slopes, device=device)


def alibi_sides(heads: int, device: torch.device | None = None) -> torch.Tensor:
    """Return the direction in which each head of a bidirectional stack looks, [N].

    The values are -1 for backward, 1 for forward, and 0 for both (the last head if the number of heads is odd). If
    scores decreased equally on both sides, the stack could not distinguish "before" from "after", or a word from its
    reversal. The paper covers only causal models, which do not have this problem.
    """
    sides = torch.tensor([-1, 1], device=device).repeat((heads + 1) // 2)
    if heads % 2:
        sides[heads - 1] = 0
    return sides[:heads]
