"""Attention over whole sequences: causal, for training and for reading a prompt; and under any mask."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from training.layers.documents import Documents, flex_attention
from training.layers.masks import Mask

#: Rows of queries that the CPU path takes at a time, and the longest span of keys that it keeps weights for.
_BLOCK = 128
_LONGEST_BLOCKED = 2048

#: Told the weights [B, N, T, L] of every forward pass over whole sequences.
Listener = Callable[[torch.Tensor], None]


def attention(
    q_BNTQ: torch.Tensor,
    k_BNLQ: torch.Tensor,
    v_BNLZ: torch.Tensor,
    scale: float,
    mask: Mask,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Scaled dot-product attention under a mask, query t standing at position t; returns [B, N, T, Z].

    With a window time and memory grow with the length, not with its square: on CPU blocks of queries meet the keys
    that any of them sees, elsewhere FlexAttention leaves out the blocks that nobody sees. ``dropout``: share of the
    weights that is set to 0.
    """
    if mask.plain and not dropout:
        return causal_attention(q_BNTQ, k_BNLQ, v_BNLZ, scale, mask.documents)
    if q_BNTQ.device.type != "cpu":
        return _masked_on_device(q_BNTQ, k_BNLQ, v_BNLZ, scale, mask, dropout)
    if mask.documents is None:
        return _masked_blocks(q_BNTQ, k_BNLQ, v_BNLZ, scale, mask, dropout)
    alone = dataclasses.replace(mask, documents=None)
    rows = []
    for row, spans in enumerate(mask.documents.spans()):
        q, k, v = (tensor[row : row + 1] for tensor in (q_BNTQ, k_BNLQ, v_BNLZ))
        pieces = [
            _masked_blocks(q[..., a:b, :], k[..., a:b, :], v[..., a:b, :], scale, alone, dropout) for a, b in spans
        ]
        rows.append(torch.cat(pieces, dim=2))
    return torch.cat(rows)


def attention_weights(q_BNTQ: torch.Tensor, k_BNLQ: torch.Tensor, scale: float, mask: Mask) -> torch.Tensor:
    """The softmax's weights [B, N, T, L] of the same, written out in fp32."""
    scores = (q_BNTQ.float() @ k_BNLQ.float().transpose(2, 3)) * scale
    bias = mask.bias_of_all(q_BNTQ.shape[2], k_BNLQ.shape[2], torch.float32, q_BNTQ.device)
    return (scores if bias is None else scores + bias).softmax(-1)


def _masked_blocks(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, mask: Mask, dropout: float
) -> torch.Tensor:
    """Each block of queries with the keys that any of them sees, of one sequence a row; [B, N, T, Z]."""
    length, keys = q.shape[2], k.shape[2]
    if mask.window is None and length > _LONGEST_BLOCKED:
        bias = mask.bias(torch.arange(length), torch.arange(keys), q.dtype)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, scale=scale)
    outs = []
    for start in range(0, length, _BLOCK):
        end = min(start + _BLOCK, length)
        first, last = mask.reach(start, end, keys)
        bias = mask.bias(torch.arange(start, end), torch.arange(first, last), q.dtype)
        scores = (q[:, :, start:end] @ k[:, :, first:last].transpose(2, 3)) * scale
        weights = (scores if bias is None else scores + bias).softmax(-1)
        outs.append((F.dropout(weights, dropout) if dropout else weights) @ v[:, :, first:last])
    return outs[0] if len(outs) == 1 else torch.cat(outs, dim=2)


def _masked_on_device(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, mask: Mask, dropout: float
) -> torch.Tensor:
    length, keys = q.shape[2], k.shape[2]
    if mask.plain and mask.documents is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout, scale=scale)
    if not dropout and (mask.window is not None or mask.documents is not None):
        score_mod, block_mask = mask.flex(length, keys, q.device)
        out: torch.Tensor = flex_attention()(q, k, v, score_mod=score_mod, block_mask=block_mask, scale=scale)
        return out
    # FlexAttention drops no weights.
    bias = mask.bias_of_all(length, keys, q.dtype, q.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, scale=scale)


