"""Activation checkpointing (arXiv 1604.06174): choosing which tensors a layer saves for the backward pass.

``none`` saves everything. ``full`` saves a layer's input and recomputes the rest. ``selective`` saves the tensors that
avoid the most recomputation per byte: the residual stream between attention and feed-forward, the narrow latents, and
the results of PyTorch's fused attention. ``selective`` recomputes expansions, norms and experts. Routing decisions are
never recomputed.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from training.layers import cpu
from training.layers.router import DECIDING_OPERATIONS

ActivationCheckpointing = Literal["none", "full", "selective"]

#: Fused attention kernels. Their outputs are as narrow as their inputs, and the most expensive tensors to recompute.
_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    cpu.attention.FUSED_OPERATION,
}


def checkpointed(layer: Callable[..., torch.Tensor], mode: ActivationCheckpointing, *inputs: Any) -> torch.Tensor:
    """Return ``layer(*inputs)``, saving for the backward pass only what ``mode`` allows."""
    if mode == "none":
        return layer(*inputs)
    policy: Any = DECIDING_OPERATIONS if mode == "full" else partial(_selective_policy, inputs[0].shape[-1])
    context = partial(create_selective_checkpoint_contexts, policy)
    out: torch.Tensor = checkpoint(layer, *inputs, use_reentrant=False, context_fn=context)
    return out


def _selective_policy(hidden_size: int, _context: Any, operation: Any, *inputs: Any, **_: Any) -> CheckpointPolicy:
    width = _product_width(operation, inputs)
    narrow = width is not None and width < hidden_size
    if narrow or operation in _ATTENTION or operation in DECIDING_OPERATIONS:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def _product_width(operation: Any, inputs: Sequence[Any]) -> int | None:
    """Return a matrix product's number of output columns, or None if ``operation`` is not a matrix product."""
    if operation is torch.ops.aten.mm.default:
        return int(inputs[1].shape[1])
    return cpu.matmul.product_width(operation, inputs)
