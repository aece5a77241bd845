"""What a model is trained on at a time."""

from dataclasses import dataclass

import torch

#: Label of a position that is not predicted.
IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """Samples of one micro-batch.

    Attributes:
        inputs: [B, T] int64 token ids.
        labels: [B, T] int64, the token that follows each position, or ``IGNORED``.
    """

    inputs: torch.Tensor
    labels: torch.Tensor

    @property
    def targets(self) -> int:
        """Positions that are predicted."""
        return int((self.labels != IGNORED).sum())

    def to(self, device: torch.device) -> "Batch":
        return Batch(self.inputs.to(device), self.labels.to(device))
