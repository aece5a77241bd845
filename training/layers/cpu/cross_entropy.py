"""The output head's loss on CPU, with less memory traffic."""

import torch

from tokenizer.special_tokens import IGNORED
from training.layers.cpu import matmul
from training.layers.cpu.kernels import code_for, is_half
from training.layers.cross_entropy import (
    ChunkOperations,
    chunked_cross_entropy_sum,
    chunked_token_cross_entropy,
)

#: Number of elements to convert from bf16 to fp32 at a time.
_CONVERTED = 2**17


def linear_cross_entropy_sum(
    hidden_MD: torch.Tensor, weight_VD: torch.Tensor, labels_M: torch.Tensor
) -> torch.Tensor | None:
    """Compute :func:`training.layers.lm_head.linear_cross_entropy_sum`. Returns None if not on CPU.

    Rows whose label is ``IGNORED`` are dropped first, so they cost nothing. (On a GPU, this would make the host wait
    for the number of remaining rows.)
    """
    if not hidden_MD.is_cpu:
        return None
    kept_M = labels_M != IGNORED
    if not bool(kept_M.all()):
        hidden_MD, labels_M = hidden_MD[kept_M], labels_M[kept_M]
    return chunked_cross_entropy_sum(hidden_MD, weight_VD, labels_M, _Operations())


def linear_token_cross_entropy(
    hidden_MD: torch.Tensor, weight_VD: torch.Tensor, labels_M: torch.Tensor
) -> torch.Tensor | None:
    """Compute the losses [M] like :func:`linear_cross_entropy_sum`. Returns None if not on CPU."""
    if not hidden_MD.is_cpu:
        return None
    kept_M = labels_M != IGNORED
    losses_K = chunked_token_cross_entropy(hidden_MD[kept_M], weight_VD, labels_M[kept_M], _Operations)
    return losses_K.new_zeros(len(labels_M)).masked_scatter(kept_M, losses_K)


class _Operations(ChunkOperations):
    """PyTorch's operations, except where oneDNN, the C code or splitting the operation is faster."""

    def logits(self, hidden_RD: torch.Tensor, weight_VD: torch.Tensor) -> torch.Tensor:
        out = matmul.product(hidden_RD, weight_VD)
        return super().logits(hidden_RD, weight_VD) if out is None else out

    def exponentials(
        self, logits_RV: torch.Tensor, targets_R: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compute everything in one pass, if the C code supports these logits."""
        if (code := code_for(logits_RV)) is None:
            return super().exponentials(logits_RV, targets_R)
        rows, vocab = logits_RV.shape
        if not 0 <= int(targets_R.min()) <= int(targets_R.max()) < vocab:
            raise IndexError(f"a target is outside the vocabulary: the head has {vocab} rows")
        sums_R, losses_R = torch.empty(2, rows).unbind()
        tensors = (logits_RV, targets_R.contiguous(), sums_R, losses_R)
        code.softmax_loss(*(tensor.data_ptr() for tensor in tensors), rows, vocab, is_half(logits_RV))
        return logits_RV, sums_R[:, None], losses_R

    def product(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        out = matmul.product(x, weight)
        return super().product(x, weight) if out is None else out

    def add_in_fp32(self, total_VD: torch.Tensor, product_VD: torch.Tensor) -> torch.Tensor:
        """Add a few rows at a time, because PyTorch converts an entire tensor to fp32 before adding it."""
        rows = max(1, _CONVERTED // product_VD.shape[1])
        for total, product in zip(total_VD.split(rows), product_VD.split(rows), strict=True):
            total.add_(product)
        return total_VD
