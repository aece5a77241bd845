"""Samples for fine-tuning: chat examples, padded to the longest in their micro-batch."""

from pathlib import Path

import numpy as np
import torch

from tokenizer.special_tokens import IGNORED
from training.data.batch import Batch
from training.data.examples import Examples, Indices, Lists, read_columns


class ChatExamples(Examples):
    """The chat examples of one split (``train`` or ``held-out``). Labels outside answers are ``IGNORED``."""

    def __init__(self, folder: Path, split: str, pad_id: int) -> None:
        """Read the Parquet files ``SPLIT-*.parquet`` in a folder. ``pad_id`` is the padding token's id.

        Raises:
            RequestError: there are no examples, or a file is damaged.
        """
        table = read_columns(folder, split, ["ids", "labels"], "examples")
        self._ids, self._labels = Lists(table["ids"]), Lists(table["labels"])
        self._pad = pad_id

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def tokens(self) -> int:
        """Number of tokens in all examples, without padding."""
        return int(self._ids.lengths(np.arange(len(self))).sum())

    def read(self, indices: Indices) -> Batch:
        """Return the examples at the given indices, with labels shifted one position to the left."""
        labels = self._labels.padded(indices, IGNORED)[:, 1:]
        inputs = self._ids.padded(indices, self._pad)[:, :-1]
        # An example's last token is only a label, so the inputs of shorter examples have padding in its place.
        lengths = self._ids.lengths(indices)
        inputs[np.arange(inputs.shape[1]) >= lengths[:, None] - 1] = self._pad
        return Batch(torch.from_numpy(np.ascontiguousarray(inputs)), torch.from_numpy(np.ascontiguousarray(labels)))
