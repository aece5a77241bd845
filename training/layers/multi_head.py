"""Multi-head attention (arXiv 1706.03762): self-attention, and cross-attention to an encoded sequence.

Shape suffixes are listed in :mod:`training.layers`.
"""

from typing import NamedTuple

import torch
from torch import nn

from configs.schema.models.transformer import TransformerSection
from training.layers import cpu
from training.layers.attention import AttentionHook, attention, attention_weights
from training.layers.kv_cache import LayerCache
from training.layers.linear import Linear
from training.layers.masks import Mask
from training.layers.rope import RotaryTable, rotate_tail


class SelfAttention(nn.Module):
    """Self-attention with a fused QKV projection and an output projection."""

    def __init__(self, config: TransformerSection) -> None:
        super().__init__()
        self.heads, self.dropout = config.num_attention_heads, config.dropout
        self.scale = config.head_size**-0.5
        self.qkv_proj = Linear(config.hidden_size, 3 * config.hidden_size, bias=config.bias)
        self.o_proj = Linear(config.hidden_size, config.hidden_size, bias=config.bias)
        self.attention_hook: AttentionHook | None = None

    def forward(
        self,
        x_BTD: torch.Tensor,
        mask: Mask,
        rope: RotaryTable | None = None,
        cache: LayerCache | None = None,
    ) -> torch.Tensor:
        """Map [B, T, D] -> [B, T, D].

        ``rope`` rotates queries and keys. The T tokens follow the tokens that ``cache`` already holds, and their
        entries are appended to the cache.
        """
        q, k, v = self.qkv_proj(x_BTD).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if rope is not None:
            q, k = rotate_tail(q, rope), rotate_tail(k, rope)
        if cache is not None:
            cache.append(torch.cat((k, v), dim=-1))
            if cache.has_past:
                return self._project(self._cached_attention(q, mask, cache))
        if self.attention_hook is not None:
            self.attention_hook(attention_weights(q, k, self.scale, mask))
        dropout = self.dropout if self.training else 0.0
        return self._project(attention(q, k, v, self.scale, mask, dropout))

    def _cached_attention(self, q_BNTH: torch.Tensor, mask: Mask, cache: LayerCache) -> torch.Tensor:
        """Attend from the incoming tokens to all cached entries, including their own."""
        visible_lengths_BT = cache.visible_lengths()
        out = cpu.decode.attention(q_BNTH, cache.entries(), visible_lengths_BT, self.scale, mask.window, mask.slopes_N)
        if out is not None:
            return out.transpose(1, 2)
        k, v = cache.entries().chunk(2, dim=-1)
        positions_BT = cache.positions()
        keys_L = torch.arange(k.shape[2], device=k.device)
        attention_mask = cache.attention_mask()
        if attention_mask is None and mask.window is not None:
            # Each sequence has the same length and one incoming token, so skip the keys outside its window.
            first = max(0, k.shape[2] - mask.window)
            k, v, keys_L = k[:, :, first:], v[:, :, first:], keys_L[first:]
        scores = (q_BNTH @ k.transpose(2, 3)) * self.scale
        if attention_mask is not None or mask.slopes_N is not None:
            bias = mask.bias(positions_BT, keys_L, scores.dtype)
            scores = scores if bias is None else scores + bias
        return scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v

    def _project(self, out_BNTH: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.o_proj(out_BNTH.transpose(1, 2).flatten(2))
        return out


class Source(NamedTuple):
    """An encoded sequence [B, S, D] and its non-causal padding mask."""

    encoded: torch.Tensor
    mask: Mask


class CrossAttentionKV(NamedTuple):
    """One decoder layer's keys and values [B, N, S, H] for an encoded sequence, and its padding mask."""

    keys: torch.Tensor
    values: torch.Tensor
    mask: Mask


class CrossAttention(nn.Module):
    """Attention with the queries of one sequence and the keys and values of another."""

    def __init__(self, config: TransformerSection) -> None:
        super().__init__()
        self.heads, self.width, self.dropout = config.num_attention_heads, config.head_size, config.dropout
        self.scale = config.head_size**-0.5
        self.q_proj = Linear(config.hidden_size, config.hidden_size, bias=config.bias)
        self.kv_proj = Linear(config.hidden_size, 2 * config.hidden_size, bias=config.bias)
        self.o_proj = Linear(config.hidden_size, config.hidden_size, bias=config.bias)
        self.attention_hook: AttentionHook | None = None

    def project_kv(self, source: Source) -> CrossAttentionKV:
        """Compute an encoded sequence's keys and values once, for all positions that attend to the sequence."""
        k, v = self.kv_proj(source.encoded).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return CrossAttentionKV(k, v, source.mask)

    def forward(self, x_BTD: torch.Tensor, source: Source | CrossAttentionKV) -> torch.Tensor:
        """Map [B, T, D] -> [B, T, D].

        If there are fewer sources than sequences, each source is shared by several consecutive sequences, such as
        beams.
        """
        kv = self.project_kv(source) if isinstance(source, Source) else source
        q = self.q_proj(x_BTD).view(len(kv.keys), -1, self.heads, self.width).transpose(1, 2)
        if self.attention_hook is not None:
            self.attention_hook(attention_weights(q, kv.keys, self.scale, kv.mask))
        dropout = self.dropout if self.training else 0.0
        out_BNTH = attention(q, kv.keys, kv.values, self.scale, kv.mask, dropout)
        out: torch.Tensor = self.o_proj(out_BNTH.transpose(1, 2).reshape_as(x_BTD))
        return out
