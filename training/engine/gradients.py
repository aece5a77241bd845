"""The gradient norm and clipping where DeepSpeed's do not serve: stage 0 in fp32.

There ``get_global_grad_norm`` is None, and clipping averages the ranks' norms instead of adding the squares of their
experts' gradients, which is another norm as soon as the ranks hold different experts.
"""

import math

import torch
from torch import nn

from training.distributed.ranks import sum_over_ranks


def global_norm(module: nn.Module) -> float:
    """L2 norm over all parameters after reduction, each expert counted once.

    Experts (``allreduce=False``) lie on the ranks of their expert-parallel group: their squares are summed over it.
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
    """Scale all gradients so that their global norm is at most ``limit`` (0: leave them); returns the norm before.

    Where that is no finite number the gradients are dropped, so that a step does nothing.
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
