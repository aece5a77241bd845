"""Samples of models that are not trained on running text: examples with targets, padded to the longest of a batch.

Padding has id 0. Models never look at it, since every batch has lengths.
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
    """Texts with a target per token."""

    def __init__(self, folder: Path, split: str) -> None:
        """Read one split (``train`` or ``held-out``) of a folder of examples.

        Raises:
            RequestError: there are no examples, or a file is damaged.
        """
        table = read_columns(folder, split, ["ids", "targets"], _TARGET)
        self._ids, self._targets = Lists(table["ids"]), Lists(table["targets"])

    def __len__(self) -> int:
        return len(self._ids)

    def read(self, indices: Indices) -> Batch:
        """``inputs`` and, at the same positions, ``labels``; ``lengths``."""
        return Batch(
            torch.from_numpy(self._ids.padded(indices, _PAD)),
            torch.from_numpy(self._targets.padded(indices, IGNORED)),
            lengths=torch.from_numpy(self._ids.lengths(indices)),
        )


class PairExamples(Examples):
    """Pairs of a source text and a target text."""

    def __init__(self, folder: Path, split: str, begin_id: int, end_id: int) -> None:
        """As ``TagExamples``; the decoder reads ``begin_id`` before a target and predicts ``end_id`` after it."""
        table = read_columns(folder, split, ["ids", "targets"], _TARGET)
        self._ids, self._targets = Lists(table["ids"]), Lists(table["targets"])
        self._begin, self._end = begin_id, end_id

    def __len__(self) -> int:
        return len(self._ids)

    def read(self, indices: Indices) -> Batch:
        """``source``: source texts; ``inputs``: begin and target; ``labels``: target and end; ``source_lengths``."""
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
    """Texts with a class."""

    def __init__(self, folder: Path, split: str) -> None:
        """As ``TagExamples``."""
        table = read_columns(folder, split, ["ids", "label"], _TARGET)
        self._ids, self._labels = Lists(table["ids"]), table["label"].to_numpy().astype(np.int64)

    def __len__(self) -> int:
        return len(self._ids)

    def read(self, indices: Indices) -> Batch:
        """``inputs``, ``lengths``, and ``labels`` [B]: the index of the class among the sorted names."""
        return Batch(
            torch.from_numpy(self._ids.padded(indices, _PAD)),
            torch.from_numpy(self._labels[np.asarray(indices, np.int64)]),
            lengths=torch.from_numpy(self._ids.lengths(indices)),
        )
