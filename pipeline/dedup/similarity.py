"""Signatures of documents, and the test for near duplicates.

A signature holds the lowest byte of each bin in a document's sketch (b-bit minwise hashing, Li and König 2010). At one
byte per bin instead of four, the same space holds four times as many bins, which halves the standard error. Two
different values have the same lowest byte with a probability of 1 in 256, and the threshold allows for that.
"""

from math import ceil, sqrt
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from configs.schema.clean import NearDuplicatesSection
from pipeline.dedup import array_file
from pipeline.dedup.minhash import Sketches

SIGNATURES = "signatures"

#: Number of bins per signature, unless the bands need more. The standard error is 0.018 at a similarity of 0.8.
_BINS = 512
#: Probability that two different values have the same lowest byte.
_CHANCE = 1 / 256
#: How many standard errors below the threshold an estimate may be. Without this margin, half of the pairs just
#: above the threshold would be missed.
_MARGIN = 2
#: Size of the signatures to compare at a time, in bytes.
_BLOCK_BYTES = 16 << 20


def bins(near: NearDuplicatesSection) -> int:
    """Return the number of bins per sketch."""
    return max(_BINS, near.bands * near.rows)


def signatures(sketches: Sketches) -> NDArray[np.uint8]:
    """Return the signatures [documents, bins] of sketches."""
    return (sketches & np.uint32(0xFF)).astype(np.uint8)


def least_agreement(near: NearDuplicatesSection) -> int:
    """Return the minimum number of bins in which the signatures of near duplicates agree."""
    count = bins(near)
    limit = near.threshold - _MARGIN * sqrt(near.threshold * (1 - near.threshold) / count)
    return ceil(round(count * (limit * (1 - _CHANCE) + _CHANCE), 6))


class Signatures:
    """The signatures of all documents in a corpus. A document is identified by ``part << 32 | row``."""

    def __init__(self, folder: Path, near: NearDuplicatesSection) -> None:
        self._folder = folder
        self._bins = bins(near)
        self._least = least_agreement(near)

    def are_similar(self, one: NDArray[np.uint64], other: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Return, for each pair of documents, whether their signatures show that they are near duplicates.

        Raises:
            RequestError: a signature file is missing or damaged.
        """
        similar = np.zeros(len(one), dtype=bool)
        step = max(_BLOCK_BYTES // self._bins, 1)
        for at in range(0, len(one), step):
            block = slice(at, at + step)
            # Read each document's signature once, in file order.
            needed, place = np.unique(np.concatenate([one[block], other[block]]), return_inverse=True)
            gathered = self._gather(needed)
            left, right = np.split(place, 2)
            similar[block] = np.count_nonzero(gathered[left] == gathered[right], axis=1) >= self._least
        return similar

    def _gather(self, documents: NDArray[np.uint64]) -> NDArray[np.uint8]:
        gathered = np.empty((len(documents), self._bins), np.uint8)
        parts = (documents >> np.uint64(32)).astype(np.int64)
        rows = (documents & np.uint64(0xFFFFFFFF)).astype(np.int64)
        borders = np.flatnonzero(np.diff(parts)) + 1
        for start, stop in zip([0, *borders], [*borders, len(parts)], strict=True):
            # Reopen the file for each block, because a mapped file's pages count toward memory use.
            (mapped,) = array_file.read(array_file.part_path(self._folder, SIGNATURES, int(parts[start])))
            gathered[start:stop] = mapped[rows[start:stop]]
        return gathered
