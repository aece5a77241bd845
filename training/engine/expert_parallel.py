"""Expert parallelism: assigns experts to ranks, and gives AutoEP's layers the model's own routers and adapters.

Routing is therefore the same as on a single device.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from training.adapter_names import EXPERT_ADAPTERS


def local_experts(rank: int, experts: int, expert_parallel: int) -> range:
    """Return the range of experts that AutoEP places on a rank. Consecutive ranks hold consecutive ranges."""
    per_rank = experts // expert_parallel
    first = rank % expert_parallel * per_rank
    return range(first, first + per_rank)


class ExpertParallelGate(nn.Module):
    """A replacement for AutoEP's router that keeps its gate and bias, and their names, but uses the model's router.

    AutoEP's router does not support group-limited softmax, noise, adaptive k or load balancing, and computes logits in
    the model's dtype. For the optimizer, ZeRO and checkpoints, the gate's weight remains the same parameter.
    """

    def __init__(self, autoep_router: Any, router: nn.Module) -> None:
        super().__init__()
        self.gate = autoep_router.gate
        # Only the module's class is replaced, because ZeRO-3 gathers the weight through hooks on the module object.
        self.gate.__class__ = _Fp32Linear
        self.register_buffer("e_score_correction_bias", autoep_router.e_score_correction_bias)
        self._router = (router,)  # in a tuple, so that it stays a child of the decoder layer only, not of this module

    @property
    def router(self) -> Any:
        return self._router[0]

    def forward(self, x_MD: torch.Tensor, expert_bias: None = None) -> Any:
        """Return each token's routing weights and experts [M, K], and each expert's number of slots, int32 [E].

        AutoEP uses these tensors to exchange tokens between ranks. It passes ``expert_bias``, which is unused here.
        """
        weights_MK, selected_MK = self.router(x_MD, self.gate(x_MD), self.e_score_correction_bias)
        return weights_MK, selected_MK, self.router.slots_per_expert(selected_MK)


class _Fp32Linear(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x.float(), self.weight.float())


def install_routers(model: nn.Module, rank: int) -> None:
    """Replace the routers of AutoEP's expert layers with gates that use the ``router`` of the parent layer.

    Raises:
        RuntimeError: AutoEP places different experts on this rank than :func:`local_experts`, so their weights were
            never initialized.
    """
    for layer in model.modules():
        mlp: Any = getattr(layer, "mlp", None)
        router = getattr(layer, "router", None)
        if getattr(mlp, "_is_autoep_layer", False) and isinstance(router, nn.Module):
            if mlp.ep_rank != rank % mlp.ep_size:
                raise RuntimeError(
                    f"AutoEP gave rank {rank} position {mlp.ep_rank} in its expert-parallel group of {mlp.ep_size}"
                )
            mlp.router = ExpertParallelGate(mlp.router, router)


def install_expert_adapters(model: nn.Module) -> None:
    """Let AutoEP's experts apply the adapters of the parent layer, if it has any."""
    for layer in model.modules():
        mlp: Any = getattr(layer, "mlp", None)
        adapters = getattr(layer, EXPERT_ADAPTERS, None)
        if getattr(mlp, "_is_autoep_layer", False) and adapters is not None:
            # An attribute of the module object, which ZeRO-3's hooks still surround.
            mlp.experts.forward = partial(_adapted_experts, mlp.experts, adapters, mlp.ep_rank * mlp.num_local_experts)


def _adapted_experts(
    experts: Any, adapters: Any, first: int, rows_SD: torch.Tensor, rows_per_expert_E: torch.Tensor
) -> torch.Tensor:
    """Compute this rank's SwiGLU experts, whose weights AutoEP splits, with their adapters: [S, D] -> [S, D].

    ``adapters`` are those of all experts, and ``first`` is this rank's first expert.
    """
    ends_E = rows_per_expert_E.cumsum(0, dtype=torch.int32)
    gate_up_E2FD = torch.cat((experts.w1, experts.w3), dim=1)
    gate_up = F.grouped_mm(rows_SD, gate_up_E2FD.transpose(1, 2), offs=ends_E)
    gate, up = (gate_up + adapters["gate_up_proj"](rows_SD, ends_E, first)).chunk(2, dim=-1)
    hidden_SF = F.silu(gate) * up
    out_SD = F.grouped_mm(hidden_SF, experts.w2.transpose(1, 2), offs=ends_E)
    return out_SD + adapters["down_proj"](hidden_SF, ends_E, first)
