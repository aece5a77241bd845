"""Steps of the loss over the vocabulary that a CPU does with less memory traffic."""

import torch

from tokenizer.special_tokens import IGNORED
from training.layers.cpu.kernels import code_for, is_half

#: Numbers that are converted from bf16 to fp32 at a time.
_CONVERTED = 2**17


def rows_with_targets(hidden_MD: torch.Tensor, labels_M: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The rows whose label is not ``IGNORED``: without a target a row costs nothing; None: not on CPU.

    On a GPU the host would have to wait for the number of these rows.
    """
    if hidden_MD.device.type != "cpu":
        return None
    kept_M = labels_M != IGNORED
    return (hidden_MD, labels_M) if bool(kept_M.all()) else (hidden_MD[kept_M], labels_M[kept_M])


def exponentials(
    logits_RV: torch.Tensor, targets_R: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
    """:func:`training.layers.cross_entropy.exponentials` in one pass; None: the C code is not for these logits.

    Raises:
        IndexError: a target is outside the vocabulary.
    """
    if (code := code_for(logits_RV)) is None:
        return None
    rows, vocab = logits_RV.shape
    if not 0 <= int(targets_R.min()) <= int(targets_R.max()) < vocab:
        raise IndexError(f"a target is outside the vocabulary: the head has {vocab} rows")
    sums_R, losses_R = torch.empty(2, rows).unbind()
    tensors = (logits_RV, targets_R.contiguous(), sums_R, losses_R)
    code.softmax_loss(*(tensor.data_ptr() for tensor in tensors), rows, vocab, is_half(logits_RV))
    return logits_RV, sums_R[:, None], losses_R


def add_in_fp32(total_VD: torch.Tensor, product_VD: torch.Tensor) -> torch.Tensor | None:
    """``total += product`` of an fp32 total and a bf16 product, in pieces; returns the total. None: not on CPU.

    PyTorch on CPU would convert the complete product to fp32 before it adds.
    """
    if not product_VD.is_cpu:
        return None
    rows = max(1, _CONVERTED // product_VD.shape[1])
    for total, product in zip(total_VD.split(rows), product_VD.split(rows), strict=True):
        total.add_(product)
    return total_VD