def causal_attention(
    q_BNTQ: torch.Tensor,
    k_BNTQ: torch.Tensor,
    v_BNTZ: torch.Tensor,
    scale: float,
    documents: Documents | None = None,
) -> torch.Tensor:
    """Scaled dot-product attention in which position t sees positions 0..t; returns [B, N, T, Z].

    With ``documents`` it sees those of its own document alone, and the cost grows with the sum of their squared
    lengths: blocks of other documents are not computed, on CPU a block at a time, elsewhere by FlexAttention.

    On CPU PyTorch's fused kernel wants values as wide as queries and, with one thread, is 1.4 (fp32) to 2.7 (bf16)
    times slower than blocks of plain matrix products at length 256; those store the weights for the backward pass, so
    long sequences take the fused kernel all the same, a document at a time.
    """
    on_cpu = q_BNTQ.device.type == "cpu"
    if documents is None:
        if on_cpu and q_BNTQ.shape[2] <= _LONGEST_BLOCKED:
            return blocked_causal_attention(q_BNTQ, k_BNTQ, v_BNTZ, scale)
        return _fused(q_BNTQ, k_BNTQ, v_BNTZ, scale)
    if not on_cpu:
        return _flex(q_BNTQ, k_BNTQ, v_BNTZ, scale, documents)
    rows = []
    for row, spans in enumerate(documents.spans()):
        q, k, v = q_BNTQ[row], k_BNTQ[row], v_BNTZ[row]
        if max(end - start for start, end in spans) <= _LONGEST_BLOCKED:
            rows.append(_blocked_row(q, k, v, scale, spans))
        else:
            pieces = [_fused(q[None, :, a:b], k[None, :, a:b], v[None, :, a:b], scale)[0] for a, b in spans]
            rows.append(torch.cat(pieces, dim=1))
    return torch.stack(rows)


def _fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """PyTorch's kernel; where values are narrower than queries, CPU and some of the GPU's want them padded."""
    width = v.shape[-1]
    if q.device.type == "cpu":
        v = F.pad(v, (0, max(q.shape[-1] - width, 0)))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)[..., :width]


def _flex(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, documents: Documents) -> torch.Tensor:
    out: Any = flex_attention()(q, k, v, block_mask=documents.block_mask(), scale=scale)
    return out


def blocked_causal_attention(
    q_BNTQ: torch.Tensor, k_BNTQ: torch.Tensor, v_BNTZ: torch.Tensor, scale: float
) -> torch.Tensor:
    """Written out: each block of queries meets only the keys up to its own last position; [B, N, T, Z]."""
    q, k, v = (t.flatten(0, 1) for t in (q_BNTQ, k_BNTQ, v_BNTZ))
    length = q.shape[1]
    hidden_future = _hidden_future(q)
    outs = []
    for start in range(0, length, _BLOCK):
        end = min(start + _BLOCK, length)
        mask = F.pad(hidden_future[: end - start, : end - start], (start, 0))
        outs.append(_attend(q[:, start:end], k[:, :end], v[:, :end], mask, scale))
    return torch.cat(outs, dim=1).unflatten(0, q_BNTQ.shape[:2])


def _blocked_row(
    q_NTQ: torch.Tensor, k_NTQ: torch.Tensor, v_NTZ: torch.Tensor, scale: float, spans: list[tuple[int, int]]
) -> torch.Tensor:
    """One sample's documents: a block of queries meets keys from the beginning of the first document it touches."""
    hidden_future = _hidden_future(q_NTQ)
    outs, first = [], 0
    for start in range(0, spans[-1][1], _BLOCK):
        end = min(start + _BLOCK, spans[-1][1])
        while spans[first][1] <= start:
            first += 1
        begin = spans[first][0]
        mask = F.pad(hidden_future[: end - start, : end - start], (start - begin, 0))
        for other, _ in spans[first + 1 :]:
            if other >= end:
                break
            # Queries of this document and of later ones see nothing before it.
            mask[other - start :, : other - begin] = float("-inf")
        outs.append(_attend(q_NTQ[:, start:end], k_NTQ[:, begin:end], v_NTZ[:, begin:end], mask, scale))
    return torch.cat(outs, dim=1)


def _hidden_future(like: torch.Tensor) -> torch.Tensor:
    return torch.full((_BLOCK, _BLOCK), float("-inf"), dtype=like.dtype, device=like.device).triu(1)


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, scale: float) -> torch.Tensor:
    return torch.baddbmm(mask, q, k.transpose(1, 2), alpha=scale).softmax(-1) @ v
