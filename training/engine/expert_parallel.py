"""Expert parallelism: assigns experts to ranks and replaces AutoEP's routers with the model's own.

Routing is therefore the same as on a single device.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


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
