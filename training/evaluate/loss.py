"""Loss over a list of batches, and how evenly the experts were used on the way."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from artefacts.progress import bar
from training import losses
from training.data.batch import Batch
from training.engine.balance import BIAS


@dataclass(frozen=True)
class Measured:
    """A model's loss on some data.

    Attributes:
        nats: summed loss.
        targets: tokens predicted.
        loads: layer -> tokens of each expert over the mean.
    """

    nats: float
    targets: int
    loads: dict[str, list[float]]

    @property
    def loss(self) -> float:
        """Nats a target token."""
        return self.nats / self.targets

    def bits_per_byte(self, text_bytes: int) -> float:
        return self.nats / math.log(2) / text_bytes


@torch.no_grad()
def measure(model: nn.Module, batches: Iterable[Batch], device: torch.device, name: str) -> Measured:
    """Run a single-device model over batches in evaluation mode."""
    model.eval()
    counts: dict[str, torch.Tensor] = {}
    hooks = []
    for module_name, module in model.named_modules():
        if getattr(module, BIAS, None) is not None:
            layer = module_name.rsplit(".mlp", 1)[0]

            def count(_m: nn.Module, _i: object, output: tuple[torch.Tensor, ...], layer: str = layer) -> None:
                counts[layer] = counts.get(layer, 0) + output[2].double()

            hooks.append(module.register_forward_hook(count))
    batches = list(batches)
    nats, targets = 0.0, 0
    with bar(len(batches), "batch", name) as progress:
        for batch in batches:
            placed = batch.to(device)
            total, number = losses.cross_entropy_sum(model(placed.inputs), placed.labels)
            nats, targets = nats + float(total), targets + int(number)
            progress.update()
    for hook in hooks:
        hook.remove()
    loads = {layer: (count / count.mean()).tolist() for layer, count in counts.items()}
    return Measured(nats, targets, loads)
