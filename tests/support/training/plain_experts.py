"""Routed experts as a plain loop, a reference for the CPU and grouped implementations."""

import torch
import torch.nn.functional as F

from training.layers.activations import swiglu
from training.layers.router import Routing


def looped_experts(
    x_MD: torch.Tensor, routing: Routing, gate_up_E2FD: torch.Tensor, down_EDF: torch.Tensor
) -> torch.Tensor:
    """Every expert on every token, with weight zero where it was not chosen."""
    experts = len(down_EDF)
    weights_ME = torch.zeros(len(x_MD), experts, device=x_MD.device).scatter_add(1, routing.selected, routing.weights)
    out = torch.zeros_like(x_MD)
    for expert in range(experts):
        hidden = swiglu(F.linear(x_MD, gate_up_E2FD[expert])) * weights_ME[:, expert, None]
        out = out + F.linear(hidden.to(x_MD.dtype), down_EDF[expert])
    return out
