"""Auxiliary-loss-free load balancing (DeepSeek-V3 report, section 2.1.2), and every router's load statistics.

A gate is any module that has a ``router`` (see ``training.layers.router``) and the router's bias. Gates are the model's
own gates and, under expert parallelism, the modules that replace AutoEP's routers. Routers count tokens only in
training forward passes. AutoEP's own counter is not used because it also counts evaluation, recomputation and unused
slots.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from training.distributed.ranks import sum_over_ranks

BIAS = "e_score_correction_bias"


@dataclass(frozen=True)
class LayerLoad:
    """A router's load over one global batch.

    Attributes:
        layer: name of the router's layer.
        share: for each expert, its number of tokens divided by the mean over experts; 1.0 means perfectly balanced.
        bias: the router's bias for each expert, after the update; empty if the routing method has no biases.
    """

    layer: str
    share: list[float]
    bias: list[float]

    @property
    def max_over_mean(self) -> float:
        return max(self.share)

    @property
    def idle(self) -> int:
        """Number of experts that received no tokens."""
        return sum(s == 0 for s in self.share)

    @property
    def variation(self) -> float:
        """Coefficient of variation: standard deviation divided by mean."""
        return float((sum((s - 1.0) ** 2 for s in self.share) / len(self.share)) ** 0.5)


class Balancer:
    """Sums the tokens per expert over all ranks and updates every router's bias once per optimizer step."""

    def __init__(self, model: nn.Module, step: float) -> None:
        """Initialize the balancer for a model's gates.

        Args:
            model: the model, or the engine's module.
            step: the amount by which a bias changes per update (gamma in the report); 0 leaves the biases unchanged.
        """
        self._step = step
        # Collect gates rather than routers, because a router's bias is stored on its gate.
        self._gates: list[tuple[str, Any]] = [
            (name, module) for name, module in model.named_modules() if hasattr(module, BIAS) and _router(module)
        ]

    def update(self, counted: bool = True) -> list[LayerLoad]:
        """Sum the counts over ranks, pass the loads to the routers, and add gamma * sign(mean - count) to the biases.

        Args:
            counted: False if the step was skipped; its counts are then discarded and nothing is updated.
        """
        taken = [gate.router.pop_counts() for _, gate in self._gates]
        gates = [gate for gate, counts in zip(self._gates, taken, strict=True) if counts is not None]
        if not gates or not counted:
            return []
        total_LE = sum_over_ranks(torch.stack([counts for counts in taken if counts is not None]))
        # One transfer to the host and one back for all routers, since every transfer synchronizes with the GPU.
        counts_LE = total_LE.cpu()
        mean_L1 = counts_LE.mean(1, keepdim=True)
        shares_LE = (counts_LE / mean_L1.clamp_min(1e-9)).float()
        moves_LE = self._step * torch.sign(mean_L1 - counts_LE).float()
        pairs = torch.stack([shares_LE, moves_LE]).to(total_LE.device).unbind(1)
        biased: list[torch.Tensor] = []
        for (_, gate), (share_E, move_E) in zip(gates, pairs, strict=True):
            gate.router.load_share = share_E
            bias = getattr(gate, BIAS)
            if bias is not None:
                biased.append(bias.add_(move_E))
        names = [name.rsplit(".mlp", 1)[0] for name, _ in gates]
        # Either all of a model's routers have biases or none of them do, depending on the routing method.
        biases = torch.stack(biased).float().tolist() if biased else [[]] * len(gates)
        return [
            LayerLoad(name, share, bias) for name, share, bias in zip(names, shares_LE.tolist(), biases, strict=True)
        ]

    def state_dict(self) -> dict[str, list[float]]:
        """Return each router's load in the last global batch, by layer name. Load-balancing losses use these loads."""
        shares = {name.rsplit(".mlp", 1)[0]: gate.router.load_share for name, gate in self._gates}
        return {name: share.tolist() for name, share in shares.items() if share is not None}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        """Restore the routers' loads from ``state_dict``. The number of ranks may have changed."""
        for name, gate in self._gates:
            share = state.get(name.rsplit(".mlp", 1)[0])
            if share is not None:
                device = next(gate.parameters()).device
                gate.router.load_share = torch.tensor(share, device=device)


def _router(module: nn.Module) -> bool:
    return isinstance(getattr(module, "router", None), nn.Module)
