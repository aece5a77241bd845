"""Linear layers with a fast path on CPU."""

import torch
import torch.nn.functional as F
from torch import nn

from training.layers import cpu


class Linear(nn.Linear):
    """``nn.Linear`` whose forward pass is :func:`linear`: [..., in] -> [..., out]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight, self.bias)

    def effective_weight(self) -> torch.Tensor:
        """Return the matrix [out, in] that the layer applies, including an adapter's part."""
        return self.weight


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return ``x @ weight.T + bias``: [..., in] -> [..., out], with ``weight`` [out, in]."""
    out = cpu.matmul.linear(x, weight, bias)
    return F.linear(x, weight, bias) if out is None else out
