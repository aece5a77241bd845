"""Which positions attention may look at, and how scores fall with distance (ALiBi, arXiv 2108.12409)."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from training.layers.packed_documents import Documents, make_block_mask


@dataclass
class Mask:
    """The attention mask of one forward pass, shared by all layers.

    Attributes:
        causal: a query does not attend to positions after its own.
        window: number of positions that a query reaches, its own included, back and, if not causal, ahead; None: all.
        slopes_N: ALiBi: by how much the scores of a head fall per position of distance; None: no ALiBi.
        lengths_B: number of valid keys in each sequence, which is padded on the right; None: all are valid.
        documents: a query attends only within its own document; None: to all positions.
        sides_N: a head at -1 sees no position after the query's, a head at 1 none before, a head at 0 both sides; None:
            every head sees both sides.
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
        """Whether this is a causal mask, with or without documents, and nothing else."""
        restrictions = self.window, self.slopes_N, self.lengths_B, self.sides_N
        return self.causal and all(restriction is None for restriction in restrictions)

    def key_range(self, start: int, end: int, keys: int) -> tuple[int, int]:
        """First key, and one past the last key, that any of the queries ``start`` .. ``end``-1 attends to."""
        first = 0 if self.window is None else max(0, start - self.window + 1)
        last = end if self.causal else keys if self.window is None else end + self.window - 1
        return first, min(last, keys)

    def bias(self, queries: torch.Tensor, keys_L: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
        """What is added to scores [B, N, T, L], broadcast to them: :func:`mask_value` where a key is masked.

        Not minus infinity: a row of padding may attend to nothing, and the NaN of its softmax would spread to every
        gradient.

        Args:
            queries: positions [T], or [B, T].
            keys_L: positions.
            dtype: of the scores.

        Returns:
            [T, L] where sequences and heads do not differ; None: nothing is added.
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
        """:meth:`bias` of complete sequences, with documents; takes as much memory as all scores of a head."""
        bias = self.bias(torch.arange(queries, device=device), torch.arange(keys, device=device), dtype)
        if self.documents is None:
            return bias
        ids_BT = self.documents.ids_BT
        different = ids_BT[:, None, :, None] != ids_BT[:, None, None, :]
        bias = torch.zeros((), dtype=dtype, device=device) if bias is None else bias
        return bias.masked_fill(different, mask_value(dtype))

    def limited_to(self, samples: int, keys: int, device: torch.device) -> "Mask":
        """The same mask for keys that are padded beyond ``keys``: the padding is masked."""
        if self.causal or self.lengths_B is not None:
            return self
        if keys not in self._limited:
            lengths_B = torch.full((samples,), keys, device=device)
            self._limited[keys] = replace(self, lengths_B=lengths_B, _block_masks={}, _limited={})
        return self._limited[keys]

    def flex(self, queries: int, keys: int, device: torch.device) -> tuple[Any, Any]:
        """FlexAttention's ``score_mod`` and ``block_mask``; a block mask is made once for each pair of lengths."""
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
                # Not in mask_mod, as all heads share one block mask.
                score = torch.where((key - query) * sides[head] < 0, mask_value(torch.float32), score)
            return score

        if (queries, keys) not in self._block_masks:
            samples = next((len(tensor) for tensor in (lengths, ids_BT) if tensor is not None), None)
            self._block_masks[queries, keys] = make_block_mask(mask_mod, samples, queries, keys, device)
        return None if slopes is None and sides is None else score_mod, self._block_masks[queries, keys]


def mask_value(dtype: torch.dtype) -> float:
    """What masks a key when it is added to its score.

    Half of the lowest number: added to a score it stays finite, and a row that is masked completely is not 0/0.
    """
    return torch.finfo(dtype).min / 2


def alibi_slopes(heads: int, device: torch.device | None = None, causal: bool = True) -> torch.Tensor:
    """Slope of each head [N] in fp32: a geometric sequence from 2^(-8/N).

    Where N is no power of two, the slopes are those of the power of two below N, and every other one of the power
    above, as in the paper's code. In a bidirectional stack a head that looks back and one that looks ahead share a
    slope, which is every other one of the same sequence, see :func:`alibi_sides`.
    """
    if not causal:
        return alibi_slopes(heads, device)[::2].repeat_interleave(2)[:heads]
    power = 2 ** (heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * (i + 1) / power) for i in range(power)]
    slopes += [2.0 ** (-4.0 * (2 * i + 1) / power) for i in range(heads - power)]
    return torch.tensor(slopes, device=device)


def alibi_sides(heads: int, device: torch.device | None = None) -> torch.Tensor:
    """The side that each head [N] of a bidirectional stack looks to: -1 back, 1 ahead, 0 both (the last of an odd
    number of heads).

    Scores that fall alike on both sides do not distinguish "before" from "after", and a stack of them reads a word and
    its reverse alike. The paper has only causal models, where this does not arise.
    """
    sides = torch.tensor([-1, 1], device=device).repeat((heads + 1) // 2)
    if heads % 2:
        sides[heads - 1] = 0
    return sides[:heads]
