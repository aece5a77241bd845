"""Builds optimizers and their parameter groups."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from configs.schema.train import OptimizerSection
from training.engine.partitions import ParamSlice, Partition, partitions
from training.optim.muon import Muon
from training.optim.trained_part import scale_of

#: Weights with one row per token, position or class; Muon is not meant for them.
_TABLES = ("embed_tokens.weight", "positions.weight", "lm_head.weight", "score.weight")


def orthogonal(name: str, shape: tuple[int, ...]) -> bool:
    """Return whether Muon should update a parameter: a hidden layer's matrix, or a stack of such matrices."""
    return len(shape) >= 2 and not name.endswith(_TABLES)


def bind_partitions(optimizer: torch.optim.Optimizer, engine: Any) -> None:
    """Pass DeepSpeed's parameter partitions to Muon. Collective. Does nothing for other optimizers."""
    if isinstance(optimizer, Muon):
        optimizer.bind(partitions(engine).trained, orthogonal, engine.device)


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    expert_parallel: int = 1,
    muon: bool = False,
    rate_scales: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Return the trainable parameters in groups. Vectors get no weight decay. Groups of experts are marked ``moe``.

    If ``muon`` is set, tables (see ``_TABLES``) and the matrices that Muon updates are in separate groups. Parameters
    whose names match a pattern in ``rate_scales`` get separate groups too. The trainer multiplies the learning rate by
    a group's ``rate_scale``, which is 1 for all other parameters.

    DeepSpeed reduces the gradients of a ``moe`` group over the ranks that hold the same experts. It looks up these
    ranks by the group's name. A group must not mix expert parameters with others: DeepSpeed rejects it at ZeRO stage 2
    and fails on it at stage 0.
    """
    decayed = {"weight_decay": weight_decay}
    kinds: dict[str, dict[str, Any]] = {
        "matrices": {**decayed, "name": "matrices", "orthogonal": muon},
        "tables": {**decayed, "name": "tables"},
        "vectors": {"weight_decay": 0.0, "name": "vectors"},
        "experts": {**decayed, "name": f"ep_size_{expert_parallel}", "moe": True, "orthogonal": muon},
    }
    scales = rate_scales or {}
    groups: dict[tuple[str, float], dict[str, Any]] = {
        (kind, scale): {"params": [], **keys, "rate_scale": scale}
        for scale in (1.0, *sorted(set(scales.values()) - {1.0}))
        for kind, keys in kinds.items()
    }
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if ".experts." in name:
            kind = "experts"
        elif parameter.ndim < 2:
            kind = "vectors"
        else:
            kind = "tables" if muon and not orthogonal(name, tuple(parameter.shape)) else "matrices"
        groups[kind, scale_of(name, scales)]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


def build_optimizer(
    model: nn.Module,
    section: OptimizerSection,
    learning_rate: float,
    expert_parallel: int = 1,
    rate_scales: Mapping[str, float] | None = None,
) -> torch.optim.Optimizer:
    """Build the recipe's optimizer over ``parameter_groups``."""
    groups = parameter_groups(model, section.weight_decay, expert_parallel, section.name == "muon", rate_scales)
    betas = (section.beta1, section.beta2)
    if section.name == "muon":
        muon = Muon(groups, learning_rate, section.momentum, betas, section.eps, section.weight_decay)
        named = model.named_parameters()
        unpartitioned = [Partition(p, [ParamSlice(name, tuple(p.shape), 0, p.numel(), 0)]) for name, p in named]
        muon.bind(unpartitioned, orthogonal)
        return muon
    if section.name == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate, momentum=section.momentum, fused=True)
    kind = torch.optim.AdamW if section.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=learning_rate, betas=betas, eps=section.eps, fused=True)
