"""Fine-tuning samples: chat examples, padded to the longest in their micro-batch."""

from pathlib import Path

import numpy as np
import torch

from tokenizer.special_tokens import IGNORED
from training.data.batch import Batch
from training.data.examples import Examples, Indices, Lists, read_columns


class ChatExamples(Examples):
    """Examples of one split (``train`` or ``held-out``): token ids, and labels that are ignored outside answers."""

    def __init__(self, folder: Path, split: str, pad_id: int) -> None:
        """Read the parquet files ``SPLIT-*.parquet`` of a folder.

        Raises:
            RequestError: there are no examples, or a file is damaged.
        """
        table = read_columns(folder, split, ["ids", "labels"], "examples")
        self._ids, self._labels = Lists(table["ids"]), Lists(table["labels"])
        self._pad = pad_id

    def __len__(self) -> int:
        return len(self._ids)

    def read(self, indices: Indices) -> Batch:
        """The examples of the given indices; a label is one position before its token."""
        labels = self._labels.padded(indices, IGNORED)[:, 1:]
        inputs = self._ids.padded(indices, self._pad)[:, :-1]
        # In shorter examples too, the last token is only a label.
        lengths = self._ids.lengths(indices)
        inputs[np.arange(inputs.shape[1]) >= lengths[:, None] - 1] = self._pad
        return Batch(torch.from_numpy(np.ascontiguousarray(inputs)), torch.from_numpy(np.ascontiguousarray(labels)))
