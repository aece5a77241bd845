"""Gradient norm and clipping for ZeRO stage 0 in fp32, where DeepSpeed computes them incorrectly.

DeepSpeed's ``get_global_grad_norm`` returns None in this case. Its clipping averages the ranks' norms instead of
summing the squares of their experts' gradients, so the norm is wrong as soon as ranks hold different experts.
"""

import math

import torch
from torch import nn

from training.distributed.ranks import sum_over_ranks


def global_norm(module: nn.Module) -> float:
    """Return the L2 norm of all reduced gradients, counting every expert once.

    Experts (parameters with ``allreduce=False``) are sharded across their expert-parallel group, so their squares are
    summed over the group.
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
            expert, group_name = expert + square, getattr(parameter, "group_name")  # noqa: B009 - set by AutoEP
    if group_name is not None:
        from deepspeed.utils import groups

        group = groups._get_expert_parallel_group(group_name)
        expert = float(sum_over_ranks(torch.tensor([expert], dtype=torch.float64), group))
    return (shared + expert) ** 0.5


@torch.no_grad()
def clip_global_norm(module: nn.Module, limit: float) -> float:
    """Scale all gradients so that their global norm is at most ``limit``. Returns the norm before clipping.

    A limit of 0 disables clipping. If the norm is not finite, all gradients are dropped, so the step changes nothing.
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
