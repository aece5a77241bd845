"""Activation functions: SwiGLU (arXiv 2002.05202) and both forms of GELU (arXiv 1606.08415)."""

import torch
import torch.nn.functional as F

from training.layers import cpu


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up of [..., 2F], whose first half is the gate: [..., F]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def silu_times(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up of two [..., F]."""
    out = cpu.swiglu.silu_times(gate, up)
    return F.silu(gate) * up if out is None else out


def gelu(x: torch.Tensor) -> torch.Tensor:
    """x times the standard normal distribution function at x: [...]."""
    out = cpu.gelu.gelu(x)
    return F.gelu(x) if out is None else out


def gelu_new(x: torch.Tensor) -> torch.Tensor:
    """``x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))``, the form that GPT-2 was released with: [...]."""
    out = cpu.gelu.gelu_new(x)
    return F.gelu(x, approximate="tanh") if out is None else out
