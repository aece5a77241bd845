"""The routed experts on CPU, an expert at a time over gathered rows that stay in a core's cache.

Beside ``grouped_mm`` this saves the sorted copy of all rows and of their gradients, and its gather-and-sum is one pass.
Forward and backward are written out: autograd would keep every intermediate of every expert.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F


def experts_on_cpu(
    x_MD: torch.Tensor,
    weights_MK: torch.Tensor,
    selected_MK: torch.Tensor,
    gate_up_E2FD: torch.Tensor,
    down_EDF: torch.Tensor,
) -> torch.Tensor:
    """Each token's SwiGLU experts times their weights (fp32), summed: [M, D] -> [M, D].

    A slot of weight 0 costs nothing, and neither does an expert that no token chose; its gradient is zero.
    """
    out: torch.Tensor = _Experts.apply(x_MD, weights_MK, selected_MK, gate_up_E2FD, down_EDF)
    return out


class _Plan(NamedTuple):
    """Slots in order of their experts.

    Attributes:
        slots: [S] slots (token * K + k) of weight other than 0.
        tokens: [S] the token of each.
        places: [M, K] where each slot stands in that order; S for those of weight 0.
        bounds: expert, first and last place of each expert that has any.
    """

    slots: torch.Tensor
    tokens: torch.Tensor
    places: torch.Tensor
    bounds: list[tuple[int, int, int]]


def _plan(weights_MK: torch.Tensor, selected_MK: torch.Tensor, experts: int) -> _Plan:
    expert_of_slot = selected_MK.where(weights_MK != 0, experts).flatten()
    sizes = expert_of_slot.bincount(minlength=experts + 1)[:experts].tolist()
    slots = expert_of_slot.argsort(stable=True)
    used = sum(sizes)
    places = torch.empty_like(slots)
    places[slots] = torch.arange(len(slots))
    bounds, end = [], 0
    for expert, size in enumerate(sizes):
        if size:
            bounds.append((expert, end, end + size))
        end += size
    slots = slots[:used]
    return _Plan(slots, slots // selected_MK.shape[1], places.clamp_(max=used).view_as(selected_MK), bounds)


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_MD: torch.Tensor,
        weights_MK: torch.Tensor,
        selected_MK: torch.Tensor,
        gate_up_E2FD: torch.Tensor,
        down_EDF: torch.Tensor,
    ) -> torch.Tensor:
        plan = _plan(weights_MK, selected_MK, len(down_EDF))
        weights_S1 = weights_MK.flatten()[plan.slots, None]
        gate_up_S2F = x_MD.new_empty(len(plan.slots), gate_up_E2FD.shape[1])
        out_SD = x_MD.new_empty(len(plan.slots) + 1, x_MD.shape[1])
        out_SD[-1] = 0
        for expert, start, end in plan.bounds:
            rows = x_MD.index_select(0, plan.tokens[start:end])
            torch.mm(rows, gate_up_E2FD[expert].t(), out=gate_up_S2F[start:end])
            gate, up = gate_up_S2F[start:end].chunk(2, dim=1)
            hidden = F.silu(gate).mul_(up) * weights_S1[start:end]
            torch.mm(hidden.to(x_MD.dtype), down_EDF[expert].t(), out=out_SD[start:end])
        ctx.plan = plan
        ctx.save_for_backward(x_MD, weights_S1, gate_up_S2F, gate_up_E2FD, down_EDF)
        return F.embedding_bag(plan.places, out_SD, mode="sum")

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_MD, weights_S1, gate_up_S2F, gate_up_E2FD, down_EDF = ctx.saved_tensors
        plan: _Plan = ctx.plan
        dy_MD = upstream[0].contiguous()
        dgate_up_E2FD, ddown_EDF = torch.zeros_like(gate_up_E2FD), torch.zeros_like(down_EDF)
        dx_SD = torch.empty(len(plan.slots) + 1, x_MD.shape[1], dtype=x_MD.dtype)
        dx_SD[-1] = 0
        dweights_S = torch.empty(len(plan.slots), dtype=weights_S1.dtype)
        for expert, start, end in plan.bounds:
            tokens, weights = plan.tokens[start:end], weights_S1[start:end]
            gate, up = gate_up_S2F[start:end].chunk(2, dim=1)
            dy = dy_MD.index_select(0, tokens)
            dweighted = dy @ down_EDF[expert]
            silu = F.silu(gate)
            hidden = silu * up
            dweights_S[start:end] = (hidden.float() * dweighted).sum(1)
            torch.mm(dy.t(), (hidden * weights).to(dy.dtype), out=ddown_EDF[expert])
            dhidden = (dweighted * weights).to(dy.dtype)
            dgate = torch.ops.aten.silu_backward(dhidden * up, gate)
            dgate_up = torch.cat((dgate, dhidden.mul_(silu)), dim=1)
            torch.mm(dgate_up.t(), x_MD.index_select(0, tokens), out=dgate_up_E2FD[expert])
            torch.mm(dgate_up, gate_up_E2FD[expert], out=dx_SD[start:end])
        dweights = torch.zeros(plan.places.numel(), dtype=weights_S1.dtype)
        dweights[plan.slots] = dweights_S
        dx_MD = F.embedding_bag(plan.places, dx_SD, mode="sum")
        return dx_MD, dweights.view_as(plan.places), None, dgate_up_E2FD, ddown_EDF
