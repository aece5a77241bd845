"""The gated feed-forward layer of the dense layers and of the shared experts."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from training.layers.products import Linear


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up of [..., 2F], its first half the gate: [..., F]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


class FeedForward(nn.Module):
    """SwiGLU (arXiv 2002.05202): [..., D] -> [..., D] through width F."""

    def __init__(self, hidden_size: int, width: int, bias: bool = False) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, width, bias=bias)
        self.up_proj = Linear(hidden_size, width, bias=bias)
        self.down_proj = Linear(width, hidden_size, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(_silu_times(self.gate_proj(x), self.up_proj(x)))


def _silu_times(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    if gate.device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        out: torch.Tensor = _SiluTimesOnCpu.apply(gate, up)
        return out
    return F.silu(gate) * up


class _SiluTimesOnCpu(torch.autograd.Function):
    """Keeps its two inputs and not silu(gate) beside them, and works in place."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(upstream[0] * up, gate), F.silu(gate).mul_(upstream[0])
