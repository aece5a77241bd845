"""CPU implementations of parts of the loss, with less memory traffic."""

import torch

from tokenizer.special_tokens import IGNORED
from training.layers.cpu.kernels import code_for, is_half

#: Number of elements to convert from bf16 to fp32 at a time.
_CONVERTED = 2**17


def rows_with_targets(hidden_MD: torch.Tensor, labels_M: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return only the rows whose label is not ``IGNORED``, so that rows without a target cost nothing.

    Returns None if not on CPU: on a GPU, counting the rows would force a host-device synchronization.
    """
    if hidden_MD.device.type != "cpu":
        return None
    kept_M = labels_M != IGNORED
    return (hidden_MD, labels_M) if bool(kept_M.all()) else (hidden_MD[kept_M], labels_M[kept_M])


def exponentials(
    logits_RV: torch.Tensor, targets_R: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
    """Compute :func:`training.layers.cross_entropy.exponentials` in one pass.

    Returns None if the C code does not support these logits.

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
    """Add a bf16 product to an fp32 total in place, in chunks. Returns the total, or None if not on CPU.

    On CPU, PyTorch itself would convert the entire product to fp32 before adding it.
    """
    if not product_VD.is_cpu:
        return None
    rows = max(1, _CONVERTED // product_VD.shape[1])
    for total, product in zip(total_VD.split(rows), product_VD.split(rows), strict=True):
        total.add_(product)
    return total_VD
