"""Samples for tasks other than language modeling: examples with targets, padded to the longest in a batch.

The padding token's id is 0. Models ignore padding, because batches contain the lengths of the texts that encoders read.
"""

from pathlib import Path

import numpy as np
import torch

from tokenizer.special_tokens import IGNORED
from training.data.batch import Batch
from training.data.examples import Examples, Indices, Lists, read_columns

_PAD = 0
_TARGET = "data"


class TagExamples(Examples):
    """Texts with one target per token."""

    def __init__(self, folder: Path, split: str) -> None:
        """Read one split (``train`` or ``held-out``) from a folder of examples.

        Raises:
            RequestError: there are no examples, or a file is damaged.
        """
        table = read_columns(folder, split, ["ids", "targets"], _TARGET)
        self._ids, self._targets = Lists(table["ids"]), Lists(table["targets"])

    def __len__(self) -> int:
        return len(self._ids)

    def read(self, indices: Indices) -> Batch:
        """Return a batch with ``inputs``, their ``lengths``, and ``labels`` at the same positions as the inputs."""
        return Batch(
            torch.from_numpy(self._ids.padded(indices, _PAD)),
            torch.from_numpy(self._targets.padded(indices, IGNORED)),
            lengths=torch.from_numpy(self._ids.lengths(indices)),
        )


class PairExamples(Examples):
    """Pairs of source and target texts."""

    def __init__(self, folder: Path, split: str, begin_id: int, end_id: int) -> None:
        """Read one split, like ``TagExamples``. The decoder reads ``begin_id`` first and predicts ``end_id`` last."""
        table = read_columns(folder, split, ["ids", "targets"], _TARGET)
        self._ids, self._targets = Lists(table["ids"]), Lists(table["targets"])
        self._begin, self._end = begin_id, end_id

    def __len__(self) -> int:
        return len(self._ids)

    def read(self, indices: Indices) -> Batch:
        """Return a batch in which ``source`` holds the source texts and ``source_lengths`` their lengths.

        ``inputs`` are the targets with ``begin_id`` prepended, and ``labels`` the targets with ``end_id`` appended.
        """
        lengths = self._targets.lengths(indices)
        inputs = np.pad(self._targets.padded(indices, _PAD), ((0, 0), (1, 0)), constant_values=self._begin)
        labels = np.pad(self._targets.padded(indices, IGNORED), ((0, 0), (0, 1)), constant_values=IGNORED)
        labels[np.arange(len(labels)), lengths] = self._end
        return Batch(
            torch.from_numpy(inputs),
            torch.from_numpy(labels),
            source=torch.from_numpy(self._ids.padded(indices, _PAD)),
            source_lengths=torch.from_numpy(self._ids.lengths(indices)),
        )


class LabelExamples(Examples):
    """Texts with one class each."""

    def __init__(self, folder: Path, split: str) -> None:
        """Read one split, like ``TagExamples``."""
        table = read_columns(folder, split, ["ids", "label"], _TARGET)
        self._ids, self._labels = Lists(table["ids"]), table["label"].to_numpy().astype(np.int64)

    def __len__(self) -> int:
        return len(self._ids)

    def read(self, indices: Indices) -> Batch:
        """Return a batch with ``inputs``, ``lengths`` and ``labels`` [B].

        Labels are indices into the sorted class names.
        """
        return Batch(
            torch.from_numpy(self._ids.padded(indices, _PAD)),
            torch.from_numpy(self._labels[np.asarray(indices, np.int64)]),
            lengths=torch.from_numpy(self._ids.lengths(indices)),
        )
