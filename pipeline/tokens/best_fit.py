"""Whole documents packed into samples of one length, with few of them cut.

Ding et al. 2024, "Fewer Truncations Improve Language Modeling": documents longer than a sample are cut into pieces of
its length, and what remains of them, like every shorter document, goes whole into the sample that it fills best,
longest first. Everything of one length is placed at once, so the work grows with the number of lengths.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

#: A stretch of a shard: its first token, and how many tokens are read. One of ``context_length`` + 1 tokens is a full
#: sample whose document goes on: its last token is only a label.
PIECE = np.dtype([("offset", "<i8"), ("length", "<i4")])


class Packing(NamedTuple):
    """The samples of one shard.

    Attributes:
        pieces: [P] of ``PIECE``, in order of samples; within one, in order of the shard.
        samples: [S+1] int64: first piece of each sample, and P at the end.
        cut: documents of more than one piece.
    """

    pieces: NDArray
    samples: NDArray[np.int64]
    cut: int


def pack(lengths: NDArray[np.int64], capacity: int) -> Packing:
    """Samples of at most ``capacity`` inputs from the documents of a shard, given by their lengths in order."""
    begins = np.cumsum(lengths) - lengths
    full = lengths // capacity
    owners = np.repeat(np.arange(len(lengths)), full)
    done = (np.arange(len(owners)) - np.repeat(np.cumsum(full) - full, full)) * capacity
    rest = lengths % capacity
    shorter = np.flatnonzero(rest)
    bins = best_fit(rest[shorter], capacity)
    order = np.argsort(bins, kind="stable")
    remains = shorter[order]
    pieces = np.empty(len(owners) + len(remains), PIECE)
    cuts, wholes = pieces[: len(owners)], pieces[len(owners) :]
    cuts["offset"] = begins[owners] + done
    cuts["length"] = capacity + (done + capacity < lengths[owners])
    wholes["offset"] = begins[remains] + (lengths - rest)[remains]
    wholes["length"] = rest[remains]
    in_bin = np.bincount(bins) if len(bins) else np.zeros(0, np.int64)
    counts = np.concatenate([np.ones(len(owners), np.int64), in_bin])
    samples = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Packing(pieces, samples, int((lengths > capacity).sum()))


def best_fit(lengths: NDArray[np.int64], capacity: int) -> NDArray[np.int64]:
    """Best-fit decreasing: the bin, from 0 without gaps, of each item of 1..``capacity``."""
    items = np.argsort(-lengths, kind="stable")
    ends = np.cumsum(np.bincount(lengths, minlength=capacity + 1)[:0:-1])
    bins = np.empty(len(lengths), np.int64)
    rooms = _Rooms(capacity)
    first = 0
    for length, end in zip(range(capacity, 0, -1), ends.tolist(), strict=True):
        todo, first = items[first:end], end
        while len(todo):
            room, per_bin, taken = rooms.take(length, len(todo))
            put, todo = todo[: per_bin * len(taken)], todo[per_bin * len(taken) :]
            bins[put] = np.repeat(taken, per_bin)[: len(put)]
            whole, over = divmod(len(put), per_bin)
            rooms.add(room - per_bin * length, taken[:whole])
            rooms.add(room - over * length, taken[whole:])
    return bins


class _Rooms:
    """Open bins by the room that is left in them."""

    def __init__(self, capacity: int) -> None:
        self._capacity, self._num_bins = capacity, 0
        self._bins: list[list[NDArray[np.int64]]] = [[] for _ in range(capacity + 1)]
        self._open = np.zeros(capacity + 1, dtype=bool)

    def take(self, length: int, items: int) -> tuple[int, int, NDArray[np.int64]]:
        """The tightest bins for items of one length: their room, how many items each takes, and the bins."""
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

    def add(self, room: int, bins: NDArray[np.int64]) -> None:
        """Bins that have so much room now; a full bin is closed."""
        if room and len(bins):
            self._bins[room].append(bins)
            self._open[room] = True
