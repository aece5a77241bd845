"""Which experts a rank has, and our routing inside AutoEP's layers, which works there as it does on one device."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


def local_experts(rank: int, experts: int, expert_parallel: int) -> range:
    """The experts of a rank as AutoEP spreads them: consecutive ranks hold consecutive ranges of a layer's experts."""
    per_rank = experts // expert_parallel
    first = rank % expert_parallel * per_rank
    return range(first, first + per_rank)


class ExpertParallelGate(nn.Module):
    """Replaces AutoEP's router: keeps its gate and bias under their names, and routes with the model's router.

    AutoEP's router has no softmax over groups, noise, adaptive k or balancing losses, and computes logits in the
    model's dtype. The gate's weight remains the parameter that the optimizer, ZeRO and checkpoints know.
    """

    def __init__(self, autoep_router: Any, router: nn.Module) -> None:
        super().__init__()
        self.gate = autoep_router.gate
        # Only the class changes: ZeRO-3 gathers the weight through hooks on this module.
        self.gate.__class__ = _Fp32Linear
        self.register_buffer("e_score_correction_bias", autoep_router.e_score_correction_bias)
        self._router = (router,)  # in a tuple, as it is a child of the decoder layer and not of this module

    @property
    def router(self) -> Any:
        return self._router[0]

    def forward(self, x_MD: torch.Tensor, expert_bias: None = None) -> Any:
        """Weights [M, K], experts [M, K] and slots per expert [E] in int32, by which ranks exchange tokens.

        ``expert_bias`` is an argument of AutoEP's router, which is not used.
        """
        weights_MK, selected_MK = self.router(x_MD, self.gate(x_MD), self.e_score_correction_bias)
        return weights_MK, selected_MK, self.router.slots_per_expert(selected_MK)


class _Fp32Linear(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x.float(), self.weight.float())


def install_routers(model: nn.Module, rank: int) -> None:
    """Put our gates into AutoEP's expert layers, whose parent layers have a ``router``.

    Raises:
        RuntimeError: AutoEP gave this rank other experts than :func:`local_experts`, whose weights were never set.
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
