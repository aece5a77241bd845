"""TODO: training/layers/cpu/norms.py."""

from typing import Any

import torch
from torch.autograd.function import once_differentiable


class _RMSNormOnCpu(torch.autograd.Function):
    """The same in few passes over memory: PyTorch has no fused kernel for CPU, its backward takes three times this."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        wide = x.float()
        square = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square()
        inverse = (square / x.shape[-1] + eps).rsqrt()
        ctx.save_for_backward(x, weight, inverse)
        return (wide * inverse).mul_(weight).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        x, weight, inverse = ctx.saved_tensors
        normal = x.float() * inverse
        gradient = upstream[0].float()
        along = gradient * normal
        to_weight = along.flatten(0, -2).sum(0)
        inward = (along @ weight.float() / x.shape[-1])[..., None]
        to_x = (gradient * weight).sub_(normal.mul_(inward)).mul_(inverse)
        return to_x.to(x.dtype), to_weight.to(weight.dtype), None
