"""Samples that are windows of ``context_length`` tokens in each shard's concatenated documents."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from artefacts import command_hints
from artefacts.errors import RequestError
from pipeline.tokens.indexed_dataset import IndexedDataset, shard_prefixes
from training.data.batch import Batch, Rows
from training.data.disk_reads import DiskReads


def by_shard(
    indices: NDArray[np.int64], starts: NDArray[np.int64]
) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
    """Group sample indices by shard.

    Args:
        indices: sample indices.
        starts: index of each shard's first sample, followed by the total number of samples.

    Yields:
        (shard, positions in ``indices``, sample indices within the shard).
    """
    shards = np.searchsorted(starts, indices, side="right") - 1
    order = np.argsort(shards, kind="stable")
    cuts = np.flatnonzero(np.diff(shards[order])) + 1
    for places in np.split(order, cuts) if len(order) else []:
        shard = int(shards[places[0]])
        yield shard, places, indices[places] - starts[shard]


class TokenWindows:
    """The windows of one split, read from memory-mapped shards.

    A shard's window i consists of tokens i*T .. i*T+T, of which the last is only a label. Windows do not cross shard
    boundaries.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        context_length: int,
        end_of_text: int | None = None,
    ) -> None:
        """Map the shards ``SPLIT-*.bin``, sorted by name.

        Args:
            folder: a folder of shards, or a folder with one subfolder of shards per source.
            split: the split's name.
            context_length: tokens per window.
            end_of_text: id of the token that ends documents. If it is set, batches mark where documents start.

        Raises:
            RequestError: there are no shards, or one is damaged.
        """
        prefixes = shard_prefixes(folder, split)
        if not prefixes:
            raise RequestError(f"{folder}: no {split} shards; run `{command_hints.make('data')}`")
        self.context_length, self._end_of_text = context_length, end_of_text
        self._shards = [IndexedDataset(prefix, scattered=True) for prefix in prefixes]
        self._kind = self._shards[0].tokens.dtype
        self._disk = DiskReads()
        windows = [max(0, len(shard.tokens) - 1) // context_length for shard in self._shards]
        self._windows = [_windows(s.tokens, n, context_length) for s, n in zip(self._shards, windows, strict=True)]
        self._starts = np.concatenate([[0], np.cumsum(windows, dtype=np.int64)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def rows(self, indices: NDArray[np.int64]) -> Rows:
        """Return the windows at the given indices, in that order."""
        length = self.context_length
        tokens = np.empty((len(indices), length + 1), self._kind)
        groups = list(by_shard(indices, self._starts))
        for shard, _, local in groups if self._disk.expected() else []:
            self._shards[shard].announce(local * length, np.full_like(local, length + 1))
        for shard, places, local in groups:
            tokens[places] = self._windows[shard][local]
        return Rows(tokens, self._begins(tokens))

    def _begins(self, tokens: NDArray[np.integer]) -> NDArray[np.bool_] | None:
        """Return a mask [n, T] of document starts in rows of T+1 tokens, or None if batches do not mark them."""
        if self._end_of_text is None:
            return None
        begins = np.ones((len(tokens), self.context_length), dtype=bool)
        np.equal(tokens[:, :-2], self._end_of_text, out=begins[:, 1:])
        return begins

    def spread(self, count: int, batch: int) -> list[Batch]:
        """Return batches with at most ``count`` windows in total, taken at even intervals from the split.

        If no shard holds a full window, the entire split is returned as padded samples. The list is empty if the split
        has no labels.
        """
        if not len(self):
            return self.in_order(batch)
        indices = np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).astype(np.int64))
        return self.rows(indices).batches(batch)

    def in_order(self, batch: int, limit: int | None = None) -> list[Batch]:
        """Return batches in which every token except each shard's first is a label exactly once.

        A shard's last row may be padded.

        Args:
            batch: samples per batch.
            limit: maximum number of labels; None returns all.
        """
        length = self.context_length
        pieces: list[NDArray[np.integer]] = []
        remaining = sum(len(shard.tokens) for shard in self._shards) if limit is None else limit
        for shard in self._shards:
            wanted = min(len(shard.tokens), remaining + 1)
            shard.announce(np.array([0]), np.array([wanted]))
            for start in range(0, wanted - 1, length):
                piece = shard.tokens[start : start + min(length, remaining) + 1]
                remaining -= len(piece) - 1
                pieces.append(piece)
        if not pieces:
            return []
        tokens = np.zeros((len(pieces), length + 1), self._kind)
        ignored = np.zeros((len(pieces), length), dtype=bool)
        for row, piece in enumerate(pieces):
            tokens[row, : len(piece)] = piece
            ignored[row, len(piece) - 1 :] = True
        return Rows(tokens, self._begins(tokens), ignored).batches(batch)


def _windows(tokens: NDArray[np.integer], count: int, length: int) -> NDArray[np.integer]:
    """Return a view [count, length+1] of a shard, in which row i starts at token i*length."""
    size = tokens.itemsize
    return as_strided(tokens, (count, length + 1), (length * size, size), writeable=False)
