"""Losses as sums with their number of targets, so that a global batch can be averaged whatever its micro-batches."""

import importlib.util
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F

from training.data.batch import IGNORED

#: Logits held at a time, and the fewest rows that they are for: with less, reading the head's matrix would dominate.
_CHUNK = {"cpu": 2**22, "cuda": 2**27}
_FEWEST_ROWS = 128


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
        rows, vocab = len(hidden_MD), len(weight_VD)
        size = max(_FEWEST_ROWS, _CHUNK.get(hidden_MD.device.type, _CHUNK["cuda"]) // vocab)
        total = hidden_MD.new_zeros((), dtype=torch.float32)
        dhidden_MD = torch.empty_like(hidden_MD) if wanted else None
        # Summed in fp32: in bf16 the later pieces' share would be rounded away.
        dweight_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if wanted else None
        for start in range(0, rows, size):
            piece = slice(start, min(start + size, rows))
            hidden, labels = hidden_MD[piece], labels_M[piece]
            logs = F.log_softmax(hidden @ weight_VD.t(), dim=-1, dtype=torch.float32)
            kept = labels != IGNORED
            targets = labels.where(kept, 0)[:, None]
            total -= logs.gather(1, targets).squeeze(1).where(kept, 0.0).sum()
            if dhidden_MD is None or dweight_VD is None:
                continue
            gradient = logs.exp_().scatter_add_(1, targets, logs.new_full((len(labels), 1), -1.0))
            if hidden_MD.device.type != "cpu":
                gradient.mul_(kept[:, None])
            narrow = gradient.to(hidden.dtype)
            torch.mm(narrow, weight_VD, out=dhidden_MD[piece])
            if weight_VD.dtype == torch.float32:
                dweight_VD.addmm_(narrow.t(), hidden)
            else:
                dweight_VD += narrow.t() @ hidden
        if dhidden_MD is not None and dweight_VD is not None:
            ctx.save_for_backward(dhidden_MD, dweight_VD.to(weight_VD.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        dhidden_MD, dweight_VD = ctx.saved_tensors
        return dhidden_MD * upstream[0], dweight_VD * upstream[0], None, None
