"""Attention on CPU, computed in blocks of queries. Each block uses only the keys that its queries attend to.

Time and activation memory are therefore proportional to the number of scores computed. The backward pass is written by
hand, because autograd would allocate a full-length gradient for each slice of the keys. That would make the cost of
sliding-window attention quadratic again.

PyTorch's fused CPU kernel requires values as wide as the queries. On one thread, with sequences of 256 tokens, the
fused kernel is slower than plain matrix products on blocks, by a factor of 1.4 (fp32) to 2.7 (bf16). However, blocked
attention must save the attention weights for the backward pass. Without a window, sequences or documents longer than
``LONGEST_BLOCKED`` therefore use the fused kernel, one document at a time.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from training.block_sizes import LONGEST_BLOCKED, QUERY_BLOCK
from training.layers.masks import Mask
from training.layers.packed_documents import Documents

#: PyTorch's fused attention, for :mod:`training.layers.activation_checkpointing`.
FUSED_OPERATION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default


class Block(NamedTuple):
    """A block of queries ``start`` .. ``end``-1 and keys ``first`` .. ``last``-1.

    ``bias``, if not None, is added to the block's scores. It broadcasts to [B, N, queries, keys].
    """

    start: int
    end: int
    first: int
    last: int
    bias: torch.Tensor | None


def causal_attention(
    q_BNTQ: torch.Tensor,
    k_BNTQ: torch.Tensor,
    v_BNTZ: torch.Tensor,
    scale: float,
    documents: Documents | None = None,
) -> torch.Tensor | None:
    """Compute :func:`training.layers.attention.causal_attention` in blocks. Returns None if not on CPU."""
    if q_BNTQ.device.type != "cpu":
        return None
    if documents is None:
        if q_BNTQ.shape[2] <= LONGEST_BLOCKED:
            return _masked_blocks(q_BNTQ, k_BNTQ, v_BNTZ, scale, Mask(True), 0.0)
        return _fused(q_BNTQ, k_BNTQ, v_BNTZ, scale)
    rows = []
    for row, spans in enumerate(documents.spans()):
        q, k, v = (tensor[row : row + 1] for tensor in (q_BNTQ, k_BNTQ, v_BNTZ))
        if max(end - start for start, end in spans) <= LONGEST_BLOCKED:
            rows.append(blocked_attention(q, k, v, scale, _document_blocks(spans, q)))
        else:
            pieces = [_fused(q[..., a:b, :], k[..., a:b, :], v[..., a:b, :], scale) for a, b in spans]
            rows.append(torch.cat(pieces, dim=2))
    return torch.cat(rows)


def masked_attention(
    q_BNTQ: torch.Tensor,
    k_BNLQ: torch.Tensor,
    v_BNLZ: torch.Tensor,
    scale: float,
    mask: Mask,
    dropout: float,
) -> torch.Tensor | None:
    """Compute :func:`training.layers.attention.attention` in blocks, one document at a time.

    With a window, each block of queries reads only the keys to which it attends.

    Returns [B, N, T, Z], or None if not on CPU.
    """
    if q_BNTQ.device.type != "cpu":
        return None
    if mask.documents is None:
        return _masked_blocks(q_BNTQ, k_BNLQ, v_BNLZ, scale, mask, dropout)
    within_document = dataclasses.replace(mask, documents=None)
    rows = []
    for row, spans in enumerate(mask.documents.spans()):
        q, k, v = (tensor[row : row + 1] for tensor in (q_BNTQ, k_BNLQ, v_BNLZ))
        pieces = [
            _masked_blocks(q[..., a:b, :], k[..., a:b, :], v[..., a:b, :], scale, within_document, dropout)
            for a, b in spans
        ]
        rows.append(torch.cat(pieces, dim=2))
    return torch.cat(rows)


def blocked_attention(
    q_BNTQ: torch.Tensor,
    k_BNLQ: torch.Tensor,
    v_BNLZ: torch.Tensor,
    scale: float,
    blocks: Iterable[Block],
    dropout: float = 0.0,
) -> torch.Tensor:
    """Compute scaled dot-product attention [B, N, T, Z], saving each block's weights for the backward pass.

    Args:
        q_BNTQ: queries.
        k_BNLQ: keys.
        v_BNLZ: values.
        scale: scaling factor for the scores.
        blocks: consecutive blocks that together cover all queries. Iterated over only once.
        dropout: fraction of the attention weights to set to 0.
    """
    out: torch.Tensor = _BlockedAttention.apply(q_BNTQ, k_BNLQ, v_BNLZ, scale, blocks, dropout)
    return out


def _masked_blocks(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, mask: Mask, dropout: float
) -> torch.Tensor:
    """Compute attention [B, N, T, Z] in blocks, under a mask that has no document boundaries."""
    length, keys = q.shape[2], k.shape[2]
    if mask.window is None and length > LONGEST_BLOCKED:
        bias = mask.bias(torch.arange(length), torch.arange(keys), q.dtype)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, scale=scale)
    return blocked_attention(q, k, v, scale, _blocks(mask, length, keys, q.dtype), dropout)


def _fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """Run PyTorch's fused kernel, with values padded to the queries' width if they are narrower."""
    width = v.shape[-1]
    v = F.pad(v, (0, max(q.shape[-1] - width, 0)))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)[..., :width]


def _blocks(mask: Mask, length: int, keys: int, dtype: torch.dtype) -> Iterator[Block]:
    """Yield the blocks for a mask, ignoring its document boundaries."""
    biases: dict[tuple[int, ...], torch.Tensor | None] = {}
    for start in range(0, length, QUERY_BLOCK):
        end = min(start + QUERY_BLOCK, length)
        first, last = mask.key_range(start, end, keys)
        # With a window, most blocks share one bias, unless sequences differ in length.
        kind = (end - start, start - first, last - first, 0 if mask.lengths_B is None else start)
        if kind not in biases:
            biases = {kind: mask.bias(torch.arange(start, end), torch.arange(first, last), dtype)}
        yield Block(start, end, first, last, biases[kind])


def _document_blocks(spans: list[tuple[int, int]], like: torch.Tensor) -> Iterator[Block]:
    """Yield one sample's blocks. A block's keys begin at the start of the first document that overlaps the block."""
    future = torch.full((QUERY_BLOCK, QUERY_BLOCK), float("-inf"), dtype=like.dtype, device=like.device).triu(1)
    first = 0
    for start in range(0, spans[-1][1], QUERY_BLOCK):
        end = min(start + QUERY_BLOCK, spans[-1][1])
        while spans[first][1] <= start:
            first += 1
        begin = spans[first][0]
        bias = F.pad(future[: end - start, : end - start], (start - begin, 0))
        for next_begin, _ in spans[first + 1 :]:
            if next_begin >= end:
                break
            # Queries in this document or later ones do not attend to anything before this document.
            bias[next_begin - start :, : next_begin - begin] = float("-inf")
        yield Block(start, end, begin, end, bias)


class _BlockedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_BNTQ: torch.Tensor,
        k_BNLQ: torch.Tensor,
        v_BNLZ: torch.Tensor,
        scale: float,
        blocks: Iterable[Block],
        dropout: float,
    ) -> torch.Tensor:
        q, k, v = (tensor.flatten(0, 1) for tensor in (q_BNTQ, k_BNLQ, v_BNLZ))
        ctx.spans, saved, out = [], [], []
        for start, end, first, last, bias in blocks:
            scores = _scores(q[:, start:end], k[:, first:last], scale, bias, q_BNTQ.shape[:2])
            weights = scores.softmax(-1)
            kept = torch.empty_like(weights, dtype=torch.bool).bernoulli_(1 - dropout) if dropout else None
            # Do not write into slices of a preallocated result: PyTorch would then multiply the batch's matrices one by
            # one.
            out.append(_dropped(weights, kept, dropout) @ v[:, first:last])
            ctx.spans.append((start, end, first, last))
            saved += [weights] if kept is None else [weights, kept]
        ctx.scale, ctx.dropout, ctx.shape = scale, dropout, q_BNTQ.shape[:2]
        ctx.save_for_backward(q, k, v, *saved)
        return (out[0] if len(out) == 1 else torch.cat(out, dim=1)).unflatten(0, ctx.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, *saved = ctx.saved_tensors
        dout = upstream[0].flatten(0, 1)
        dq, zero = torch.empty_like(q), q.new_zeros(1, 1, 1)
        dk = dv = None
        # Start with the last block, which covers all keys under a causal mask.
        for start, end, first, last in reversed(ctx.spans):
            kept, weights = saved.pop() if ctx.dropout else None, saved.pop()
            dblock = dout[:, start:end]
            dv = _accumulated(dv, v, first, last, _dropped(weights, kept, ctx.dropout).transpose(1, 2) @ dblock)
            dweights = _dropped(dblock @ v[:, first:last].transpose(1, 2), kept, ctx.dropout)
            dscores = torch._softmax_backward_data(dweights, weights, -1, weights.dtype)
            dq[:, start:end] = torch.baddbmm(zero, dscores, k[:, first:last], beta=0, alpha=ctx.scale)
            dk = _accumulated(dk, k, first, last, dscores.transpose(1, 2) @ q[:, start:end])
        assert dk is not None and dv is not None
        grads = (dq, dk.mul_(ctx.scale).to(k.dtype), dv.to(v.dtype))
        return *(grad.unflatten(0, ctx.shape) for grad in grads), None, None, None


def _accumulated(
    total: torch.Tensor | None, like: torch.Tensor, first: int, last: int, part: torch.Tensor
) -> torch.Tensor:
    """Add one block's gradient to the full gradient, in fp32 because bf16 would round away small contributions."""
    if total is None and part.shape == like.shape:
        return part.float()
    if total is None:
        total = torch.zeros_like(like, dtype=torch.float32)
    total[:, first:last] += part
    return total


def _scores(
    q: torch.Tensor, k: torch.Tensor, scale: float, bias: torch.Tensor | None, shape: torch.Size
) -> torch.Tensor:
    if bias is not None and bias.dim() == 2:
        return torch.baddbmm(bias, q, k.transpose(1, 2), alpha=scale)
    scores = torch.baddbmm(q.new_zeros(1, 1, 1), q, k.transpose(1, 2), beta=0, alpha=scale)
    if bias is not None:
        scores.unflatten(0, shape).add_(bias)
    return scores


def _dropped(weights: torch.Tensor, kept: torch.Tensor | None, dropout: float) -> torch.Tensor:
    return weights if kept is None else (weights * kept).div_(1 - dropout)
