"""The gradient norm and clipping for stage 0 in fp32, where DeepSpeed's are wrong.

At that stage ``get_global_grad_norm`` returns None, and clipping averages the norms of the ranks instead of adding the
squares of their experts' gradients, which gives a wrong norm as soon as ranks hold different experts.
"""

import math

import torch
from torch import nn

from training.distributed.ranks import sum_over_ranks


def global_norm(module: nn.Module) -> float:
    """L2 norm over all parameters after reduction, with every expert counted once.

    Experts (``allreduce=False``) are spread over their expert-parallel group, so their squares are summed over it.
    """
    shared, expert = 0.0, 0.0
    group_name = None
    for parameter in module.parameters():
        if parameter.grad is None:
            continue
        square = float(parameter.grad.detach().float().pow(2).sum())
        if getattr(parameter, "allreduce", True):
            shared += square
        else:
            expert, group_name = expert + square, getattr(parameter, "group_name")  # noqa: B009 - AutoEP's own attribute
    if group_name is not None:
        from deepspeed.utils import groups

        group = groups._get_expert_parallel_group(group_name)
        expert = float(sum_over_ranks(torch.tensor([expert], dtype=torch.float64), group))
    return (shared + expert) ** 0.5


@torch.no_grad()
def clip_global_norm(module: nn.Module, limit: float) -> float:
    """Scale all gradients so that their global norm is at most ``limit`` (0 disables it); returns the norm before.

    If the norm is not finite the gradients are dropped, so that the step changes nothing.
    """
    norm = global_norm(module)
    if not math.isfinite(norm):
        for parameter in module.parameters():
            parameter.grad = None
    elif limit and norm > limit:
        for parameter in module.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(limit / norm)
    return norm
