"""Pack documents into fixed-length samples, so that few documents are cut.

The method is best-fit packing (Ding et al. 2024, "Fewer Truncations Improve Language Modeling"). Documents longer than
a sample are cut into sample-length pieces. The remainders and all shorter documents are then placed, longest first.
Each goes into the fullest sample that still has room for it. Pieces of the same length are placed together, so the
number of steps depends on the number of distinct lengths, not on the number of documents.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

#: A range of tokens in a shard: its first token and its length. A piece of ``context_length`` + 1 tokens fills a
#: complete sample, and its document continues in another piece. Its last token serves only as a label.
PIECE = np.dtype([("offset", "<i8"), ("length", "<i4")])


class Packing(NamedTuple):
    """The samples of one shard.

    Attributes:
        pieces: [P] of ``PIECE``, in sample order, and in shard order within each sample.
        samples: [S+1] int64: first piece of each sample, with P at the end.
        cut: number of documents that are split into more than one piece.
    """

    pieces: NDArray
    samples: NDArray[np.int64]
    cut: int


def pack(lengths: NDArray[np.int64], capacity: int) -> Packing:
    """Pack a shard's documents into samples of at most ``capacity`` inputs, given the documents' lengths."""
    begins = np.cumsum(lengths) - lengths
    full = lengths // capacity
    owners = np.repeat(np.arange(len(lengths)), full)
    starts = (np.arange(len(owners)) - np.repeat(np.cumsum(full) - full, full)) * capacity
    rest = lengths % capacity
    shorter = np.flatnonzero(rest)
    bins = best_fit(rest[shorter], capacity)
    order = np.argsort(bins, kind="stable")
    remains = shorter[order]
    pieces = np.empty(len(owners) + len(remains), PIECE)
    full_pieces, rests = pieces[: len(owners)], pieces[len(owners) :]
    full_pieces["offset"] = begins[owners] + starts
    full_pieces["length"] = capacity + (starts + capacity < lengths[owners])
    rests["offset"] = begins[remains] + (lengths - rest)[remains]
    rests["length"] = rest[remains]
    in_bin = np.bincount(bins) if len(bins) else np.zeros(0, np.int64)
    counts = np.concatenate([np.ones(len(owners), np.int64), in_bin])
    samples = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Packing(pieces, samples, int((lengths > capacity).sum()))


def best_fit(lengths: NDArray[np.int64], capacity: int) -> NDArray[np.int64]:
    """Assign items to bins by best-fit decreasing. Returns each item's bin. Lengths range from 1 to ``capacity``.

    Bin numbers start at 0 and have no gaps.
    """
    items = np.argsort(-lengths, kind="stable")
    ends = np.cumsum(np.bincount(lengths, minlength=capacity + 1)[:0:-1])
    bins = np.empty(len(lengths), np.int64)
    free = _FreeSpace(capacity)
    first = 0
    for length, end in zip(range(capacity, 0, -1), ends.tolist(), strict=True):
        todo, first = items[first:end], end
        while len(todo):
            space, per_bin, chosen = free.pop(length, len(todo))
            placed, todo = todo[: per_bin * len(chosen)], todo[per_bin * len(chosen) :]
            bins[placed] = np.repeat(chosen, per_bin)[: len(placed)]
            num_full, rest = divmod(len(placed), per_bin)
            free.add(space - per_bin * length, chosen[:num_full])
            free.add(space - rest * length, chosen[num_full:])
    return bins


class _FreeSpace:
    """Open bins, grouped by the space left in them."""

    def __init__(self, capacity: int) -> None:
        self._capacity, self._num_bins = capacity, 0
        self._bins: list[list[NDArray[np.int64]]] = [[] for _ in range(capacity + 1)]
        self._open = np.zeros(capacity + 1, dtype=bool)

    def pop(self, length: int, items: int) -> tuple[int, int, NDArray[np.int64]]:
        """Remove the tightest open bins with room for items of this length, or create new bins.

        Returns the space in each bin, the number of items that fit into each bin, and the bins. They may not have room
        for all ``items``.
        """
        at = int(self._open[length:].argmax()) + length
        if not self._open[at]:
            per_bin = self._capacity // length
            new = np.arange(self._num_bins, self._num_bins + -(-items // per_bin), dtype=np.int64)
            self._num_bins += len(new)
            return self._capacity, per_bin, new
        bins, per_bin = np.concatenate(self._bins[at]), at // length
        wanted = -(-items // per_bin)
        self._bins[at] = [bins[wanted:]] if len(bins) > wanted else []
        self._open[at] = len(bins) > wanted
        return at, per_bin, bins[:wanted]

    def add(self, space: int, bins: NDArray[np.int64]) -> None:
        """Add bins with this much space left. Full bins are discarded."""
        if space and len(bins):
            self._bins[space].append(bins)
            self._open[space] = True
