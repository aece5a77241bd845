"""Pretraining samples: windows of ``context_length`` tokens over the concatenated shards of a split."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from configs.errors import RequestError
from pipeline.indexed_dataset import IndexedDataset
from training.data.batch import IGNORED, Batch
from training.data.order import sample_indices


class TokenWindows:
    """The windows of one split, read from memory-mapped shards.

    Window i is tokens i*T .. i*T+T (T+1 of them: the last is only a label). A window never crosses a shard.
    """

    def __init__(self, folder: Path, split: str, context_length: int) -> None:
        """Map the shards ``SPLIT-*.bin`` of a folder.

        Raises:
            RequestError: there is none, or (train) none is long enough for one window.
        """
        prefixes = sorted(path.with_suffix("") for path in folder.glob(f"{split}-*.idx"))
        if not prefixes:
            raise RequestError(f"{folder}: no {split} shards; run `make data`")
        self.context_length = context_length
        self._shards = [IndexedDataset(prefix).tokens for prefix in prefixes]
        self._windows = np.array([max(0, len(shard) - 1) // context_length for shard in self._shards])
        self._starts = np.concatenate([[0], np.cumsum(self._windows)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, indices: NDArray[np.int64]) -> Batch:
        """The windows of the given indices, in that order."""
        length = self.context_length
        rows = np.empty((len(indices), length + 1), dtype=np.int64)
        for row, index in enumerate(indices):
            shard = int(np.searchsorted(self._starts, index, side="right")) - 1
            start = int(index - self._starts[shard]) * length
            rows[row] = self._shards[shard][start : start + length + 1]
        tokens = torch.from_numpy(rows)
        return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())

    def spread(self, count: int, batch: int) -> list[Batch]:
        """At most ``count`` windows at even distances over the whole split, in batches."""
        indices = np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).astype(np.int64))
        return [self.read(indices[i : i + batch]) for i in range(0, len(indices), batch)]

    def in_order(self, batch: int, limit: int | None = None) -> list[Batch]:
        """Every token of the split once as a label (but each shard's first), in batches; the last rows are padded."""
        rows: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        length, left = self.context_length, limit
        for shard in self._shards:
            for start in range(0, len(shard) - 1, length):
                piece = shard[start : start + length + 1].astype(np.int64)
                if left is not None:
                    piece = piece[: left + 1]
                    left -= len(piece) - 1
                if len(piece) < 2:
                    continue
                inputs, labels = np.zeros(length, np.int64), np.full(length, IGNORED, np.int64)
                inputs[: len(piece) - 1], labels[: len(piece) - 1] = piece[:-1], piece[1:]
                rows.append((inputs, labels))
        groups = [rows[i : i + batch] for i in range(0, len(rows), batch)]
        return [
            Batch(torch.from_numpy(np.stack([r[0] for r in g])), torch.from_numpy(np.stack([r[1] for r in g])))
            for g in groups
        ]


class PretrainingData:
    """Global batches of shuffled windows: batch ``step`` is the same on any number of ranks."""

    def __init__(self, windows: TokenWindows, global_batch: int, seed: int) -> None:
        if not len(windows):
            raise RequestError(
                f"the training shards hold less than one sample of {windows.context_length} tokens: gather more text "
                "or lower train.context_length"
            )
        self._windows, self._global_batch, self._seed = windows, global_batch, seed

    def micro_batches(self, step: int, rank: int, ranks: int, micro_batch: int) -> list[Batch]:
        """This rank's micro-batches of optimiser step ``step``."""
        indices = sample_indices(step * self._global_batch, self._global_batch, len(self._windows), self._seed)
        own = indices.reshape(-1, ranks, micro_batch)[:, rank]
        return [self._windows.read(rows) for rows in own]
