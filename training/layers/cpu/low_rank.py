"""Linear layers with a low-rank adapter on CPU, in training.

PyTorch's gradients of the narrow products take up to seven times as long as their transposes, and adding the adapter's
output and gradient to the layer's own would pass over memory again. With rank 8, an adapter's products take a tenth of
the time that the weight's own gradient would.
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from training.layers.cpu.matmul import times_transposed


def linear(
    x: torch.Tensor,
    weight_OI: torch.Tensor,
    bias: torch.Tensor | None,
    a_rI: torch.Tensor,
    b_Or: torch.Tensor,
    scale: float,
) -> torch.Tensor | None:
    """Return ``x @ (weight + scale * b @ a).T + bias`` for a frozen weight: [..., in] -> [..., out].

    Returns None if not on CPU, if gradients are disabled, under ``torch.compile``, or if the weight is trained.
    """
    frozen = not (weight_OI.requires_grad or (bias is not None and bias.requires_grad))
    if not x.is_cpu or not torch.is_grad_enabled() or torch.compiler.is_compiling() or not frozen:
        return None
    out: torch.Tensor = _LowRankLinear.apply(x, weight_OI, bias, a_rI, b_Or, scale)
    return out


class _LowRankLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight_OI: torch.Tensor,
        bias: torch.Tensor | None,
        a_rI: torch.Tensor,
        b_Or: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        rows_MI = x.reshape(-1, x.shape[-1])
        low_Mr = times_transposed(rows_MI, a_rI)
        out_MO = times_transposed(rows_MI, weight_OI, bias).addmm_(low_Mr, b_Or.t(), alpha=scale)
        ctx.scale = scale
        ctx.save_for_backward(x, low_Mr, weight_OI, a_rI, b_Or)
        return out_MO.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, low_Mr, weight_OI, a_rI, b_Or = ctx.saved_tensors
        dy_MO = upstream[0].reshape(-1, upstream[0].shape[-1])
        dlow_Mr = times_transposed(dy_MO, b_Or.t().contiguous()).mul_(ctx.scale)
        da_rI = dlow_Mr.t() @ x.reshape(-1, x.shape[-1])
        db_Or = (low_Mr.t() @ dy_MO).mul_(ctx.scale).t()
        dx = None
        if ctx.needs_input_grad[0]:
            dx = times_transposed(dy_MO, weight_OI.t()).addmm_(dlow_Mr, a_rI).view_as(x)
        return dx, None, None, da_rI, db_Or, None
