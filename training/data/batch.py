"""Batches, and the interfaces of the datasets they come from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from tokenizer.special_tokens import IGNORED


@dataclass(frozen=True)
class Batch:
    """The samples of one micro-batch.

    Attributes:
        inputs: [B, T] int64, token ids; for text pairs, the decoder's input.
        labels: [B, T] int64, the next token or the tag at each position, or ``IGNORED``. For sequence classification,
            the class of each row, [B].
        starts: int32, the positions in the B*T flattened tokens at which documents start, ascending, followed by B*T
            (the ``cu_seqlens`` of variable-length attention). Every sample starts a document; an end-of-text token
            belongs to the document before it. None if document starts are not marked.
        lengths: [B] int64, the number of tokens in each row of ``inputs`` without padding. None if there is no padding,
            or if padding does not matter because causal attention never attends to it.
        source: [B, S] int64, token ids of the encoder's input, for text pairs.
        source_lengths: [B] int64, the number of tokens in each row of ``source`` without padding.
        reference: [B] float32, for pairs of answers, the reference model's log-probability of each row's labels. The
            first half of the rows are the chosen answers, the second half the rejected ones in the same order.
    """

    inputs: torch.Tensor
    labels: torch.Tensor
    starts: torch.Tensor | None = None
    lengths: torch.Tensor | None = None
    source: torch.Tensor | None = None
    source_lengths: torch.Tensor | None = None
    reference: torch.Tensor | None = None

    @property
    def targets(self) -> int:
        """Number of labels that are not ``IGNORED``."""
        return int((self.labels != IGNORED).sum())

    @property
    def tokens(self) -> int:
        """Number of tokens in ``inputs`` without padding."""
        return self.inputs.numel() if self.lengths is None else int(self.lengths.sum())

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device. Copies from pinned memory to a GPU do not block."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=device.type == "cuda"))

    def pinned(self) -> "Batch":
        """Return the batch in pinned memory, from which it can be copied to a GPU asynchronously."""
        return self._map(torch.Tensor.pin_memory)

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return Batch(**{name: function(tensor) for name, tensor in tensors.items() if tensor is not None})


class Data(Protocol):
    """A source of micro-batches. Their contents depend only on the step, the ranks and the batch sizes."""

    def micro_batches(self, step: int, rank: int, ranks: int, micro_batch: int) -> list[Batch]:
        """Return this rank's micro-batches of optimizer step ``step``."""
        ...


@dataclass(frozen=True)
class Rows:
    """Samples with T inputs each.

    Attributes:
        tokens: [n, T+1] uint16 or int32, token ids; the last column is only a label.
        begins: [n, T] bool, True where a document starts. None if document starts are not marked.
        ignored: [n, T] bool, True where the label is ignored. None if every label is a target.
    """

    tokens: NDArray[np.integer]
    begins: NDArray[np.bool_] | None = None
    ignored: NDArray[np.bool_] | None = None

    def batches(self, size: int) -> list[Batch]:
        """Return batches of ``size`` samples, in order. The last batch may be smaller."""
        return [self._batch(slice(first, first + size)) for first in range(0, len(self.tokens), size)]

    def _batch(self, rows: slice) -> Batch:
        tokens = self.tokens[rows]
        count, length = len(tokens), tokens.shape[1] - 1
        inputs, labels = (torch.empty(count, length, dtype=torch.int64) for _ in range(2))
        # numpy rather than torch, because torch would start another thread pool in the prefetching thread.
        np.copyto(inputs.numpy(), tokens[:, :-1])
        np.copyto(labels.numpy(), tokens[:, 1:])
        if self.ignored is not None:
            labels.numpy().ravel()[np.flatnonzero(self.ignored[rows])] = IGNORED
        if self.begins is None:
            return Batch(inputs, labels)
        first_tokens = np.flatnonzero(self.begins[rows])
        starts = np.append(first_tokens, count * length).astype(np.int32)
        return Batch(inputs, labels, torch.from_numpy(starts))


class Samples(Protocol):
    """A dataset whose samples all have the same length."""

    context_length: int

    def __len__(self) -> int: ...

    def rows(self, indices: NDArray[np.int64]) -> Rows:
        """Return the samples at the given indices, in that order."""
        ...


def read_several(data_sets: Sequence[Samples], chosen: NDArray[np.int64], indices: NDArray[np.int64]) -> Rows:
    """Return rows from several datasets; row i is sample ``indices[i]`` of dataset ``chosen[i]``."""
    if len(data_sets) == 1:
        return data_sets[0].rows(indices)
    places = [np.flatnonzero(chosen == number) for number in range(len(data_sets))]
    parts = [(at, data_sets[number].rows(indices[at])) for number, at in enumerate(places) if len(at)]
    if len(parts) == 1:
        return parts[0][1]
    count = len(indices)
    tokens = _merged(count, [(at, part.tokens) for at, part in parts])
    begins = [(at, part.begins) for at, part in parts if part.begins is not None]
    ignored = [(at, part.ignored) for at, part in parts if part.ignored is not None]
    return Rows(tokens, _merged(count, begins) if begins else None, _merged(count, ignored) if ignored else None)


def _merged(count: int, parts: list[tuple[NDArray[np.int64], NDArray]]) -> NDArray:
    merged = np.empty((count, *parts[0][1].shape[1:]), parts[0][1].dtype)
    for at, rows in parts:
        merged[at] = rows
    return merged
