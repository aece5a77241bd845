"""The gated feed-forward layer of the dense layers and of the shared experts."""

import torch
from torch import nn

from training.layers.products import Linear
from training.layers.swiglu import silu_times


class FeedForward(nn.Module):
    """SwiGLU (arXiv 2002.05202): [..., D] -> [..., D] through width F."""

    def __init__(self, hidden_size: int, width: int, bias: bool = False) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, width, bias=bias)
        self.up_proj = Linear(hidden_size, width, bias=bias)
        self.down_proj = Linear(width, hidden_size, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(silu_times(self.gate_proj(x), self.up_proj(x)))
