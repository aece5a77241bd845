"""Auxiliary-loss-free load balancing (DeepSeek-V3 report, section 2.1.2) and the load statistics of every router.

A router is any module with an ``e_score_correction_bias`` buffer whose output is (weights [T, K], selected [T, K],
counts [E]): the model's own gate and AutoEP's router alike. AutoEP's own counter also counts evaluation and
recomputation, so counts are taken here, in the forward pass of training only.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from training.engine.distributed import sum_over_ranks

BIAS = "e_score_correction_bias"


@dataclass(frozen=True)
class LayerLoad:
    """Load of one router over one global batch.

    Attributes:
        layer: name of the router's layer.
        share: tokens of each expert over the mean; 1.0 is even.
        bias: the router's bias, after the update.
    """

    layer: str
    share: list[float]
    bias: list[float]

    @property
    def max_over_mean(self) -> float:
        return max(self.share)

    @property
    def variation(self) -> float:
        """Coefficient of variation: standard deviation over mean."""
        return float((sum((s - 1.0) ** 2 for s in self.share) / len(self.share)) ** 0.5)


class Balancer:
    """Counts tokens an expert in training forwards and moves each router's bias once an optimiser step."""

    def __init__(self, model: nn.Module, step: float) -> None:
        self._step = step
        self._counting = False
        self._routers = [
            (name, module) for name, module in model.named_modules() if getattr(module, BIAS, None) is not None
        ]
        self._counts = [torch.zeros_like(self._bias(i), dtype=torch.float64) for i in range(len(self._routers))]
        for index, (_, router) in enumerate(self._routers):
            router.register_forward_hook(self._hook(index))

    def counting(self, on: bool) -> None:
        """Count from here on, or stop: on in the forward pass of training, off in backward (recomputation) and else."""
        self._counting = on

    def update(self) -> list[LayerLoad]:
        """Sum the counts over all ranks, move the biases by gamma * sign(mean - count), and start counting anew."""
        if not self._routers:
            return []
        sum_over_ranks(total := torch.cat(self._counts))
        loads = []
        for index, (name, _) in enumerate(self._routers):
            size = self._counts[index].numel()
            counts, total = total[:size], total[size:]
            bias = self._bias(index)
            bias += self._step * torch.sign(counts.mean() - counts).to(bias.dtype)
            share = counts / counts.mean().clamp_min(1e-9)
            loads.append(LayerLoad(name.rsplit(".mlp", 1)[0], share.tolist(), bias.tolist()))
            self._counts[index].zero_()
        return loads

    def _bias(self, index: int) -> torch.Tensor:
        return getattr(self._routers[index][1], BIAS).detach()

    def _hook(self, index: int) -> Any:
        def count(_module: nn.Module, _inputs: Any, output: tuple[torch.Tensor, ...]) -> None:
            if self._counting:
                self._counts[index] += output[2].detach()

        return count
