"""Losses as sums with their number of targets, so that a global batch can be averaged whatever its micro-batches."""

from collections.abc import Iterator
from typing import Any

import torch

#: Logits turned to fp32 at a time: a piece that stays in a core's cache, or one that occupies a device.
_CHUNK = {"cpu": 2**17, "cuda": 2**27}


def cross_entropy_sum(
    logits: torch.Tensor, labels: torch.Tensor, ignore_index: int = -100
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of -log softmax(logits)[label] in nats and the number of labels it is over.

    ``logits`` [..., V] in any floating dtype, ``labels`` [...] of ids in 0..V-1 or ``ignore_index``. Returns an fp32
    scalar and an int64 scalar on the device of the logits; both are 0 where every label is ignored. Softmax and sum
    are in fp32 over a bounded piece of the logits at a time, forward and backward; beside the logits only their
    gradient is as large as they are.
    """
    kept = labels.flatten() != ignore_index
    loss = _CrossEntropySum.apply(logits.flatten(0, -2), labels.flatten(), kept)
    return loss, kept.sum()


class _CrossEntropySum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_MV: torch.Tensor, labels_M: torch.Tensor, kept_M: torch.Tensor) -> torch.Tensor:
        targets_M = labels_M.where(kept_M, 0)
        largest_M = logits_MV.amax(-1).float()
        normaliser_M = torch.empty_like(largest_M)
        for rows, exponentials in _shifted_exponentials(logits_MV, largest_M):
            normaliser_M[rows] = exponentials.sum(-1).log_().add_(largest_M[rows])
        ctx.save_for_backward(logits_MV, targets_M, kept_M, normaliser_M)
        target_logits_M = logits_MV.gather(1, targets_M[:, None]).squeeze(1).float()
        return (normaliser_M - target_logits_M).where(kept_M, 0.0).sum()

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        logits_MV, targets_M, kept_M, normaliser_M = ctx.saved_tensors
        gradient_MV = torch.empty_like(logits_MV)
        scale_M1 = (upstream[0].float() * kept_M)[:, None]
        minus_one_M1 = normaliser_M.new_full((len(targets_M), 1), -1.0)
        for rows, softmax in _shifted_exponentials(logits_MV, normaliser_M):
            softmax.scatter_add_(1, targets_M[rows, None], minus_one_M1[rows])
            torch.mul(softmax, scale_M1[rows], out=softmax)
            gradient_MV[rows] = softmax
        return gradient_MV, None, None


def _shifted_exponentials(logits_MV: torch.Tensor, shift_M: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """A slice of rows and exp(logits - shift) for it in fp32, in one buffer that the next piece overwrites.

    The buffer is what makes it fast: a fresh piece from the allocator costs more in page faults than its arithmetic.
    """
    total, vocab = logits_MV.shape
    size = min(total, max(1, _CHUNK.get(logits_MV.device.type, _CHUNK["cuda"]) // vocab))
    buffer = torch.empty(size, vocab, dtype=torch.float32, device=logits_MV.device)
    for start in range(0, total, size):
        rows = slice(start, min(start + size, total))
        piece = buffer[: rows.stop - start]
        torch.sub(logits_MV[rows], shift_M[rows, None], out=piece)
        yield rows, piece.exp_()
