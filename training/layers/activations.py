"""SwiGLU (arXiv 2002.05202): silu(gate) * up, and for CPU its gradients in one pass over memory."""

import torch
import torch.nn.functional as F

from training.layers.cpu import decode
from training.layers.cpu.gelu import _GeluNewOnCpu
from training.layers.cpu.kernels import code_for
from training.layers.cpu.swiglu import _SiluTimesOnCpu


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up of [..., 2F], its first half the gate: [..., F]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def silu_times(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up of two [..., F]."""
    if gate.is_cpu and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        out: torch.Tensor = _SiluTimesOnCpu.apply(gate, up)
        return out
    return F.silu(gate) * up


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
