"""Attention over complete sequences: causal, for training and for reading a prompt, and under any mask."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from training.layers import cpu
from training.layers.masks import Mask
from training.layers.packed_documents import Documents, flex_attention

#: FlexAttention's block of queries or keys.
_FLEX_BLOCK = 128

#: Receives the attention weights [B, N, T, L] of every forward pass over complete sequences.
AttentionHook = Callable[[torch.Tensor], None]


def attention(
    q_BNTQ: torch.Tensor,
    k_BNLQ: torch.Tensor,
    v_BNLZ: torch.Tensor,
    scale: float,
    mask: Mask,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Scaled dot-product attention under a mask, with query t at position t; returns [B, N, T, Z].

    With a window, time and memory grow linearly with the length: a CPU computes blocks of queries with the keys that
    they attend to, and elsewhere FlexAttention skips blocks that are masked completely. Only with dropout, which
    FlexAttention lacks, does a GPU build a mask of all pairs of positions.

    ``dropout``: fraction of the weights that is set to 0.
    """
    if mask.causal_only and not dropout:
        return causal_attention(q_BNTQ, k_BNLQ, v_BNLZ, scale, mask.documents)
    out = cpu.attention.masked_attention(q_BNTQ, k_BNLQ, v_BNLZ, scale, mask, dropout)
    return _masked(q_BNTQ, k_BNLQ, v_BNLZ, scale, mask, dropout) if out is None else out


def causal_attention(
    q_BNTQ: torch.Tensor,
    k_BNTQ: torch.Tensor,
    v_BNTZ: torch.Tensor,
    scale: float,
    documents: Documents | None = None,
) -> torch.Tensor:
    """Scaled dot-product attention in which position t attends to positions 0..t; returns [B, N, T, Z].

    With ``documents`` it attends only within its own document, and the cost grows with the sum of their squared
    lengths: blocks of other documents are not computed, in blocks on CPU and by FlexAttention elsewhere.
    """
    out = cpu.attention.causal_attention(q_BNTQ, k_BNTQ, v_BNTZ, scale, documents)
    if out is not None:
        return out
    if documents is None:
        return F.scaled_dot_product_attention(q_BNTQ, k_BNTQ, v_BNTZ, is_causal=True, scale=scale)
    return flex_attention()(q_BNTQ, k_BNTQ, v_BNTZ, block_mask=documents.block_mask(), scale=scale)


def attention_weights(q_BNTQ: torch.Tensor, k_BNLQ: torch.Tensor, scale: float, mask: Mask) -> torch.Tensor:
    """The softmax weights [B, N, T, L] of :func:`attention`, written out in fp32."""
    scores = (q_BNTQ.float() @ k_BNLQ.float().transpose(2, 3)) * scale
    bias = mask.full_bias(q_BNTQ.shape[2], k_BNLQ.shape[2], torch.float32, q_BNTQ.device)
    return (scores if bias is None else scores + bias).softmax(-1)


def _masked(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, mask: Mask, dropout: float
) -> torch.Tensor:
    length, keys = q.shape[2], k.shape[2]
    if mask.causal_only and mask.documents is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout, scale=scale)
    if not dropout and (mask.window is not None or mask.documents is not None):
        return masked_flex_attention(q, k, v, scale, mask, flex_attention())
    bias = mask.full_bias(length, keys, q.dtype, q.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, scale=scale)


def masked_flex_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, mask: Mask, attend: Callable[..., Any]
) -> torch.Tensor:
    """FlexAttention ``attend`` under a mask, [B, N, T, Z].

    It is compiled for each length, so examples, whose lengths differ between batches, are padded to complete blocks.
    """
    length, keys = q.shape[2], k.shape[2]
    if mask.documents is None:
        mask = mask.limited_to(len(q), keys, q.device)
        q = F.pad(q, (0, 0, 0, -length % _FLEX_BLOCK))
        k, v = (F.pad(tensor, (0, 0, 0, -keys % _FLEX_BLOCK)) for tensor in (k, v))
    score_mod, block_mask = mask.flex(q.shape[2], k.shape[2], q.device)
    out: torch.Tensor = attend(q, k, v, score_mod=score_mod, block_mask=block_mask, scale=scale)
    return out[:, :, :length]
