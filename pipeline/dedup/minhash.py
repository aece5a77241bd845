"""MinHash sketches of documents, fast: about one hash a shingle, not one a shingle and bin.

The scheme is fast similarity sketching (Dahlgaard, Knudsen and Thorup 2017, "Fast Similarity Sketching"). In round r
every shingle falls into one bin, with a value; a bin takes the least value of the first round that reaches it. Bins
that a number of rounds left empty take the least of all the document's shingles under a hash of their own, as in
MinHash (Broder 1997). A bin of a union is so the lesser of the two bins, whatever the sizes of the sets, and two
sketches agree in a bin with a probability of exactly the Jaccard similarity of the sets of shingles, with no more
variance than MinHash of as many hashes, for documents of a single shingle too.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from artefacts.hashing import Hashes, mix

#: No shingle reached the bin.
_EMPTY = np.uint32(0xFFFFFFFF)
#: Rounds before bins get hashes of their own: the work of a short document is least about here.
_ROUNDS = 32
#: Hashes of bins of their own that are computed at once.
_BLOCK = 1 << 21
_SALT = 0x9E3779B97F4A7C15

Sketches = NDArray[np.uint32]


def sketch(shingles: Hashes, owner: NDArray[np.int64], documents: int, bins: int) -> Sketches:
    """Sketches of documents, [documents, bins]; all ones for a document without a shingle.

    Args:
        shingles: well mixed 64-bit hashes; repeats do no harm.
        owner: the document of each, ascending.
        documents: how many there are.
        bins: of a sketch.
    """
    grid = np.full((documents, bins), _EMPTY)
    flat = grid.reshape(-1)
    factors = _factors(_ROUNDS)
    for turn in range(_ROUNDS):
        if not len(shingles):
            return grid
        # The inputs are mixed already: a product's upper bits are as good as another hash.
        hashes = shingles * factors[turn]
        place = ((hashes >> np.uint64(32)) * np.uint64(bins) >> np.uint64(32)).astype(np.int64)
        place += owner * bins
        # Not the bits that chose the bin.
        values = np.minimum((hashes >> np.uint64(8)).astype(np.uint32), _EMPTY - np.uint32(1))
        if turn:
            free = np.flatnonzero(flat[place] == _EMPTY)
            place, values = place[free], values[free]
        np.minimum.at(flat, place, values)
        # To look costs as much as half a round of a short document.
        if turn < 4 or turn % 4 == 3:
            wanting = (grid == _EMPTY).any(axis=1)[owner]
            shingles, owner = shingles[wanting], owner[wanting]
    _fill(grid, shingles, owner)
    return grid


@lru_cache(maxsize=8)
def _factors(count: int, first: int = 1) -> Hashes:
    """Random odd numbers, the same ones always."""
    return mix(np.arange(first, first + count, dtype=np.uint64) * np.uint64(_SALT)) | np.uint64(1)


def _fill(grid: Sketches, shingles: Hashes, owner: NDArray[np.int64]) -> None:
    """Give each bin that is still empty the least hash of its document's shingles under a function of the bin."""
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
    """Keys [documents, bands] over the first ``bands * rows`` bins, ``rows`` of them a band.

    Keys of different bands differ, so that all bands share one space of keys (Leskovec et al., ch. 3.4).
    """
    values = sketches[:, : bands * rows].reshape(len(sketches), bands, rows)
    keys = np.broadcast_to(mix(np.arange(1, bands + 1, dtype=np.uint64) * np.uint64(_SALT)), values.shape[:2])
    for row in range(rows):
        keys = mix(keys ^ values[:, :, row]) + np.uint64(_SALT)
    return mix(keys)
