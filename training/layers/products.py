"""Matrix products with transposed weights, ``x @ w.T``, by the fastest library that PyTorch has for them."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import register_flop_formula

from training.layers import few_rows

#: oneDNN's product, which ``F.linear`` takes in bf16 but not in fp32: there MKL has two thirds of its speed on AMD's
#: processors (for these products; it is the faster one for the gradients of weights).
ONEDNN_PRODUCT: Any = (
    torch.ops.mkldnn._linear_pointwise.default if hasattr(torch.ops.mkldnn, "_linear_pointwise") else None
)


if ONEDNN_PRODUCT is not None:
    # PyTorch's counter of FLOPs does not know it.
    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def _flops(x_shape: Sequence[int], weight_shape: Sequence[int], *_: Any, **__: Any) -> int:
        return 2 * math.prod(x_shape) * weight_shape[0]


class Linear(nn.Linear):
    """``nn.Linear``, quick on CPU: with few rows and no gradients, and in fp32."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out]."""
        return linear(x, self.weight, self.bias)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``x @ weight.T + bias``: [..., in] -> [..., out]; ``weight`` [out, in]."""
    if not x.is_cpu or torch.compiler.is_compiling():
        return F.linear(x, weight, bias)
    if (few := few_rows.linear(x, weight, bias)) is not None:
        return few
    if torch.is_grad_enabled() and _by_onednn(x, weight):
        out: torch.Tensor = _LinearOnCpu.apply(x, weight, bias)
        return out
    return times_transposed(x, weight, bias)


def times_transposed(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """The same without a gradient, for use within functions that have their own."""
    if _by_onednn(x, weight):
        out: torch.Tensor = ONEDNN_PRODUCT(x, weight, bias, "none", [], "")
        return out
    return F.linear(x, weight, bias)


def _by_onednn(x: torch.Tensor, weight: torch.Tensor) -> bool:
    return ONEDNN_PRODUCT is not None and x.is_cpu and x.dtype == weight.dtype == torch.float32 and x.numel() > 0


class _LinearOnCpu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return times_transposed(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dy = upstream[0]
        dx = times_transposed(dy, weight.t()) if ctx.needs_input_grad[0] else None
        dy_MO = dy.flatten(0, -2)
        dweight = dy_MO.t() @ x.flatten(0, -2) if ctx.needs_input_grad[1] else None
        return dx, dweight, dy_MO.sum(0) if ctx.needs_input_grad[2] else None
