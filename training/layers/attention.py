"""Causal attention over whole sequences, for training and for reading a prompt."""

import torch
import torch.nn.functional as F

#: Rows of queries that the CPU path takes at a time, and the longest sequence it keeps attention weights for.
_BLOCK = 128
_LONGEST_BLOCKED = 2048


def causal_attention(q_BTNQ: torch.Tensor, k_BTNQ: torch.Tensor, v_BTNZ: torch.Tensor, scale: float) -> torch.Tensor:
    """Scaled dot-product attention in which position t sees positions 0..t; returns [B, T, N, Z].

    On CPU PyTorch's fused kernel wants values as wide as queries and, with one thread, is 1.4 (fp32) to 2.7 (bf16)
    times slower than blocks of plain matrix products at length 256; those store T * T / 2 weights a head for the
    backward pass, so long sequences take the fused kernel all the same.
    """
    q, k, v = (t.transpose(1, 2) for t in (q_BTNQ, k_BTNQ, v_BTNZ))
    if q.device.type != "cpu":
        out_BNTZ = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    elif q.shape[2] <= _LONGEST_BLOCKED:
        out_BNTZ = blocked_causal_attention(q, k, v, scale)
    else:
        width = v.shape[-1]
        padded = F.pad(v, (0, max(q.shape[-1] - width, 0)))
        out_BNTZ = F.scaled_dot_product_attention(q, k, padded, is_causal=True, scale=scale)[..., :width]
    return out_BNTZ.transpose(1, 2)


def blocked_causal_attention(
    q_BNTQ: torch.Tensor, k_BNTQ: torch.Tensor, v_BNTZ: torch.Tensor, scale: float
) -> torch.Tensor:
    """The same written out: each block of queries meets only the keys up to its own last position; [B, N, T, Z]."""
    q, k, v = (t.flatten(0, 1) for t in (q_BNTQ, k_BNTQ, v_BNTZ))
    length = q.shape[1]
    hidden_future = torch.full((_BLOCK, _BLOCK), float("-inf"), dtype=q.dtype, device=q.device).triu(1)
    outs = []
    for start in range(0, length, _BLOCK):
        end = min(start + _BLOCK, length)
        mask = F.pad(hidden_future[: end - start, : end - start], (start, 0))
        scores = torch.baddbmm(mask, q[:, start:end], k[:, :end].transpose(1, 2), alpha=scale)
        outs.append(scores.softmax(-1) @ v[:, :end])
    return torch.cat(outs, dim=1).unflatten(0, q_BNTQ.shape[:2])
