"""Normalization over the last dimension: LayerNorm and RMSNorm."""

import torch
import torch.nn.functional as F
from torch import nn

from training.layers import cpu


class LayerNorm(nn.Module):
    """``weight * (x - mean) / sqrt(variance + eps) + bias`` over the last dimension (arXiv 1607.06450).

    Takes and returns [..., size] in the dtype of ``x``, accumulating in fp32. The bias is optional.
    """

    def __init__(self, size: int, eps: float = 1e-5, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size)) if bias else None
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = cpu.norms.layer_norm(x, self.weight, self.bias, self.eps)
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps) if out is None else out


class RMSNorm(nn.Module):
    """``weight * x / sqrt(mean(x^2) + eps)`` over the last dimension (arXiv 1910.07467).

    Takes and returns [..., size] in the dtype of ``x``, accumulating in fp32.
    """

    def __init__(self, size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = cpu.norms.rms_norm(x, self.weight, self.eps)
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps) if out is None else out
