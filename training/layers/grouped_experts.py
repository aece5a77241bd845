"""The routed experts as grouped GEMMs over tokens sorted by expert, without host-device synchronization."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from training.layers.activations import swiglu
from training.layers.router import Routing, tokens_per_expert


def weighted_swiglu(gate_up: torch.Tensor, weights_S: torch.Tensor) -> torch.Tensor:
    """Return silu(gate) * up * weight, [S, 2F] -> [S, F] in the dtype of ``gate_up``. The weights are fp32."""
    return (swiglu(gate_up) * weights_S[:, None]).to(gate_up.dtype)


def grouped_experts(
    x_MD: torch.Tensor,
    routing: Routing,
    gate_up_E2FD: torch.Tensor,
    down_EDF: torch.Tensor,
    activation: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = weighted_swiglu,
    adapters: Any = None,
) -> torch.Tensor:
    """Sum the outputs of each token's SwiGLU experts, scaled by their gate weights (fp32): [M, D] -> [M, D].

    ``activation`` is :func:`weighted_swiglu` or its compiled version. ``adapters`` holds the two weights' adapters by
    name (:class:`training.layers.adapters.modules.StackedAdapter`), or is None. Grouped GEMM requires that a row's size
    is a multiple of 16 bytes. The recipe's validation ensures this.
    """
    slots_S = routing.selected.flatten().argsort(stable=True)  # slot s of the sorted rows is (token, k) = divmod(s, K)
    tokens_S = slots_S // routing.selected.shape[1]
    places_MK = slots_S.argsort().view_as(routing.selected)
    ends_E = tokens_per_expert(routing.selected, len(down_EDF)).cumsum(0, dtype=torch.int32)
    rows_SD: torch.Tensor = _ToExperts.apply(x_MD, tokens_S, places_MK)
    gate_up = F.grouped_mm(rows_SD, gate_up_E2FD.transpose(1, 2), offs=ends_E)
    if adapters is not None:
        gate_up = gate_up + adapters["gate_up_proj"](rows_SD, ends_E)
    # Apply the gate weight where rows are narrowest: before the last product.
    weights_S = routing.weights.flatten().gather(0, slots_S)
    weighted = activation(gate_up, weights_S)
    out_SD = F.grouped_mm(weighted, down_EDF.transpose(1, 2), offs=ends_E)
    if adapters is not None:
        out_SD = out_SD + adapters["down_proj"](weighted, ends_E)
    out_MD: torch.Tensor = _ToTokens.apply(out_SD, tokens_S, places_MK)
    return out_MD


class _ToExperts(torch.autograd.Function):
    """Gather token rows in expert order: [M, D] -> [S, D].

    This class and ``_ToTokens`` are each other's backward pass. Both only gather. Autograd would instead scatter-add
    rows in place, which takes longer than the matrix products here and is nondeterministic on GPUs.
    """

    @staticmethod
    def forward(ctx: Any, x_MD: torch.Tensor, tokens_S: torch.Tensor, places_MK: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(places_MK)
        return x_MD.index_select(0, tokens_S)

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (places_MK,) = ctx.saved_tensors
        return F.embedding_bag(places_MK, upstream[0].contiguous(), mode="sum"), None, None


class _ToTokens(torch.autograd.Function):
    """Sum the expert rows of each token: [S, D] -> [M, D]."""

    @staticmethod
    def forward(ctx: Any, rows_SD: torch.Tensor, tokens_S: torch.Tensor, places_MK: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(tokens_S)
        return F.embedding_bag(places_MK, rows_SD.contiguous(), mode="sum")

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (tokens_S,) = ctx.saved_tensors
        return upstream[0].index_select(0, tokens_S), None, None
