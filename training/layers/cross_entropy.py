"""Losses as sums with their number of targets, so that a global batch can be averaged whatever its micro-batches."""

import importlib.util
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from tokenizer.special_tokens import IGNORED
from training.layers.cpu.kernels import code_for, is_half
from training.layers.cpu.matmul import onednn_in_fp32, times_transposed

#: Logits held at a time, and the fewest rows that they are for: with less, what is done to the head's matrix and its
#: gradient for each piece would dominate.
_CHUNK = {"cpu": 2**22, "cuda": 2**27}
_FEWEST_ROWS = 512
#: Numbers that are widened at a time.
_WIDENED = 2**17


def linear_cross_entropy_sum(hidden: torch.Tensor, weight_VD: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum of -log softmax(hidden @ weight.T)[label] in nats; logits are never held for all positions.

    ``hidden`` [..., D], ``weight_VD`` [V, D], ``labels`` [...] of ids in 0..V-1 or ``IGNORED``. Returns an fp32 scalar,
    0 where every label is ignored. Softmax and sum are in fp32 over a bounded piece of the logits at a time. Where
    gradients are wanted they are worked out piece by piece in the forward pass, as in Liger (arXiv 2410.10989), whose
    own kernel takes the work on CUDA where it is installed.
    """
    hidden_MD, labels_M = hidden.flatten(0, -2), labels.flatten()
    if hidden.device.type == "cpu":
        # Rows without a target cost nothing; on a device, counting them would mean to wait for it.
        kept_M = labels_M != IGNORED
        if not bool(kept_M.all()):
            hidden_MD, labels_M = hidden_MD[kept_M], labels_M[kept_M]
    elif (liger := _liger()) is not None:
        return liger(weight_VD, hidden_MD, labels_M).float()
    wanted = torch.is_grad_enabled() and (hidden.requires_grad or weight_VD.requires_grad)
    loss: torch.Tensor = _LinearCrossEntropySum.apply(hidden_MD, weight_VD, labels_M, wanted)
    return loss


def cross_entropy_sum(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The same of logits [..., V] that are there: an fp32 scalar."""
    flat = logits.flatten(0, -2).float()
    return F.cross_entropy(flat, labels.flatten(), ignore_index=IGNORED, reduction="sum")


@cache
def _liger() -> Any:
    """Liger's fused loss, where it is installed."""
    if importlib.util.find_spec("liger_kernel") is None:
        return None
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    return LigerFusedLinearCrossEntropyLoss(ignore_index=IGNORED, reduction="sum")


class _LinearCrossEntropySum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_MD: torch.Tensor, weight_VD: torch.Tensor, labels_M: torch.Tensor, wanted: bool
    ) -> torch.Tensor:
        ctx.spent = False
        rows, vocab = len(hidden_MD), len(weight_VD)
        size = min(max(rows, 1), max(_FEWEST_ROWS, _CHUNK.get(hidden_MD.device.type, _CHUNK["cuda"]) // vocab))
        total = hidden_MD.new_zeros((), dtype=torch.float32)
        # A buffer for all pieces: on CPU fresh ones cost more in page faults than the arithmetic on them, but in fp32
        # oneDNN's product, which takes none, gains more than that.
        fresh = hidden_MD.dtype == torch.float32 and hidden_MD.is_cpu and onednn_in_fp32()
        logits_RV = hidden_MD.new_empty(0 if fresh else size, vocab)
        dhidden_MD = torch.empty_like(hidden_MD) if wanted else None
        dweight_VD: torch.Tensor | None = None
        for start in range(0, rows, size):
            piece = slice(start, min(start + size, rows))
            hidden, labels = hidden_MD[piece], labels_M[piece]
            kept = labels != IGNORED
            if fresh:
                logits = times_transposed(hidden, weight_VD)
            else:
                logits = torch.mm(hidden, weight_VD.t(), out=logits_RV[: len(hidden)])
            softmax, sums, losses = _exponentials(logits, labels.where(kept, 0))
            total += losses.where(kept, 0.0).sum()
            if dhidden_MD is None:
                continue
            # The division by the sums goes to the narrow side of both products.
            share = kept[:, None] / sums
            torch.mul(times_transposed(softmax, weight_VD.t()), share, out=dhidden_MD[piece])
            dweight_VD = _add_product(dweight_VD, softmax, (hidden * share).to(hidden.dtype))
            del logits, softmax  # or the next piece's would lie beside them
        if dhidden_MD is not None:
            dweight_VD = torch.zeros_like(weight_VD) if dweight_VD is None else dweight_VD.to(weight_VD.dtype)
            ctx.save_for_backward(dhidden_MD, dweight_VD)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        if ctx.spent:
            raise RuntimeError("this loss has been gone backward through already: its gradients were given away")
        ctx.spent = True
        dhidden_MD, dweight_VD = ctx.saved_tensors
        return dhidden_MD.mul_(upstream[0]), dweight_VD.mul_(upstream[0]), None, None


def _exponentials(logits_RV: torch.Tensor, targets_R: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Exponentials of logits over the row's largest, in their dtype, less their sum at the target; overwrites logits.

    Divided by the sums [R, 1], which come second, they are the gradient of the losses [R] in nats, which come third.

    Raises:
        IndexError: a target is beyond the vocabulary.
    """
    rows, vocab = logits_RV.shape
    if (code := code_for(logits_RV)) is not None:
        if not 0 <= int(targets_R.min()) <= int(targets_R.max()) < vocab:
            raise IndexError(f"a target is none of the {vocab} rows of the head")
        sums_R, losses_R = torch.empty(2, rows).unbind()
        tensors = (logits_RV, targets_R.contiguous(), sums_R, losses_R)
        code.softmax_loss(*(tensor.data_ptr() for tensor in tensors), rows, vocab, is_half(logits_RV))
        return logits_RV, sums_R[:, None], losses_R
    targets_R1 = targets_R[:, None]
    largest = logits_RV.amax(1, keepdim=True).float()
    of_target = logits_RV.gather(1, targets_R1).float()
    exponentials = (logits_RV - largest).exp_()
    sums = exponentials.sum(1, keepdim=True)
    losses = sums.log() + largest - of_target
    return logits_RV.copy_(exponentials.scatter_add_(1, targets_R1, -sums)), sums, losses[:, 0]


def _add_product(total_VD: torch.Tensor | None, softmax_RV: torch.Tensor, hidden_RD: torch.Tensor) -> torch.Tensor:
    """``total + softmax.T @ hidden``, of several in fp32: in bf16 the later pieces' share would be rounded away."""
    if total_VD is None:
        return softmax_RV.t() @ hidden_RD
    if softmax_RV.dtype == torch.float32:
        return total_VD.addmm_(softmax_RV.t(), hidden_RD)
    total_VD, product_VD = total_VD.float(), softmax_RV.t() @ hidden_RD
    rows = max(1, _WIDENED // hidden_RD.shape[1]) if hidden_RD.is_cpu else len(total_VD)
    # On CPU PyTorch would widen all of the product before it adds.
    for total, product in zip(total_VD.split(rows), product_VD.split(rows), strict=True):
        total.add_(product)
    return total_VD
