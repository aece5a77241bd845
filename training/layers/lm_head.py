"""The output head, which returns the logits, or the loss without materializing all logits."""

import torch

from training.layers.cross_entropy import linear_cross_entropy_sum
from training.layers.linear import Linear


class OutputHead(Linear):
    """Maps hidden states [..., D] to logits [..., V] or, given labels [...], to the summed cross-entropy in nats."""

    def __init__(self, hidden_size: int, vocab_size: int) -> None:
        super().__init__(hidden_size, vocab_size, bias=False)

    def forward(self, hidden: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        if labels is None:
            return super().forward(hidden)
        return linear_cross_entropy_sum(hidden, self.weight, labels)
