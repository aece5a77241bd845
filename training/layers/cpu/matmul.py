"""Matrix products with transposed weights, ``x @ w.T``, by the fastest library that PyTorch has on this CPU."""

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

#: oneDNN's product, which ``F.linear`` uses in bf16 but not in fp32. There MKL reaches two thirds of its speed on AMD
#: processors (for these products; MKL is faster for the gradients of weights), and is faster on Intel processors.
ONEDNN_PRODUCT: Any = (
    torch.ops.mkldnn._linear_pointwise.default if hasattr(torch.ops.mkldnn, "_linear_pointwise") else None
)

if ONEDNN_PRODUCT is not None and torch.ops.mkldnn._linear_pointwise not in flop_registry:

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def _flops(x_shape: Sequence[int], weight_shape: Sequence[int], *_: Any, **__: Any) -> int:
        return 2 * math.prod(x_shape) * weight_shape[0]


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor | None:
    """``x @ weight.T + bias``, [..., in] -> [..., out], with ``weight`` [out, in]; None: ``F.linear`` is as fast."""
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
    """``x @ weight.T`` in fp32, for use inside functions that have their own gradient; None: PyTorch's is as fast."""
    if x.dtype != torch.float32 or not x.is_cpu or not onednn_in_fp32():
        return None
    return times_transposed(x, weight)


def product_width(operation: Any, inputs: Sequence[Any]) -> int | None:
    """Columns of the result of oneDNN's product with these inputs; None: ``operation`` is another operation."""
    return int(inputs[1].shape[0]) if operation is ONEDNN_PRODUCT else None


def times_transposed(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``x @ weight.T + bias`` without a gradient, for use inside functions that have their own."""
    if not _by_onednn(x, weight, bias):
        return F.linear(x, weight, bias)
    out: torch.Tensor = ONEDNN_PRODUCT(x, weight, bias, "none", [], "")
    return out


@functools.cache
def onednn_in_fp32() -> bool:
    """Whether oneDNN multiplies fp32 here. Decided by the CPU's vendor, not measured, so that all processes agree."""
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text()
    except OSError:
        cpuinfo = ""
    return ONEDNN_PRODUCT is not None and "GenuineIntel" not in cpuinfo


def _by_onednn(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether oneDNN is faster and supports these tensors; ``F.linear`` gets the others and reports wrong shapes."""
    if not onednn_in_fp32() or not torch.backends.mkldnn.enabled or torch.is_autocast_enabled("cpu"):
        return False
    fits = weight.dim() == 2 and x.shape[-1:] == weight.shape[1:] and x.numel() > 0 and weight.numel() > 0
    plain = bias is None or (bias.dtype == torch.float32 and bias.is_contiguous())
    return fits and plain and x.is_cpu and x.dtype == weight.dtype == torch.float32


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
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
