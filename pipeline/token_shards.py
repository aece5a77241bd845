"""Encoding of documents, and the run of shards that their ids go into."""

from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline import shards
from pipeline.indexed_dataset import IndexedDataset, IndexedDatasetWriter
from tokenizer.load import Tokenizer

#: ids of documents one after the other, ids of each, bytes of their text.
Encoded = tuple[NDArray[np.int32], NDArray[np.int32], int]

#: The tokenizer of this process; see ``load_tokenizer``.
_loaded: list[Tokenizer] = []


def load_tokenizer(folder: Path) -> None:
    """Give this process its tokenizer for ``encode_group``."""
    _loaded[:] = [Tokenizer.load(folder)]


def encode_group(path: Path, group: int, sides: list[NDArray[np.bool_]]) -> list[Encoded]:
    """Encode the documents of one row group, for each mask those that it takes."""
    table = shards.read_group(path, group, ["text", "bytes"])
    tokenizer = _loaded[0]
    results = []
    for mask in sides:
        chosen = table.filter(mask)
        encoded = tokenizer.encode_batch(chosen["text"].to_pylist())
        for ids in encoded:
            ids.append(tokenizer.end_of_text_id)
        lengths = np.fromiter(map(len, encoded), np.int32, len(encoded))
        flat = np.fromiter(chain.from_iterable(encoded), np.int32, int(lengths.sum()))
        results.append((flat, lengths, int(chosen["bytes"].to_numpy().sum())))
    return results


class TokenShards:
    """Shards ``NAME-00000``, ``NAME-00001``, ...; a new one begins with the first document beyond ``shard_tokens``.

    Where a shard ends depends on the documents alone. Shards found in the folder are kept and counted.

    Attributes:
        documents: documents in finished shards.
        tokens: ids in finished shards.
        shards: finished shards.
    """

    def __init__(self, folder: Path, name: str, shard_tokens: int, kind: np.dtype) -> None:
        self._folder, self._name, self._shard_tokens, self._kind = folder, name, shard_tokens, kind
        self.documents = self.tokens = self.shards = 0
        self._writer: IndexedDatasetWriter | None = None
        while self._prefix.with_name(self._prefix.name + ".idx").exists():
            found = IndexedDataset(self._prefix)
            self.documents += len(found)
            self.tokens += len(found.tokens)
            self.shards += 1

    @property
    def _prefix(self) -> Path:
        return self._folder / f"{self._name}-{self.shards:05d}"

    def add(self, ids: NDArray[np.int32], lengths: NDArray[np.int32]) -> None:
        """Append documents, beginning new shards on the way."""
        while len(lengths):
            if self._writer is None:
                self._writer, self._pending = IndexedDatasetWriter(self._prefix, self._kind), 0
            ends = np.cumsum(lengths, dtype=np.int64)
            room = self._shard_tokens - self._writer.tokens
            count = min(int(np.searchsorted(ends, room)) + 1, len(lengths))
            self._writer.add(ids[: ends[count - 1]], lengths[:count])
            self._pending += count
            ids, lengths = ids[ends[count - 1] :], lengths[count:]
            if self._writer.tokens >= self._shard_tokens:
                self.finish()

    def finish(self) -> None:
        """Publish the shard under way, if there is one."""
        if self._writer is not None:
            self._writer.finish()
            self.documents += self._pending
            self.tokens += self._writer.tokens
            self.shards += 1
            self._writer = None
