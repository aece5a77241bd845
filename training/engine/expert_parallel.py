"""Which experts a rank has, and our routing in AutoEP's layers: every gate and loss works there as on one device."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


def local_experts(rank: int, experts: int, expert_parallel: int) -> range:
    """Those of a rank as AutoEP spreads them: ranks in a row share a layer's experts, a run of them each."""
    each = experts // expert_parallel
    first = rank % expert_parallel * each
    return range(first, first + each)


class ExpertParallelGate(nn.Module):
    """Takes the place of AutoEP's router: its gate and bias, under their names, and the decision by the model's router.

    AutoEP's own knows no softmax over groups, noise, adaptive k or balancing loss, and computes logits in the model's
    dtype. The weight stays the parameter that optimiser, ZeRO and checkpoints know.
    """

    def __init__(self, theirs: Any, router: nn.Module) -> None:
        super().__init__()
        self.gate = theirs.gate
        # The module and its hooks stay, by which ZeRO-3 gathers the weight; only what it computes changes.
        self.gate.__class__ = _Fp32Linear
        self.register_buffer("e_score_correction_bias", theirs.e_score_correction_bias)
        self._router = (router,)  # the decoder layer's child, not ours

    @property
    def router(self) -> Any:
        return self._router[0]

    def forward(self, x_MD: torch.Tensor, expert_bias: None = None) -> Any:
        """Weights [M, K], experts [M, K] and slots of each expert [E] in int32, by which ranks exchange tokens.

        ``expert_bias`` is what AutoEP passes for a bias of its own, which it has not.
        """
        weights_MK, selected_MK = self.router(x_MD, self.gate(x_MD), self.e_score_correction_bias)
        return weights_MK, selected_MK, self.router.slots_per_expert(selected_MK)


class _Fp32Linear(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x.float(), self.weight.float())


def adopt_routers(model: nn.Module, rank: int) -> None:
    """Put our gates into the expert layers that AutoEP has made, whose parent layers have a ``router``.

    Raises:
        RuntimeError: AutoEP gave this rank others than :func:`local_experts`, whose weights nobody has set.
    """
    for layer in model.modules():
        mlp: Any = getattr(layer, "mlp", None)
        router = getattr(layer, "router", None)
        if getattr(mlp, "_is_autoep_layer", False) and isinstance(router, nn.Module):
            if mlp.ep_rank != rank % mlp.ep_size:
                raise RuntimeError(f"AutoEP made rank {rank} number {mlp.ep_rank} of {mlp.ep_size} that share experts")
            mlp.router = ExpertParallelGate(mlp.router, router)
