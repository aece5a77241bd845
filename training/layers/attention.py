"""Attention over complete sequences: causal (for training and prompt processing), or under any mask."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from training.layers import cpu
from training.layers.masks import Mask
from training.layers.packed_documents import Documents, flex_attention

#: FlexAttention's block size, for both queries and keys.
_FLEX_BLOCK = 128

#: Called with the attention weights [B, N, T, L] in every forward pass over complete sequences.
AttentionHook = Callable[[torch.Tensor], None]


def attention(
    q_BNTQ: torch.Tensor,
    k_BNLQ: torch.Tensor,
    v_BNLZ: torch.Tensor,
    scale: float,
    mask: Mask,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Compute scaled dot-product attention [B, N, T, Z] under a mask. Query t is at position t.

    With a window, time and memory grow linearly with the sequence length, because fully masked blocks are skipped.
    FlexAttention does not support dropout, however. Outside the CPU path, dropout with a window or documents therefore
    needs a mask over all pairs of positions.

    ``dropout`` is the fraction of attention weights to set to 0.
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
    """Compute scaled dot-product attention [B, N, T, Z], where position t attends to positions 0..t.

    With ``documents``, a position attends only within its own document. The cost then grows with the sum of the squared
    document lengths, since blocks whose queries and keys are in different documents are skipped.
    """
    out = cpu.attention.causal_attention(q_BNTQ, k_BNTQ, v_BNTZ, scale, documents)
    if out is not None:
        return out
    if documents is None:
        return F.scaled_dot_product_attention(q_BNTQ, k_BNTQ, v_BNTZ, is_causal=True, scale=scale)
    return flex_attention()(q_BNTQ, k_BNTQ, v_BNTZ, block_mask=documents.block_mask(), scale=scale)


def attention_weights(q_BNTQ: torch.Tensor, k_BNLQ: torch.Tensor, scale: float, mask: Mask) -> torch.Tensor:
    """Return the attention weights [B, N, T, L] of :func:`attention`, in fp32. This materializes the full matrix."""
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
    """Run FlexAttention (``attend``) under a mask; returns [B, N, T, Z].

    FlexAttention is compiled for each length, and lengths vary from batch to batch, so inputs are padded to a multiple
    of the block size.
    """
    length, keys = q.shape[2], k.shape[2]
    if mask.documents is None:
        mask = mask.limited_to(len(q), keys, q.device)
        q = F.pad(q, (0, 0, 0, -length % _FLEX_BLOCK))
        k, v = (F.pad(tensor, (0, 0, 0, -keys % _FLEX_BLOCK)) for tensor in (k, v))
    score_mod, block_mask = mask.flex(q.shape[2], k.shape[2], q.device)
    out: torch.Tensor = attend(q, k, v, score_mod=score_mod, block_mask=block_mask, scale=scale)
    return out[:, :, :length]
