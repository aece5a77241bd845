"""What a model is trained on at a time, and where it comes from."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Protocol

import torch

#: Label of a position that is not predicted.
IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """Samples of one micro-batch.

    Attributes:
        inputs: [B, T] int64 token ids; of pairs what the decoder reads.
        labels: [B, T] int64, the token that follows each position (of tags: what stands for it), or ``IGNORED``; of
            classes [B].
        starts: int32, increasing: where in the B*T flattened positions a document begins, and B*T at the end (the
            ``cu_seqlens`` of variable-length attention). Each sample begins one; an end-of-text token belongs to the
            document before it. None: the data does not know.
        lengths: [B] int64, tokens of each row of ``inputs`` that are there, the padding behind them not. None: all, or
            nobody needs to know, as behind what is predicted nothing is looked at.
        source: [B, S] int64, of pairs what the encoder reads.
        source_lengths: [B] int64, of ``source`` as ``lengths``.
    """

    inputs: torch.Tensor
    labels: torch.Tensor
    starts: torch.Tensor | None = None
    lengths: torch.Tensor | None = None
    source: torch.Tensor | None = None
    source_lengths: torch.Tensor | None = None

    @property
    def targets(self) -> int:
        """Positions that are predicted."""
        return int((self.labels != IGNORED).sum())

    @property
    def tokens(self) -> int:
        """Tokens of ``inputs`` that are there."""
        return self.inputs.numel() if self.lengths is None else int(self.lengths.sum())

    def to(self, device: torch.device) -> "Batch":
        """On a device; from pinned memory to a GPU the copy does not block."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=device.type == "cuda"))

    def pinned(self) -> "Batch":
        """In page-locked memory, from which a GPU copies on its own."""
        return self._each(torch.Tensor.pin_memory)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        there = {field.name: getattr(self, field.name) for field in fields(self)}
        return Batch(**{name: change(tensor) for name, tensor in there.items() if tensor is not None})


class Data(Protocol):
    """Where micro-batches come from: a pure function of the step."""

    def micro_batches(self, step: int, rank: int, ranks: int, micro_batch: int) -> list[Batch]:
        """This rank's micro-batches of optimiser step ``step``."""
        ...
