"""Samples as they are read, in the narrow type that ids have on disk, and their way into batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from training.data.batch import IGNORED, Batch


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
