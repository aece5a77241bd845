"""Fine-tuning samples: chat examples padded to the longest of their micro-batch."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from artefacts import repair
from configs.errors import RequestError
from training.data.batch import IGNORED, Batch
from training.data.order import sample_indices


class ChatExamples:
    """Examples of one split (``train`` or ``held-out``): token ids, and labels that mask all but the answers."""

    def __init__(self, folder: Path, split: str, pad_id: int) -> None:
        """Read the parquet files ``SPLIT-*.parquet`` of a folder.

        Raises:
            RequestError: there is no example, or a file is damaged.
        """
        tables = []
        for path in sorted(folder.glob(f"{split}-*.parquet")):
            with repair.reading("examples", path):
                tables.append(pq.read_table(path, columns=["ids", "labels"]))
        self._ids = [np.asarray(row.values, np.int64) for t in tables for row in t["ids"]]
        self._labels = [np.asarray(row.values, np.int64) for t in tables for row in t["labels"]]
        self._pad = pad_id
        if not self._ids:
            raise RequestError(f"{folder}: no {split} examples; run `python -m pipeline examples`")

    def __len__(self) -> int:
        return len(self._ids)

    def read(self, indices: Sequence[int] | NDArray[np.int64]) -> Batch:
        """The examples of the given indices: labels stand one position before the token they name."""
        width = max(len(self._ids[i]) for i in indices) - 1
        inputs = np.full((len(indices), width), self._pad, np.int64)
        labels = np.full((len(indices), width), IGNORED, np.int64)
        for row, i in enumerate(indices):
            inputs[row, : len(self._ids[i]) - 1] = self._ids[i][:-1]
            labels[row, : len(self._ids[i]) - 1] = self._labels[i][1:]
        return Batch(torch.from_numpy(inputs), torch.from_numpy(labels))

    def in_order(self, batch: int) -> list[Batch]:
        """Every example once."""
        return [self.read(range(i, min(i + batch, len(self)))) for i in range(0, len(self), batch)]


class ChatData:
    """Global batches of shuffled examples: batch ``step`` is the same on any number of ranks."""

    def __init__(self, examples: ChatExamples, global_batch: int, seed: int) -> None:
        self._examples, self._global_batch, self._seed = examples, global_batch, seed

    def micro_batches(self, step: int, rank: int, ranks: int, micro_batch: int) -> list[Batch]:
        """This rank's micro-batches of optimiser step ``step``."""
        indices = sample_indices(step * self._global_batch, self._global_batch, len(self._examples), self._seed)
        own = indices.reshape(-1, ranks, micro_batch)[:, rank]
        return [self._examples.read(rows) for rows in own]
