"""Feed-forward layers: SwiGLU, as in DeepSeek's dense layers and shared experts, and a plain two-matrix MLP."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from configs.schema.models.transformer import TransformerSection
from training.layers.activations import gelu, gelu_new, silu_times
from training.layers.linear import Linear

#: Activations by recipe name. ``swiglu`` is not included: it takes two inputs and has its own class, ``FeedForward``.
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": F.relu,
    "gelu": gelu,
    "gelu_new": gelu_new,
}


class FeedForward(nn.Module):
    """SwiGLU (arXiv 2002.05202) of width F: [..., D] -> [..., D]."""

    def __init__(self, hidden_size: int, width: int, bias: bool = False) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, width, bias=bias)
        self.up_proj = Linear(hidden_size, width, bias=bias)
        self.down_proj = Linear(width, hidden_size, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(silu_times(self.gate_proj(x), self.up_proj(x)))


class Mlp(nn.Module):
    """Two linear layers of width F with an activation between them: [..., D] -> [..., D]."""

    def __init__(
        self, hidden_size: int, width: int, activation: Literal["relu", "gelu", "gelu_new"], bias: bool
    ) -> None:
        super().__init__()
        self.up_proj = Linear(hidden_size, width, bias=bias)
        self.down_proj = Linear(width, hidden_size, bias=bias)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.activation(self.up_proj(x)))


def feed_forward(config: TransformerSection) -> nn.Module:
    """Build the feed-forward layer of a dense transformer."""
    if config.activation == "swiglu":
        return FeedForward(config.hidden_size, config.width, config.bias)
    return Mlp(config.hidden_size, config.width, config.activation, config.bias)
