"""Matrix products ``x @ w.T``, computed by whichever of PyTorch's libraries is fastest on this CPU."""

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import flop_registry, register_flop_formula

from training.layers.cpu import decode

#: oneDNN's matrix product, which ``F.linear`` uses in bf16 but not in fp32. For this product in fp32, MKL reaches only
#: two thirds of oneDNN's speed on AMD processors but is faster on Intel processors. MKL is faster for weight gradients.
ONEDNN_PRODUCT: Any = (
    torch.ops.mkldnn._linear_pointwise.default if hasattr(torch.ops.mkldnn, "_linear_pointwise") else None
)

if ONEDNN_PRODUCT is not None and torch.ops.mkldnn._linear_pointwise not in flop_registry:

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def _flops(x_shape: Sequence[int], weight_shape: Sequence[int], *_: Any, **__: Any) -> int:
        return 2 * math.prod(x_shape) * weight_shape[0]


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor | None:
    """Return ``x @ weight.T + bias``: [..., in] -> [..., out], with ``weight`` [out, in].

    Returns None if ``F.linear`` is just as fast.
    """
    if not x.is_cpu or torch.compiler.is_compiling():
        return None
    if (few := decode.linear(x, weight, bias)) is not None:
        return few
    if not _by_onednn(x, weight, bias):
        return None
    out: torch.Tensor = (
        _Linear.apply(x, weight, bias) if torch.is_grad_enabled() else ONEDNN_PRODUCT(x, weight, bias, "none", [], "")
    )
    return out


def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor | None:
    """Return ``x @ weight.T`` in fp32, for use in functions that define their own backward.

    Returns None if PyTorch's own product is just as fast.
    """
    if x.dtype != torch.float32 or not x.is_cpu or not onednn_in_fp32():
        return None
    return times_transposed(x, weight)


def product_width(operation: Any, inputs: Sequence[Any]) -> int | None:
    """Return a matrix product's number of output columns, or None if ``operation`` is not oneDNN's product."""
    return int(inputs[1].shape[0]) if operation is ONEDNN_PRODUCT else None


def times_transposed(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return ``x @ weight.T + bias`` without autograd tracking, for use in functions that define their own backward."""
    if not _by_onednn(x, weight, bias):
        return F.linear(x, weight, bias)
    out: torch.Tensor = ONEDNN_PRODUCT(x, weight, bias, "none", [], "")
    return out


@functools.cache
def onednn_in_fp32() -> bool:
    """Return whether to use oneDNN for fp32 products. This depends only on the CPU vendor, so all ranks agree."""
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text()
    except OSError:
        cpuinfo = ""
    return ONEDNN_PRODUCT is not None and "GenuineIntel" not in cpuinfo


def _by_onednn(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Return whether oneDNN is faster and supports these tensors. If not, ``F.linear`` runs and raises shape errors."""
    if not onednn_in_fp32() or not torch.backends.mkldnn.enabled or torch.is_autocast_enabled("cpu"):
        return False
    fits = weight.dim() == 2 and x.shape[-1:] == weight.shape[1:] and x.numel() > 0 and weight.numel() > 0
    plain = bias is None or (bias.dtype == torch.float32 and bias.is_contiguous())
    return fits and plain and x.is_cpu and x.dtype == weight.dtype == torch.float32


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        # A frozen weight has no gradient, so its input need not be kept.
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        out: torch.Tensor = ONEDNN_PRODUCT(x, weight, bias, "none", [], "")
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dy = upstream[0]
        dx = times_transposed(dy, weight.t()) if ctx.needs_input_grad[0] else None
        dy_rows = dy.reshape(-1, dy.shape[-1])
        dweight = dy_rows.t() @ x.reshape(-1, x.shape[-1]) if ctx.needs_input_grad[1] else None
        return dx, dweight, dy_rows.sum(0) if ctx.needs_input_grad[2] else None
