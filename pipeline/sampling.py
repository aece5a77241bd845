"""Seeded samples of a corpus by hash: which documents of each source are taken, in bounded memory."""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

#: Hashes and sizes (bytes) of documents, in as many pieces as they come.
Pieces = Iterator[tuple[NDArray[np.uint64], NDArray[np.int64]]]

_BINS = 1 << 16
_SHIFT = np.uint64(48)


def threshold(pieces: Callable[[], Pieces], budget: int) -> int | None:
    """The largest hash of a sample of about ``budget`` bytes of those with the smallest hashes; at least one is taken.

    ``pieces`` is called twice; no more is held than the 65,536th part of the documents. None: all of them fit.
    """
    totals = np.zeros(_BINS, np.int64)
    for hashes, sizes in pieces():
        totals += np.bincount(hashes >> _SHIFT, sizes, _BINS).astype(np.int64)
    ends = np.cumsum(totals)
    if ends[-1] <= budget:
        return None
    chosen = int(np.searchsorted(ends, budget, side="right"))
    before = int(ends[chosen] - totals[chosen])
    inside = [(h[(h >> _SHIFT) == chosen], s[(h >> _SHIFT) == chosen]) for h, s in pieces()]
    hashes, sizes = (np.concatenate(column) for column in zip(*inside, strict=True))
    order = np.argsort(hashes, kind="stable")
    count = int(np.searchsorted(before + np.cumsum(sizes[order]), budget, side="right"))
    if count:
        return int(hashes[order[count - 1]])
    # None of this bin fits: the sample ends with the bins before it.
    return int(hashes[order[0]]) if before == 0 else (chosen << 48) - 1
