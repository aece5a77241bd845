"""The documents that a tokenizer is trained on: a seeded sample, in memory of the sample's size alone."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from artefacts import repair
from tokenizer.sample import keyed_hashes, smallest

#: Rows whose ids become Python objects at once.
_ROWS = 16_384


class Smallest:
    """The documents of a stream with the smallest hashes whose sizes add up to about ``budget``; at least one.

    What ``tokenizer.sample.smallest`` would choose over the whole stream; only the candidates are held.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._hashes: list[NDArray[np.uint64]] = []
        self._sizes: list[NDArray[np.int64]] = []
        self._places: list[NDArray[np.int64]] = []
        self._waiting = 0
        #: A document with this hash or a larger one stands behind the budget, whatever follows.
        self._bar = np.uint64(2**64 - 1)

    def add(self, hashes: NDArray[np.uint64], sizes: NDArray[np.int64], first: int) -> None:
        """Take the next documents, numbered from ``first``."""
        below = np.flatnonzero(hashes < self._bar)
        self._hashes.append(hashes[below])
        self._sizes.append(sizes[below])
        self._places.append(below + first)
        self._waiting += len(below)
        if self._waiting > max(4 * _ROWS, len(self._places[0])):
            self.places()

    def places(self) -> NDArray[np.int64]:
        """Numbers of the chosen documents, in order."""
        if not self._hashes:
            return np.empty(0, np.int64)
        hashes, sizes = np.concatenate(self._hashes), np.concatenate(self._sizes)
        places = np.concatenate(self._places)
        chosen = smallest(hashes, sizes, self._budget)
        if not chosen.all():
            self._bar = hashes[~chosen].min()
        self._hashes, self._sizes, self._places = [hashes[chosen]], [sizes[chosen]], [places[chosen]]
        self._waiting = 0
        return self._places[0]


def sample(folder: Path, budget: int, seed: int) -> list[str]:
    """Texts of about ``budget`` bytes in all from the documents artefact, in their order on disk.

    Raises:
        RequestError: a shard is damaged.
    """
    import pyarrow.parquet as parquet

    paths = sorted(folder.glob("clean-*.parquet"))
    candidates = Smallest(budget)
    seen = 0
    for path in paths:
        with repair.reading("documents", path):
            for batch in parquet.ParquetFile(path).iter_batches(_ROWS, columns=["id", "bytes"]):
                hashes = keyed_hashes(seed, "tokenizer", batch.column("id").to_pylist())
                candidates.add(hashes, batch.column("bytes").to_numpy(), seen)
                seen += len(batch)
    places = candidates.places()
    texts: list[str] = []
    seen = 0
    for path in paths:
        with repair.reading("documents", path):
            file = parquet.ParquetFile(path)
            for group in range(file.num_row_groups):
                count = file.metadata.row_group(group).num_rows
                first, last = np.searchsorted(places, (seen, seen + count))
                if first < last:
                    rows = places[first:last] - seen
                    texts += file.read_row_group(group, columns=["text"])["text"].take(rows).to_pylist()
                seen += count
    return texts
