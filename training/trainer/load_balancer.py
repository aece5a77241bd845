"""Auxiliary-loss-free load balancing (DeepSeek-V3 report, section 2.1.2) and the load statistics of every router.

A gate is any module with a ``router`` (see ``training.layers.router``): the model's own and the expert-parallel one
alike. Routers count in the forward pass of training only; AutoEP's own counter also counts evaluation, recomputation
and unused slots.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from training.distributed.ranks import sum_over_ranks

BIAS = "e_score_correction_bias"


@dataclass(frozen=True)
class LayerLoad:
    """Load of one router over one global batch.

    Attributes:
        layer: name of the router's layer.
        share: tokens of each expert over the mean; 1.0 is even.
        bias: the router's bias, after the update; empty where its method has none.
    """

    layer: str
    share: list[float]
    bias: list[float]

    @property
    def max_over_mean(self) -> float:
        return max(self.share)

    @property
    def idle(self) -> int:
        """Experts without a token."""
        return sum(s == 0 for s in self.share)

    @property
    def variation(self) -> float:
        """Coefficient of variation: standard deviation over mean."""
        return float((sum((s - 1.0) ** 2 for s in self.share) / len(self.share)) ** 0.5)


class Balancer:
    """Gathers tokens an expert and moves each router's bias once an optimiser step."""

    def __init__(self, model: nn.Module, step: float) -> None:
        """``step``: how far a bias moves (gamma); 0: not at all."""
        self._step = step
        # A router is found at its gate: only there is its bias.
        self._gates: list[tuple[str, Any]] = [
            (name, module) for name, module in model.named_modules() if hasattr(module, BIAS) and _router(module)
        ]

    def update(self, counted: bool = True) -> list[LayerLoad]:
        """Sum the counts over all ranks, tell the routers, and move the biases by gamma * sign(mean - count).

        ``counted``: False throws away what was counted, which was of a step that is skipped.
        """
        taken = [gate.router.pop_counts() for _, gate in self._gates]
        gates = [gate for gate, counts in zip(self._gates, taken, strict=True) if counts is not None]
        if not gates or not counted:
            return []
        total_LE = sum_over_ranks(torch.stack([counts for counts in taken if counts is not None]))
        # One transfer there and one back: on a GPU each would be waited for, and there are many routers.
        counts_LE = total_LE.cpu()
        mean_L1 = counts_LE.mean(1, keepdim=True)
        shares_LE = (counts_LE / mean_L1.clamp_min(1e-9)).float()
        moves_LE = self._step * torch.sign(mean_L1 - counts_LE).float()
        here = torch.stack([shares_LE, moves_LE]).to(total_LE.device).unbind(1)
        biased: list[torch.Tensor] = []
        for (_, gate), (share_E, move_E) in zip(gates, here, strict=True):
            gate.router.load_share = share_E
            bias = getattr(gate, BIAS)
            if bias is not None:
                biased.append(bias.add_(move_E))
        names = [name.rsplit(".mlp", 1)[0] for name, _ in gates]
        # All routers of a model have biases or none has: it is a matter of the routing method.
        biases = torch.stack(biased).float().tolist() if biased else [[]] * len(gates)
        return [
            LayerLoad(name, share, bias) for name, share, bias in zip(names, shares_LE.tolist(), biases, strict=True)
        ]

    def state(self) -> dict[str, list[float]]:
        """Each router's load in the last global batch, by the name of its layer: what load-balance losses go by."""
        shares = {name.rsplit(".mlp", 1)[0]: gate.router.load_share for name, gate in self._gates}
        return {name: share.tolist() for name, share in shares.items() if share is not None}

    def restore(self, state: dict[str, list[float]]) -> None:
        """Set the routers' loads from ``state``, on any number of ranks."""
        for name, gate in self._gates:
            share = state.get(name.rsplit(".mlp", 1)[0])
            if share is not None:
                device = next(gate.parameters()).device
                gate.router.load_share = torch.tensor(share, device=device)


def _router(module: nn.Module) -> bool:
    return isinstance(getattr(module, "router", None), nn.Module)
