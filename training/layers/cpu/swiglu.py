"""SwiGLU on CPU, with an optional weight per row. Gradients are computed in one pass over memory."""

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from training.layers.cpu.kernels import code_for, is_half


def silu_times(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor | None:
    """Return silu(gate) * up for two tensors [..., F], for training.

    Returns None if not on CPU, if gradients are disabled, or under ``torch.compile``.
    """
    if not gate.is_cpu or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None
    out: torch.Tensor = _SiluTimes.apply(gate, up)
    return out


class _SiluTimes(torch.autograd.Function):
    """Compute silu(gate) * up, saving only its two inputs for the backward pass, not silu(gate)."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return weighted_swiglu(_rows(gate), _rows(up)).view(gate.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate_RF, up_RF, upstream_RF = map(_rows, (*ctx.saved_tensors, upstream[0]))
        dgate_RF, dup_RF = torch.empty_like(gate_RF), torch.empty_like(up_RF)
        weighted_swiglu_backward(gate_RF, up_RF, None, upstream_RF, dgate_RF, dup_RF)
        shape = upstream[0].shape
        return dgate_RF.view(shape), dup_RF.view(shape)


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1, tensor.shape[-1]).contiguous()


def weighted_swiglu(gate_RF: torch.Tensor, up_RF: torch.Tensor, weights_R1: torch.Tensor | None = None) -> torch.Tensor:
    """Return silu(gate) * up * weight, [R, F] in the gate's dtype, with no autograd tracking. The weights are fp32."""
    code = code_for(gate_RF, up_RF)
    if code is None:
        hidden = F.silu(gate_RF).mul_(up_RF)
        return hidden if weights_R1 is None else (hidden * weights_R1).to(gate_RF.dtype)
    out = torch.empty(gate_RF.shape, dtype=gate_RF.dtype)
    tensors = (gate_RF, up_RF, weights_R1, out)
    code.swiglu(*map(_address, tensors), *gate_RF.shape, _row_stride(gate_RF, up_RF), is_half(gate_RF))
    return out


def weighted_swiglu_backward(
    gate_RF: torch.Tensor,
    up_RF: torch.Tensor,
    weights_R1: torch.Tensor | None,
    upstream_RF: torch.Tensor,
    dgate_RF: torch.Tensor,
    dup_RF: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Write the gradients of gate and up into ``dgate_RF`` and ``dup_RF``.

    ``upstream_RF`` is the gradient of :func:`weighted_swiglu`'s output. If there are weights, returns the forward
    output [R, F], recomputed, and the weights' gradient [R].
    """
    rows = len(gate_RF)
    dweights_R = None if weights_R1 is None else torch.empty(rows)
    code = code_for(gate_RF, up_RF, upstream_RF)
    if code is not None:
        out_RF = None if weights_R1 is None else torch.empty(gate_RF.shape, dtype=gate_RF.dtype)
        tensors = (gate_RF, up_RF, weights_R1, upstream_RF.contiguous(), dgate_RF, dup_RF, out_RF, dweights_R)
        sizes = (*gate_RF.shape, _row_stride(gate_RF, up_RF), _row_stride(dgate_RF, dup_RF))
        code.swiglu_backward(*map(_address, tensors), *sizes, is_half(gate_RF))
        return None if out_RF is None or dweights_R is None else (out_RF, dweights_R)
    silu = F.silu(gate_RF)
    dhidden = upstream_RF if weights_R1 is None else (upstream_RF * weights_R1).to(gate_RF.dtype)
    torch.ops.aten.silu_backward.grad_input(dhidden * up_RF, gate_RF, grad_input=dgate_RF)
    torch.mul(dhidden, silu, out=dup_RF)
    if weights_R1 is None or dweights_R is None:
        return None
    hidden = silu.mul_(up_RF)
    torch.sum(hidden.float() * upstream_RF, 1, out=dweights_R)
    return (hidden * weights_R1).to(gate_RF.dtype), dweights_R


def _address(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _row_stride(first: torch.Tensor, second: torch.Tensor) -> int:
    """Return the row stride, which must be the same for both tensors."""
    assert first.stride() == second.stride() and first.stride(1) == 1
    return first.stride(0)
