"""What a model is trained on at a time, and where it comes from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from tokenizer.special_tokens import IGNORED


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


@dataclass(frozen=True)
class Rows:
    """Samples of T inputs.

    Attributes:
        tokens: [n, T+1] uint16 or int32; the last column is only a label.
        begins: [n, T] bool: a document begins here. None: not looked for.
        ignored: [n, T] bool: the label here is no target. None: every label is.
    """

    tokens: NDArray[np.integer]
    begins: NDArray[np.bool_] | None = None
    ignored: NDArray[np.bool_] | None = None

    def batches(self, size: int) -> list[Batch]:
        """Batches of ``size`` samples, in order; the last may have fewer."""
        return [self._batch(slice(first, first + size)) for first in range(0, len(self.tokens), size)]

    def _batch(self, rows: slice) -> Batch:
        tokens = self.tokens[rows]
        count, length = len(tokens), tokens.shape[1] - 1
        inputs, labels = (torch.empty(count, length, dtype=torch.int64) for _ in range(2))
        # numpy, not torch: a thread that reads ahead must not start torch's threads a second time.
        np.copyto(inputs.numpy(), tokens[:, :-1])
        np.copyto(labels.numpy(), tokens[:, 1:])
        if self.ignored is not None:
            labels.numpy().ravel()[np.flatnonzero(self.ignored[rows])] = IGNORED
        if self.begins is None:
            return Batch(inputs, labels)
        found = np.flatnonzero(self.begins[rows])
        starts = np.append(found, count * length).astype(np.int32)
        return Batch(inputs, labels, torch.from_numpy(starts))


class Samples(Protocol):
    """A data set of samples of one length."""

    context_length: int

    def __len__(self) -> int: ...

    def rows(self, indices: NDArray[np.int64]) -> Rows:
        """The samples of the given indices, in that order."""
        ...


def read_several(data_sets: Sequence[Samples], chosen: NDArray[np.int64], indices: NDArray[np.int64]) -> Rows:
    """Sample ``indices[i]`` of data set ``chosen[i]`` as row i, for every i."""
    if len(data_sets) == 1:
        return data_sets[0].rows(indices)
    places = [np.flatnonzero(chosen == number) for number in range(len(data_sets))]
    parts = [(at, data_sets[number].rows(indices[at])) for number, at in enumerate(places) if len(at)]
    if len(parts) == 1:
        return parts[0][1]
    count = len(indices)
    tokens = _together(count, [(at, part.tokens) for at, part in parts])
    begins = [(at, part.begins) for at, part in parts if part.begins is not None]
    ignored = [(at, part.ignored) for at, part in parts if part.ignored is not None]
    return Rows(tokens, _together(count, begins) if begins else None, _together(count, ignored) if ignored else None)


def _together(count: int, parts: list[tuple[NDArray[np.int64], NDArray]]) -> NDArray:
    whole = np.empty((count, *parts[0][1].shape[1:]), parts[0][1].dtype)
    for at, rows in parts:
        whole[at] = rows
    return whole
