"""Fast MinHash sketches of documents, with about one hash per shingle instead of one per shingle and bin.

The method is from Dahlgaard, Knudsen and Thorup 2017, "Fast Similarity Sketching". In each round, every shingle is
hashed to a bin and a value. A bin takes the smallest value from the first round in which it receives any. A bin that is
still empty after all rounds takes the smallest hash of all the document's shingles under a hash function specific to
that bin, as in MinHash (Broder 1997).

For sets of any size, each bin in the sketch of a union is the minimum of that bin in the two sets' sketches. Therefore,
the probability that two sketches agree in a bin is exactly the Jaccard similarity of their shingle sets. The variance
is no higher than that of MinHash with the same number of hashes, even for documents with a single shingle.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from artefacts.hashing import GOLDEN, Hashes, mix, splitmix64

#: Value of an empty bin.
_EMPTY = np.uint32(0xFFFFFFFF)
#: Number of rounds. This number roughly minimizes the work for short documents.
_ROUNDS = 32
#: Number of single-bin hashes to compute at a time.
_BLOCK = 1 << 21

Sketches = NDArray[np.uint32]


def sketch(shingles: Hashes, owner: NDArray[np.int64], documents: int, bins: int) -> Sketches:
    """Return the documents' sketches [documents, bins]. For a document without shingles, every bin is 0xFFFFFFFF.

    Args:
        shingles: well-mixed 64-bit hashes, which may repeat.
        owner: the document each shingle comes from, ascending.
        documents: number of documents.
        bins: number of bins per sketch.
    """
    grid = np.full((documents, bins), _EMPTY)
    flat = grid.reshape(-1)
    factors = _factors(_ROUNDS)
    for number in range(_ROUNDS):
        if not len(shingles):
            return grid
        # The inputs are well mixed, so the upper bits of a product are as good as a new hash.
        hashes = shingles * factors[number]
        place = ((hashes >> np.uint64(32)) * np.uint64(bins) >> np.uint64(32)).astype(np.int64)
        place += owner * bins
        # These are mostly different bits from the ones that select the bin.
        values = np.minimum((hashes >> np.uint64(8)).astype(np.uint32), _EMPTY - np.uint32(1))
        if number:
            free = np.flatnonzero(flat[place] == _EMPTY)
            place, values = place[free], values[free]
        np.minimum.at(flat, place, values)
        # For a short document, this check costs as much as half a round.
        if number < 4 or number % 4 == 3:
            has_empty = (grid == _EMPTY).any(axis=1)[owner]
            shingles, owner = shingles[has_empty], owner[has_empty]
    _fill(grid, shingles, owner)
    return grid


@lru_cache(maxsize=8)
def _factors(count: int, first: int = 1) -> Hashes:
    """Return pseudorandom odd numbers, which are the same in every call."""
    return splitmix64(np.uint64(0), np.arange(first, first + count, dtype=np.uint64)) | np.uint64(1)


def _fill(grid: Sketches, shingles: Hashes, owner: NDArray[np.int64]) -> None:
    """Set each empty bin to the smallest hash of its document's shingles under the bin's own hash function."""
    counts = np.bincount(owner, minlength=len(grid))
    firsts = np.cumsum(counts) - counts
    documents, bins = np.nonzero((grid == _EMPTY) & (counts > 0)[:, None])
    factors = _factors(grid.shape[1], _ROUNDS + 1)
    ends = np.cumsum(counts[documents])
    at = 0
    while at < len(documents):
        done = int(ends[at - 1]) if at else 0
        stop = max(int(np.searchsorted(ends, done + _BLOCK)), at + 1)
        document, bin_ = documents[at:stop], bins[at:stop]
        length = counts[document]
        starts = np.cumsum(length) - length
        source = np.repeat(firsts[document] - starts, length) + np.arange(int(length.sum()))
        hashes = (shingles[source] * np.repeat(factors[bin_], length) >> np.uint64(32)).astype(np.uint32)
        grid[document, bin_] = np.minimum(np.minimum.reduceat(hashes, starts), _EMPTY - np.uint32(1))
        at = stop


def band_keys(sketches: Sketches, bands: int, rows: int) -> Hashes:
    """Return keys [documents, bands] computed from the first ``bands * rows`` bins, with ``rows`` bins per band.

    Equal bins give different keys in different bands, so all bands can share one key space (Leskovec et al., ch. 3.4).
    """
    values = sketches[:, : bands * rows].reshape(len(sketches), bands, rows)
    keys = np.broadcast_to(splitmix64(np.uint64(0), np.arange(1, bands + 1, dtype=np.uint64)), values.shape[:2])
    for row in range(rows):
        keys = mix(keys ^ values[:, :, row]) + GOLDEN
    return mix(keys)
