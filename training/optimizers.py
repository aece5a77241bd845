"""Optimisers and their parameter groups."""

from typing import Any

import torch
from torch import nn

from configs.schema.train import OptimizerSection


def parameter_groups(model: nn.Module, weight_decay: float, expert_parallel: int = 1) -> list[dict[str, Any]]:
    """Weight decay on matrices only; routed experts in a group of their own, marked ``moe``.

    DeepSpeed reduces the gradients of a ``moe`` group over the ranks that hold the same experts, which it looks up by
    the group's name, and refuses (ZeRO-2) or fails (stage 0) where expert parameters stand among others.
    """
    groups: dict[str, dict[str, Any]] = {
        "matrices": {"params": [], "weight_decay": weight_decay, "name": "matrices"},
        "vectors": {"params": [], "weight_decay": 0.0, "name": "vectors"},
        "experts": {"params": [], "weight_decay": weight_decay, "name": f"ep_size_{expert_parallel}", "moe": True},
    }
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        kind = "experts" if ".experts." in name else "matrices" if parameter.ndim >= 2 else "vectors"
        groups[kind]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


def build_optimizer(
    model: nn.Module, section: OptimizerSection, learning_rate: float, expert_parallel: int = 1
) -> torch.optim.Optimizer:
    """The recipe's optimiser over ``parameter_groups``."""
    return torch.optim.AdamW(
        parameter_groups(model, section.weight_decay, expert_parallel),
        lr=learning_rate,
        betas=(section.beta1, section.beta2),
        eps=section.eps,
        fused=True,
    )
