"""The output head, which returns the logits, or the loss without materializing all logits."""

import importlib.util
from functools import cache
from typing import Any

import torch

from tokenizer.special_tokens import IGNORED
from training.layers import cpu
from training.layers.cross_entropy import (
    ChunkOperations,
    chunked_cross_entropy_sum,
    chunked_token_cross_entropy,
)
from training.layers.linear import Linear


class OutputHead(Linear):
    """Maps hidden states [..., D] to logits [..., V] or, given labels [...], to the cross-entropy in nats.

    The cross-entropy is summed over the labels, or with ``per_token`` has their shape.
    """

    def __init__(self, hidden_size: int, vocab_size: int) -> None:
        super().__init__(hidden_size, vocab_size, bias=False)

    def forward(
        self, hidden: torch.Tensor, labels: torch.Tensor | None = None, per_token: bool = False
    ) -> torch.Tensor:
        if labels is None:
            return super().forward(hidden)
        if per_token:
            return linear_token_cross_entropy(hidden, self.weight, labels)
        return linear_cross_entropy_sum(hidden, self.weight, labels)


def linear_cross_entropy_sum(hidden: torch.Tensor, weight_VD: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the sum of -log softmax(hidden @ weight.T)[label] in nats, without materializing all logits.

    Softmax and sum are in fp32, over a bounded chunk of logits at a time. On CUDA, Liger's kernel is used if it is
    installed.

    Args:
        hidden: hidden states [..., D].
        weight_VD: the output head's weight matrix.
        labels: [...], ids in 0..V-1 or ``IGNORED``.

    Returns:
        A scalar in fp32; 0 if every label is ignored.
    """
    hidden_MD, labels_M = hidden.flatten(0, -2), labels.flatten()
    out = cpu.cross_entropy.linear_cross_entropy_sum(hidden_MD, weight_VD, labels_M)
    if out is not None:
        return out
    if (liger := _liger()) is not None:
        return liger(weight_VD, hidden_MD, labels_M).float()
    return chunked_cross_entropy_sum(hidden_MD, weight_VD, labels_M, ChunkOperations())


def linear_token_cross_entropy(hidden: torch.Tensor, weight_VD: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return -log softmax(hidden @ weight.T)[label] in nats for each label [...], in fp32. Ignored labels give 0.

    The arguments and the chunks are the same as for :func:`linear_cross_entropy_sum`. Liger's kernel is not used: it
    computes gradients for a sum.
    """
    hidden_MD, labels_M = hidden.flatten(0, -2), labels.flatten()
    losses_M = cpu.cross_entropy.linear_token_cross_entropy(hidden_MD, weight_VD, labels_M)
    if losses_M is None:
        losses_M = chunked_token_cross_entropy(hidden_MD, weight_VD, labels_M, ChunkOperations)
    return losses_M.view(labels.shape)


@cache
def _liger() -> Any:
    """Return Liger's fused loss, or None if Liger is not installed."""
    if importlib.util.find_spec("liger_kernel") is None:
        return None
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    return LigerFusedLinearCrossEntropyLoss(ignore_index=IGNORED, reduction="sum")
