"""Attention on CPU, written out in blocks of queries that each meet only the keys that any of them sees.

In blocks a step keeps and works in what grows with the scores that are seen. PyTorch's own gradient of a slice of the
keys would be as long as all of them, which makes the cost of a window quadratic again.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable


class Block(NamedTuple):
    """Queries ``start`` .. ``end``-1 with keys ``first`` .. ``last``-1.

    ``bias``: what is added to their scores, of a shape that broadcasts to [B, N, queries, keys]; None: nothing.
    """

    start: int
    end: int
    first: int
    last: int
    bias: torch.Tensor | None


def blocked_attention(
    q_BNTQ: torch.Tensor,
    k_BNLQ: torch.Tensor,
    v_BNLZ: torch.Tensor,
    scale: float,
    blocks: Iterable[Block],
    dropout: float = 0.0,
) -> torch.Tensor:
    """Scaled dot-product attention [B, N, T, Z]; the weights of each block are kept for the backward pass.

    ``blocks``: every query is in one, in order; gone through once. ``dropout``: share of the weights that is set to 0.
    """
    out: torch.Tensor = _BlockedAttention.apply(q_BNTQ, k_BNLQ, v_BNLZ, scale, blocks, dropout)
    return out


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
        ctx.spans, kept, out = [], [], []
        for start, end, first, last, bias in blocks:
            scores = _scores(q[:, start:end], k[:, first:last], scale, bias, q_BNTQ.shape[:2])
            weights = scores.softmax(-1)
            chosen = torch.empty_like(weights, dtype=torch.bool).bernoulli_(1 - dropout) if dropout else None
            # Not into a slice of the whole: PyTorch would multiply one matrix of the batch after the other.
            out.append(_dropped(weights, chosen, dropout) @ v[:, first:last])
            ctx.spans.append((start, end, first, last))
            kept += [weights] if chosen is None else [weights, chosen]
        ctx.scale, ctx.dropout, ctx.shape = scale, dropout, q_BNTQ.shape[:2]
        ctx.save_for_backward(q, k, v, *kept)
        return (out[0] if len(out) == 1 else torch.cat(out, dim=1)).unflatten(0, ctx.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, *kept = ctx.saved_tensors
        dout = upstream[0].flatten(0, 1)
        dq, nothing = torch.empty_like(q), q.new_zeros(1, 1, 1)
        dk = dv = None
        # From the last on, which under a causal mask meets all keys.
        for start, end, first, last in reversed(ctx.spans):
            chosen, weights = kept.pop() if ctx.dropout else None, kept.pop()
            upper = dout[:, start:end]
            dv = _added(dv, v, first, last, _dropped(weights, chosen, ctx.dropout).transpose(1, 2) @ upper)
            dweights = _dropped(upper @ v[:, first:last].transpose(1, 2), chosen, ctx.dropout)
            dscores = torch._softmax_backward_data(dweights, weights, -1, weights.dtype)
            dq[:, start:end] = torch.baddbmm(nothing, dscores, k[:, first:last], beta=0, alpha=ctx.scale)
            dk = _added(dk, k, first, last, dscores.transpose(1, 2) @ q[:, start:end])
        assert dk is not None and dv is not None
        grads = (dq, dk.mul_(ctx.scale).to(k.dtype), dv.to(v.dtype))
        return *(grad.unflatten(0, ctx.shape) for grad in grads), None, None, None


def _added(total: torch.Tensor | None, like: torch.Tensor, first: int, last: int, part: torch.Tensor) -> torch.Tensor:
    """The gradient of all keys so far and a block's, in fp32: in bf16 the sums would lose what each block adds."""
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


def _dropped(weights: torch.Tensor, chosen: torch.Tensor | None, dropout: float) -> torch.Tensor:
    return weights if chosen is None else (weights * chosen).div_(1 - dropout)
