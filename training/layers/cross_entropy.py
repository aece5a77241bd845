"""Cross-entropy summed over targets. The mean is taken over a global batch, not over each micro-batch."""

import importlib.util
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from tokenizer.special_tokens import IGNORED
from training.block_sizes import rows_of_logits
from training.layers import cpu


def linear_cross_entropy_sum(hidden: torch.Tensor, weight_VD: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum -log softmax(hidden @ weight.T)[label] in nats, without materializing the logits of all positions.

    The logits are computed in chunks of bounded size, with softmax and sum in fp32. The forward pass also computes the
    gradients, chunk by chunk, as in Liger (arXiv 2410.10989). On CUDA, Liger's own kernel is used if it is installed.

    Args:
        hidden: hidden states [..., D].
        weight_VD: the output head's weight matrix.
        labels: [...], ids in 0..V-1 or ``IGNORED``.

    Returns:
        A scalar in fp32; 0 if every label is ignored.
    """
    hidden_MD, labels_M = hidden.flatten(0, -2), labels.flatten()
    rows = cpu.cross_entropy.rows_with_targets(hidden_MD, labels_M)
    if rows is not None:
        hidden_MD, labels_M = rows
    elif (liger := _liger()) is not None:
        return liger(weight_VD, hidden_MD, labels_M).float()
    needs_grad = torch.is_grad_enabled() and (hidden.requires_grad or weight_VD.requires_grad)
    loss: torch.Tensor = _LinearCrossEntropySum.apply(hidden_MD, weight_VD, labels_M, needs_grad)
    return loss


def cross_entropy_sum(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Compute the summed cross-entropy from logits [..., V], as a scalar in fp32."""
    flat = logits.flatten(0, -2).float()
    return F.cross_entropy(flat, labels.flatten(), ignore_index=IGNORED, reduction="sum")


@cache
def _liger() -> Any:
    """Return Liger's fused loss, or None if Liger is not installed."""
    if importlib.util.find_spec("liger_kernel") is None:
        return None
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    return LigerFusedLinearCrossEntropyLoss(ignore_index=IGNORED, reduction="sum")


class _LinearCrossEntropySum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_MD: torch.Tensor, weight_VD: torch.Tensor, labels_M: torch.Tensor, needs_grad: bool
    ) -> torch.Tensor:
        ctx.spent = False
        rows, vocab = len(hidden_MD), len(weight_VD)
        size = rows_of_logits(hidden_MD.device.type, rows, vocab)
        total = hidden_MD.new_zeros((), dtype=torch.float32)
        buffer_RV: torch.Tensor | None = None
        dhidden_MD = torch.empty_like(hidden_MD) if needs_grad else None
        dweight_VD: torch.Tensor | None = None
        for start in range(0, rows, size):
            piece = slice(start, min(start + size, rows))
            hidden, labels = hidden_MD[piece], labels_M[piece]
            kept = labels != IGNORED
            logits = cpu.matmul.product(hidden, weight_VD)
            if logits is None:
                # All chunks share one buffer: on CPU, page faults on fresh memory cost more than the arithmetic.
                buffer_RV = hidden_MD.new_empty(size, vocab) if buffer_RV is None else buffer_RV
                logits = torch.mm(hidden, weight_VD.t(), out=buffer_RV[: len(hidden)])
            softmax, sums, losses = exponentials(logits, labels.where(kept, 0))
            total += losses.where(kept, 0.0).sum()
            if dhidden_MD is None:
                continue
            # Divide the narrow [rows, D] tensors by the sums, not the wide [rows, V] ones.
            factor = kept[:, None] / sums
            torch.mul(_product(softmax, weight_VD.t()), factor, out=dhidden_MD[piece])
            dweight_VD = _add_product(dweight_VD, softmax, (hidden * factor).to(hidden.dtype))
            del logits, softmax  # otherwise they would stay alive alongside the next chunk's logits
        if dhidden_MD is not None:
            dweight_VD = torch.zeros_like(weight_VD) if dweight_VD is None else dweight_VD.to(weight_VD.dtype)
            ctx.save_for_backward(dhidden_MD, dweight_VD)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        if ctx.spent:
            raise RuntimeError("backward was called twice on this loss: its gradients were released by the first call")
        ctx.spent = True
        dhidden_MD, dweight_VD = ctx.saved_tensors
        return dhidden_MD.mul_(upstream[0]), dweight_VD.mul_(upstream[0]), None, None


def exponentials(logits_RV: torch.Tensor, targets_R: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute exp(logits - row maximum), and subtract each row's sum at its target. Overwrites the logits.

    Returns:
        The result in the logits' dtype, the sums of the exponentials [R, 1], and the losses [R] in nats. The result
        divided by the sums is the gradient of the losses.

    Raises:
        IndexError: a target is outside the vocabulary.
    """
    out = cpu.cross_entropy.exponentials(logits_RV, targets_R)
    if out is not None:
        return out
    targets_R1 = targets_R[:, None]
    largest = logits_RV.amax(1, keepdim=True).float()
    of_target = logits_RV.gather(1, targets_R1).float()
    raised = (logits_RV - largest).exp_()
    sums = raised.sum(1, keepdim=True)
    losses = sums.log() + largest - of_target
    return logits_RV.copy_(raised.scatter_add_(1, targets_R1, -sums)), sums, losses[:, 0]


def _product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return ``x @ weight.T`` without autograd tracking."""
    out = cpu.matmul.product(x, weight)
    return F.linear(x, weight) if out is None else out


def _add_product(total_VD: torch.Tensor | None, softmax_RV: torch.Tensor, hidden_RD: torch.Tensor) -> torch.Tensor:
    """Return ``total + softmax.T @ hidden``. From the second chunk on, it is in fp32: bf16 would lose precision."""
    if total_VD is None:
        return softmax_RV.t() @ hidden_RD
    if softmax_RV.dtype == torch.float32:
        return total_VD.addmm_(softmax_RV.t(), hidden_RD)
    total_VD, product_VD = total_VD.float(), softmax_RV.t() @ hidden_RD
    total = cpu.cross_entropy.add_in_fp32(total_VD, product_VD)
    return total_VD.add_(product_VD) if total is None else total
