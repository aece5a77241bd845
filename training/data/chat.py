"""Samples for fine-tuning: chat examples, padded to the longest in their micro-batch."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tokenizer.special_tokens import IGNORED
from training.data.batch import Batch
from training.data.examples import Examples, Indices, Lists, read_columns
from training.data.replay import Item


class ChatExamples(Examples):
    """The chat examples of one split (``train`` or ``held-out``). Labels outside answers are ``IGNORED``.

    Attributes:
        pad_id: the padding token's id.
    """

    def __init__(self, folder: Path, split: str, pad_id: int) -> None:
        """Read the Parquet files ``SPLIT-*.parquet`` in a folder. ``pad_id`` is the padding token's id.

        Raises:
            RequestError: there are no examples, or a file is damaged.
        """
        table = read_columns(folder, split, ["ids", "labels"], "examples")
        self._ids, self._labels = Lists(table["ids"]), Lists(table["labels"])
        self.pad_id = pad_id

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def tokens(self) -> int:
        """Number of tokens in all examples, without padding."""
        return int(self._ids.lengths(np.arange(len(self))).sum())

    def lengths(self, indices: Indices) -> NDArray[np.int64]:
        """Return the number of inputs of each of these examples, [B]: an example's last token is only a label."""
        return self._ids.lengths(indices) - 1

    def item(self, index: int) -> Item:
        """Return an example's ids and labels."""
        return Item(self._ids[index], self._labels[index], np.zeros(1, np.int64))

    def read(self, indices: Indices) -> Batch:
        """Return the examples at the given indices, with labels shifted one position to the left."""
        labels = self._labels.padded(indices, IGNORED)[:, 1:]
        inputs = self._ids.padded(indices, self.pad_id)[:, :-1]
        # An example's last token is only a label, so the inputs of shorter examples have padding in its place.
        lengths = self._ids.lengths(indices)
        inputs[np.arange(inputs.shape[1]) >= lengths[:, None] - 1] = self.pad_id
        return Batch(torch.from_numpy(np.ascontiguousarray(inputs)), torch.from_numpy(np.ascontiguousarray(labels)))
