"""Routed experts on CPU, computed one at a time. An expert's gathered rows stay in a core's cache.

Unlike ``grouped_mm``, this implementation does not need sorted copies of all rows and their gradients, and it gathers
and sums in one pass. The forward and backward passes are written by hand, since autograd would save every intermediate
result of every expert.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from training.layers.cpu import decode
from training.layers.cpu.swiglu import weighted_swiglu, weighted_swiglu_backward


def routed_experts(
    x_MD: torch.Tensor,
    weights_MK: torch.Tensor,
    selected_MK: torch.Tensor,
    gate_up_E2FD: torch.Tensor,
    down_EDF: torch.Tensor,
) -> torch.Tensor | None:
    """Sum the outputs of each token's SwiGLU experts, scaled by their gate weights (fp32): [M, D] -> [M, D].

    Returns None if not on CPU. In training, slots with weight 0 are skipped. Experts without tokens are also skipped,
    and their gradient is zero.
    """
    if x_MD.device.type != "cpu":
        return None
    if (few := decode.experts(x_MD, weights_MK, selected_MK, gate_up_E2FD, down_EDF)) is not None:
        return few
    out: torch.Tensor = _Experts.apply(x_MD, weights_MK, selected_MK, gate_up_E2FD, down_EDF)
    return out


#: Each expert's number of rows is rounded up to a multiple of this. In bf16, oneDNN compiles a kernel for each exact
#: shape. Without rounding, every expert would need a new kernel at every step.
_ALIGNED = {torch.bfloat16: 32}


class _Plan(NamedTuple):
    """Rows sorted by expert. Each expert's rows are padded with rows of weight 0.

    Attributes:
        tokens: [R], the token of each row.
        weights: [R, 1], the weight of each row.
        places: [M, K], the row of each slot; R for slots of weight 0.
        used: [S], the slots (token * K + k) with nonzero weight, in row order.
        rows: [S], the rows of these slots.
        bounds: (expert, first row, one past the last row) for each expert that has rows.
    """

    tokens: torch.Tensor
    weights: torch.Tensor
    places: torch.Tensor
    used: torch.Tensor
    rows: torch.Tensor
    bounds: list[tuple[int, int, int]]


def _plan(weights_MK: torch.Tensor, selected_MK: torch.Tensor, experts: int, aligned: int) -> _Plan:
    expert_of_slot = selected_MK.where(weights_MK != 0, experts).flatten()
    sizes = expert_of_slot.bincount(minlength=experts + 1)[:experts]
    bounds, end = [], 0
    for expert, size in enumerate(sizes.tolist()):
        if size:
            start, end = end, end + -(-size // aligned) * aligned
            bounds.append((expert, start, end))
    ordered, slots = expert_of_slot.sort(stable=True)
    used = slots[: int(sizes.sum())]
    # An expert's rows are shifted by the padding of earlier experts.
    padding = (-sizes).remainder(aligned)
    rows = torch.arange(len(used)) + (padding.cumsum(0) - padding)[ordered[: len(used)]]
    tokens = torch.zeros(end, dtype=torch.int64)
    tokens[rows] = used // selected_MK.shape[1]
    weights = torch.zeros(end, dtype=weights_MK.dtype)
    weights[rows] = weights_MK.flatten()[used]
    places = torch.full((weights_MK.numel(),), end)
    places[used] = rows
    return _Plan(tokens, weights[:, None], places.view_as(selected_MK), used, rows, bounds)


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
        plan = _plan(weights_MK, selected_MK, len(down_EDF), _ALIGNED.get(x_MD.dtype, 1))
        gate_up_R2F = x_MD.new_empty(len(plan.tokens), gate_up_E2FD.shape[1])
        out_RD = x_MD.new_empty(len(plan.tokens) + 1, x_MD.shape[1])
        out_RD[-1] = 0
        for expert, start, end in plan.bounds:
            rows = x_MD.index_select(0, plan.tokens[start:end])
            gate_up = torch.mm(rows, gate_up_E2FD[expert].t(), out=gate_up_R2F[start:end])
            gate, up = gate_up.chunk(2, dim=1)
            hidden = weighted_swiglu(gate, up, plan.weights[start:end])
            torch.mm(hidden, down_EDF[expert].t(), out=out_RD[start:end])
        ctx.plan = plan
        ctx.save_for_backward(x_MD, gate_up_R2F, gate_up_E2FD, down_EDF)
        return F.embedding_bag(plan.places, out_RD, mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_MD, gate_up_R2F, gate_up_E2FD, down_EDF = ctx.saved_tensors
        plan: _Plan = ctx.plan
        dy_MD = upstream[0].contiguous()
        # Frozen weights need no gradients.
        dgate_up_E2FD = torch.zeros_like(gate_up_E2FD) if ctx.needs_input_grad[3] else None
        ddown_EDF = torch.zeros_like(down_EDF) if ctx.needs_input_grad[4] else None
        dx_RD = x_MD.new_empty(len(plan.tokens) + 1, x_MD.shape[1])
        dx_RD[-1] = 0
        dweights_R = torch.empty(len(plan.tokens), dtype=plan.weights.dtype)
        for expert, start, end in plan.bounds:
            tokens, weights = plan.tokens[start:end], plan.weights[start:end]
            dy = dy_MD.index_select(0, tokens)
            gate, up = gate_up_R2F[start:end].chunk(2, dim=1)
            dgate_up = torch.empty_like(gate_up_R2F[start:end])
            dgate, dup = dgate_up.chunk(2, dim=1)
            weighted = weighted_swiglu_backward(gate, up, weights, dy @ down_EDF[expert], dgate, dup)
            assert weighted is not None
            hidden, dweights_R[start:end] = weighted
            if ddown_EDF is not None:
                torch.mm(dy.t(), hidden, out=ddown_EDF[expert])
            if dgate_up_E2FD is not None:
                torch.mm(dgate_up.t(), x_MD.index_select(0, tokens), out=dgate_up_E2FD[expert])
            torch.mm(dgate_up, gate_up_E2FD[expert], out=dx_RD[start:end])
        dweights = torch.zeros(plan.places.numel(), dtype=plan.weights.dtype)
        dweights[plan.used] = dweights_R[plan.rows]
        dx_MD = F.embedding_bag(plan.places, dx_RD, mode="sum")
        return dx_MD, dweights.view_as(plan.places), None, dgate_up_E2FD, ddown_EDF
