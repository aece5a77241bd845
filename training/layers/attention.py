"""Attention over whole sequences: causal, for training and for reading a prompt; and under any mask."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F

from training.layers.cpu.attention import Block, blocked_attention
from training.layers.masks import Mask
from training.layers.packed_documents import Documents, flex_attention

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
    that any of them sees, elsewhere FlexAttention leaves out the blocks that nobody sees. Only elsewhere and with
    dropout, which FlexAttention has not, does it make a mask of all pairs of positions.

    ``dropout``: share of the weights that is set to 0.
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
    return blocked_attention(q, k, v, scale, _blocks(mask, length, keys, q.dtype), dropout)


def _blocks(mask: Mask, length: int, keys: int, dtype: torch.dtype) -> Iterator[Block]:
    """Blocks of queries under a mask, but for its documents."""
    made: dict[tuple[int, ...], torch.Tensor | None] = {}
    for start in range(0, length, _BLOCK):
        end = min(start + _BLOCK, length)
        first, last = mask.reach(start, end, keys)
        # Within a window most blocks are alike, where no lengths tell them apart.
        kind = (end - start, start - first, last - first, 0 if mask.lengths_B is None else start)
        if kind not in made:
            made = {kind: mask.bias(torch.arange(start, end), torch.arange(first, last), dtype)}
        yield Block(start, end, first, last, made[kind])


def _masked_on_device(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, mask: Mask, dropout: float
) -> torch.Tensor:
    length, keys = q.shape[2], k.shape[2]
    if mask.plain and mask.documents is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout, scale=scale)
    if not dropout and (mask.window is not None or mask.documents is not None):
        return flexed(q, k, v, scale, mask, flex_attention())
    # FlexAttention drops no weights.
    bias = mask.bias_of_all(length, keys, q.dtype, q.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, scale=scale)


def flexed(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, mask: Mask, attend: Callable[..., Any]
) -> torch.Tensor:
    """FlexAttention ``attend`` under a mask, [B, N, T, Z].

    It is compiled for each length: examples, whose lengths differ from batch to batch, are filled up to whole blocks.
    """
    length, keys = q.shape[2], k.shape[2]
    if mask.documents is None:
        mask = mask.of_keys(len(q), keys, q.device)
        q = F.pad(q, (0, 0, 0, -length % _BLOCK))
        k, v = (F.pad(tensor, (0, 0, 0, -keys % _BLOCK)) for tensor in (k, v))
    score_mod, block_mask = mask.flex(q.shape[2], k.shape[2], q.device)
    out: torch.Tensor = attend(q, k, v, score_mod=score_mod, block_mask=block_mask, scale=scale)
    return out[:, :, :length]


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
            return _masked_blocks(q_BNTQ, k_BNTQ, v_BNTZ, scale, Mask(True), 0.0)
        return _fused(q_BNTQ, k_BNTQ, v_BNTZ, scale)
    if not on_cpu:
        return _flex(q_BNTQ, k_BNTQ, v_BNTZ, scale, documents)
    rows = []
    for row, spans in enumerate(documents.spans()):
        q, k, v = (tensor[row : row + 1] for tensor in (q_BNTQ, k_BNTQ, v_BNTZ))
        if max(end - start for start, end in spans) <= _LONGEST_BLOCKED:
            rows.append(blocked_attention(q, k, v, scale, _document_blocks(spans, q)))
        else:
            pieces = [_fused(q[..., a:b, :], k[..., a:b, :], v[..., a:b, :], scale) for a, b in spans]
            rows.append(torch.cat(pieces, dim=2))
    return torch.cat(rows)


def _fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """PyTorch's kernel; where values are narrower than queries, CPU and some of the GPU's want them padded."""
    width = v.shape[-1]
    if q.device.type == "cpu":
        v = F.pad(v, (0, max(q.shape[-1] - width, 0)))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)[..., :width]


def _flex(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, documents: Documents) -> torch.Tensor:
    out: Any = flex_attention()(q, k, v, block_mask=documents.block_mask(), scale=scale)
    return out


def _document_blocks(spans: list[tuple[int, int]], like: torch.Tensor) -> Iterator[Block]:
    """One sample's documents: a block of queries meets keys from the beginning of the first document it touches."""
    hidden_future = _hidden_future(like)
    first = 0
    for start in range(0, spans[-1][1], _BLOCK):
        end = min(start + _BLOCK, spans[-1][1])
        while spans[first][1] <= start:
            first += 1
        begin = spans[first][0]
        bias = F.pad(hidden_future[: end - start, : end - start], (start - begin, 0))
        for other, _ in spans[first + 1 :]:
            if other >= end:
                break
            # Queries of this document and of later ones see nothing before it.
            bias[other - start :, : other - begin] = float("-inf")
        yield Block(start, end, begin, end, bias)


def _hidden_future(like: torch.Tensor) -> torch.Tensor:
    return torch.full((_BLOCK, _BLOCK), float("-inf"), dtype=like.dtype, device=like.device).triu(1)
