"""Activation checkpointing (arXiv 1604.06174): what a layer keeps of its forward pass for the backward pass.

``none`` keeps all. ``full`` keeps a layer's input and computes the rest again. ``selective`` keeps what is cheap to
keep for what it saves: the residual stream between attention and feed-forward, the narrow latents, and the results of
PyTorch's fused attention; it computes the expansions, the norms and the experts again. Neither decides a routing twice.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from training.layers.cpu.matmul import ONEDNN_PRODUCT
from training.layers.router import DECIDING_OPERATIONS

Checkpointing = Literal["none", "full", "selective"]

#: Fused attention, whose results are as narrow as its inputs and cost the most to compute.
_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
}


def checkpointed(layer: Callable[..., torch.Tensor], mode: Checkpointing, *inputs: Any) -> torch.Tensor:
    """``layer(*inputs)``, of which only what ``mode`` says is kept for the backward pass."""
    if mode == "none":
        return layer(*inputs)
    kept: Any = DECIDING_OPERATIONS if mode == "full" else partial(_cheap_to_keep, inputs[0].shape[-1])
    context = partial(create_selective_checkpoint_contexts, kept)
    out: torch.Tensor = checkpoint(layer, *inputs, use_reentrant=False, context_fn=context)
    return out


def _cheap_to_keep(hidden_size: int, _context: Any, operation: Any, *inputs: Any, **_: Any) -> CheckpointPolicy:
    if operation is torch.ops.aten.mm.default:
        narrow = inputs[1].shape[1] < hidden_size
    else:
        narrow = operation is ONEDNN_PRODUCT and inputs[1].shape[0] < hidden_size
    if narrow or operation in _ATTENTION or operation in DECIDING_OPERATIONS:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE
