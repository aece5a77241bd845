"""GELU on CPU: the tanh approximation with a one-pass gradient, and both forms for decoding."""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from training.layers.cpu import decode
from training.layers.cpu.kernels import code_for, is_half

#: ``gelu(x)``, the exact form. Returns None if PyTorch's operation is just as fast (always, in training).
gelu = decode.gelu


def gelu_new(x: torch.Tensor) -> torch.Tensor | None:
    """Return ``x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))``: [...] -> [...]."""
    if x.is_cpu and x.requires_grad and torch.is_grad_enabled() and code_for(x) is not None:
        out: torch.Tensor = _GeluNew.apply(x)
        return out
    return decode.gelu(x, tanh=True)


class _GeluNew(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x)
        return _compute(x, None)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return _compute(x, upstream[0].contiguous())


def _compute(x: torch.Tensor, upstream: torch.Tensor | None) -> torch.Tensor:
    """Return GELU of ``x`` or, given ``upstream``, GELU's derivative at ``x`` times ``upstream``."""
    code, out = code_for(x), torch.empty_like(x)
    assert code is not None
    upstream_address = None if upstream is None else upstream.data_ptr()
    code.gelu(x.data_ptr(), upstream_address, out.data_ptr(), x.numel(), True, is_half(x))
    return out
