"""Loss over a list of batches, and expert load."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from artefacts.progress import bar
from training.data.batch import Batch
from training.objective import Objective


@dataclass(frozen=True)
class Measured:
    """A model's loss and expert load on some data.

    Attributes:
        nats: summed loss.
        targets: number of predicted tokens.
        loads: layer -> tokens per expert, divided by their mean.
    """

    nats: float
    targets: int
    loads: dict[str, list[float]]

    @property
    def loss(self) -> float:
        """Nats per target token."""
        return self.nats / self.targets

    def bits_per_byte(self, text_bytes: int) -> float:
        return self.nats / math.log(2) / text_bytes


@torch.no_grad()
def measure(model: Any, objective: Objective, batches: Iterable[Batch], device: torch.device, name: str) -> Measured:
    """Evaluate a single-device model on batches, with a progress bar labeled ``name``."""
    model.eval()
    batches = list(batches)
    nats, targets = 0.0, 0
    routers = getattr(model, "routers", {})
    with bar(len(batches), "batch", name) as progress:
        for batch in batches:
            for router in routers.values():
                router.recording = True
            total, number = objective.cross_entropy(model, batch.to(device))
            nats, targets = nats + float(total), targets + int(number)
            for router in routers.values():
                router.recording = False
                router.pop_record()
            progress.update()
    counts = {layer: router.pop_counts() for layer, router in routers.items()}
    loads = {layer: (count / count.mean()).tolist() for layer, count in counts.items() if count is not None}
    return Measured(nats, targets, loads)
