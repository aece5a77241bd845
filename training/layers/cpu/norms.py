"""Norms over the last dimension on CPU: RMSNorm with a custom backward pass, and both norms for decoding."""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from training.layers.cpu import decode

#: ``layer_norm(x, weight, bias, eps)``. Returns None if PyTorch's operation is just as fast (always, in training).
layer_norm = decode.layer_norm


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor | None:
    """Return ``weight * x / sqrt(mean(x^2) + eps)`` in the dtype of ``x``, accumulated in fp32."""
    if x.is_cpu and torch.is_grad_enabled():
        out: torch.Tensor = _RMSNorm.apply(x, weight, eps)
        return out
    return decode.rms_norm(x, weight, eps)


class _RMSNorm(torch.autograd.Function):
    """RMSNorm with few passes over memory. The backward pass of PyTorch's RMSNorm takes three times as long on CPU."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        wide = x.float()
        square = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square()
        inverse = (square / x.shape[-1] + eps).rsqrt()
        ctx.save_for_backward(x, weight, inverse)
        return (wide * inverse).mul_(weight).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        x, weight, inverse = ctx.saved_tensors
        normal = x.float() * inverse
        gradient = upstream[0].float()
        along = gradient * normal
        to_weight = along.flatten(0, -2).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        inward = (along @ weight.float() / x.shape[-1])[..., None]
        to_x = (gradient * weight).sub_(normal.mul_(inward)).mul_(inverse)
        return to_x.to(x.dtype), to_weight, None
