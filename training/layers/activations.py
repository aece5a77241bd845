"""Activation functions: SwiGLU (arXiv 2002.05202) and both forms of GELU (arXiv 1606.08415)."""

import torch
import torch.nn.functional as F

from training.layers import cpu


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """Return silu(gate) * up, [..., F], for a tensor [..., 2F] that concatenates gate and up."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def silu_times(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Return silu(gate) * up for two tensors [..., F]."""
    out = cpu.swiglu.silu_times(gate, up)
    return F.silu(gate) * up if out is None else out


def gelu(x: torch.Tensor) -> torch.Tensor:
    """Return GELU(x), i.e. ``x`` times the standard normal CDF at ``x``: [...] -> [...]."""
    out = cpu.gelu.gelu(x)
    return F.gelu(x) if out is None else out


def gelu_new(x: torch.Tensor) -> torch.Tensor:
    """Return ``x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))``, GPT-2's form of GELU: [...] -> [...]."""
    out = cpu.gelu.gelu_new(x)
    return F.gelu(x, approximate="tanh") if out is None else out
