"""GELU (arXiv 1606.08415) and its approximation by tanh, quick on CPU.

With few rows PyTorch spends more on getting ready than on the arithmetic, and the approximation takes it twice as long
as the C code at any size.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from training.layers.cpu import decode
from training.layers.cpu.kernels import code_for, is_half


def gelu(x: torch.Tensor) -> torch.Tensor:
    """x times the standard normal distribution up to x: [...]."""
    few = decode.gelu(x)
    return F.gelu(x) if few is None else few


def gelu_new(x: torch.Tensor) -> torch.Tensor:
    """``x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))``, with which GPT-2 was released: [...]."""
    if x.is_cpu and x.requires_grad and torch.is_grad_enabled() and code_for(x) is not None:
        out: torch.Tensor = _GeluNewOnCpu.apply(x)
        return out
    few = decode.gelu(x, tanh=True)
    return F.gelu(x, approximate="tanh") if few is None else few


class _GeluNewOnCpu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x)
        return _worked_out(x, None)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return _worked_out(x, upstream[0].contiguous())


def _worked_out(x: torch.Tensor, upstream: torch.Tensor | None) -> torch.Tensor:
    """The approximation of ``x``, or from the gradient above that of ``x``."""
    code, out = code_for(x), torch.empty_like(x)
    assert code is not None
    above = None if upstream is None else upstream.data_ptr()
    code.gelu(x.data_ptr(), above, out.data_ptr(), x.numel(), True, is_half(x))
    return out
