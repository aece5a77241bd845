"""TODO: training/layers/cpu/matmul.py."""

import functools
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

#: oneDNN's product, which ``F.linear`` takes in bf16 but not in fp32: there MKL has two thirds of its speed on AMD's
#: processors (for these products; it is the faster one for the gradients of weights), and is the faster one on Intel's.
ONEDNN_PRODUCT: Any = (
    torch.ops.mkldnn._linear_pointwise.default if hasattr(torch.ops.mkldnn, "_linear_pointwise") else None
)


def times_transposed(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """The same without a gradient, for use within functions that have their own."""
    if not _by_onednn(x, weight, bias):
        return F.linear(x, weight, bias)
    out: torch.Tensor = ONEDNN_PRODUCT(x, weight, bias, "none", [], "")
    return out


@functools.cache
def onednn_in_fp32() -> bool:
    """Whether oneDNN multiplies fp32 here. By the processor's maker, not by measuring: all processes compute alike."""
    try:
        told = Path("/proc/cpuinfo").read_text()
    except OSError:
        told = ""
    return ONEDNN_PRODUCT is not None and "GenuineIntel" not in told


def _by_onednn(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether oneDNN is the faster one and this is for it; what does not fit is left to ``F.linear`` to refuse."""
    if not onednn_in_fp32() or not torch.backends.mkldnn.enabled or torch.is_autocast_enabled("cpu"):
        return False
    fits = weight.dim() == 2 and x.shape[-1:] == weight.shape[1:] and x.numel() > 0 and weight.numel() > 0
    plain = bias is None or (bias.dtype == torch.float32 and bias.is_contiguous())
    return fits and plain and x.is_cpu and x.dtype == weight.dtype == torch.float32


class _LinearOnCpu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return times_transposed(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dy = upstream[0]
        dx = times_transposed(dy, weight.t()) if ctx.needs_input_grad[0] else None
        dy_rows = dy.reshape(-1, dy.shape[-1])
        dweight = dy_rows.t() @ x.reshape(-1, x.shape[-1]) if ctx.needs_input_grad[1] else None
        return dx, dweight, dy_rows.sum(0) if ctx.needs_input_grad[2] else None
