"""Multi-head attention (arXiv 1706.03762) of a sequence to itself, and to another one that was encoded."""

from typing import NamedTuple

import torch
from torch import nn

from configs.schema.models.transformer import TransformerSection
from training.layers.attention import Listener, attention, attention_weights
from training.layers.cpu import decode
from training.layers.kv_cache import LayerCache
from training.layers.linear import Linear
from training.layers.masks import Mask
from training.layers.rope import Rotation, rotate_tail


class SelfAttention(nn.Module):
    """Queries, keys and values of one sequence by one product, attention, and a projection back."""

    def __init__(self, config: TransformerSection) -> None:
        super().__init__()
        self.heads, self.dropout = config.num_attention_heads, config.dropout
        self.scale = config.head_size**-0.5
        self.qkv_proj = Linear(config.hidden_size, 3 * config.hidden_size, bias=config.bias)
        self.o_proj = Linear(config.hidden_size, config.hidden_size, bias=config.bias)
        self.listener: Listener | None = None

    def forward(
        self,
        x_BTD: torch.Tensor,
        mask: Mask,
        rotation: Rotation | None = None,
        cache: LayerCache | None = None,
    ) -> torch.Tensor:
        """[B, T, D] -> [B, T, D].

        ``rotation`` turns queries and keys (RoPE). With a ``cache`` that holds earlier positions the T are those that
        follow; all are entered into it.
        """
        q, k, v = self.qkv_proj(x_BTD).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if rotation is not None:
            q, k = rotate_tail(q, rotation), rotate_tail(k, rotation)
        if cache is not None:
            cache.enter(torch.cat((k, v), dim=-1))
            if cache.continues:
                return self._joined(self._to_cached(q, mask, cache))
        if self.listener is not None:
            self.listener(attention_weights(q, k, self.scale, mask))
        dropout = self.dropout if self.training else 0.0
        return self._joined(attention(q, k, v, self.scale, mask, dropout))

    def _to_cached(self, q_BNTH: torch.Tensor, mask: Mask, cache: LayerCache) -> torch.Tensor:
        """Attention of the incoming tokens to all that is cached, their own entries included."""
        few = decode.attention(q_BNTH, cache.entries(), cache.seen(), self.scale, mask.window, mask.slopes_N)
        if few is not None:
            return few.transpose(1, 2)
        k, v = cache.entries().chunk(2, dim=-1)
        positions_BT = cache.positions()
        keys_L = torch.arange(k.shape[2], device=k.device)
        hidden = cache.hidden()
        if hidden is None and mask.window is not None:
            # All sequences are alike and a single token comes in: what it cannot reach is not read.
            first = max(0, k.shape[2] - mask.window)
            k, v, keys_L = k[:, :, first:], v[:, :, first:], keys_L[first:]
        scores = (q_BNTH @ k.transpose(2, 3)) * self.scale
        if hidden is not None or mask.slopes_N is not None:
            bias = mask.bias(positions_BT, keys_L, scores.dtype)
            scores = scores if bias is None else scores + bias
        return scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v

    def _joined(self, out_BNTH: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.o_proj(out_BNTH.transpose(1, 2).flatten(2))
        return out


class Source(NamedTuple):
    """An encoded sequence [B, S, D], and which of its positions are there; the mask is not causal."""

    encoded: torch.Tensor
    mask: Mask


class Memory(NamedTuple):
    """What a decoder layer keeps of the encoder's output: keys and values [B, N, S, H], and which of them are there."""

    keys: torch.Tensor
    values: torch.Tensor
    mask: Mask


class CrossAttention(nn.Module):
    """Queries of one sequence, keys and values of another."""

    def __init__(self, config: TransformerSection) -> None:
        super().__init__()
        self.heads, self.width, self.dropout = config.num_attention_heads, config.head_size, config.dropout
        self.scale = config.head_size**-0.5
        self.q_proj = Linear(config.hidden_size, config.hidden_size, bias=config.bias)
        self.kv_proj = Linear(config.hidden_size, 2 * config.hidden_size, bias=config.bias)
        self.o_proj = Linear(config.hidden_size, config.hidden_size, bias=config.bias)
        self.listener: Listener | None = None

    def remember(self, source: Source) -> Memory:
        """Keys and values of an encoded sequence, of use for every position of the other one."""
        k, v = self.kv_proj(source.encoded).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return Memory(k, v, source.mask)

    def forward(self, x_BTD: torch.Tensor, source: Source | Memory) -> torch.Tensor:
        """[B, T, D] -> [B, T, D].

        Of fewer sources than there are sequences each is for as many sequences in a row, as beams are.
        """
        memory = self.remember(source) if isinstance(source, Source) else source
        q = self.q_proj(x_BTD).view(len(memory.keys), -1, self.heads, self.width).transpose(1, 2)
        if self.listener is not None:
            self.listener(attention_weights(q, memory.keys, self.scale, memory.mask))
        dropout = self.dropout if self.training else 0.0
        out_BNTH = attention(q, memory.keys, memory.values, self.scale, memory.mask, dropout)
        out: torch.Tensor = self.o_proj(out_BNTH.transpose(1, 2).reshape_as(x_BTD))
        return out
