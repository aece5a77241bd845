"""How much of a held-out document also stands in the training documents, by sequences of words.

A word is a run of letters and digits, ASCII case ignored; a document's sequences are its distinct runs of ``words``
words (one shorter run for a document with fewer words). Everything is hashed to 64 bits by numpy, over the UTF-8
bytes of an Arrow column, with sums of prefixes; no Python loop sees a word. Sources: the n-gram overlap rule of the
GPT-3 paper (Brown et al. 2020, appendix C) for what is compared; polynomial rolling hashes for how.
"""

from collections.abc import Iterable
from functools import lru_cache

import numpy as np
import pyarrow
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

_BASE = 0x9E3779B97F4A7C15
_WORD_BASE = 0xD1342543DE82EF95
_WRAP = 1 << 64


def _tables() -> tuple[NDArray[np.bool_], Hashes]:
    """For each byte: whether it belongs to a word, and a fixed random number, the same for both cases of a letter."""
    code = np.arange(256)
    digit = (code >= ord("0")) & (code <= ord("9"))
    upper = (code >= ord("A")) & (code <= ord("Z"))
    lower = (code >= ord("a")) & (code <= ord("z"))
    folded = np.where(upper, code + 32, code).astype(np.uint64)
    return digit | upper | lower | (code >= 128), mix(folded + np.uint64(_BASE))


def mix(values: Hashes) -> Hashes:
    """A bijection that spreads 64-bit numbers evenly (the finaliser of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


_IN_WORD, _NUMBER = _tables()


@lru_cache(maxsize=8)
def _powers(base: int, count: int) -> Hashes:
    factors = np.full(count, base, np.uint64)
    factors[0] = 1
    return np.cumprod(factors, dtype=np.uint64)


def _power_of_two(count: int) -> int:
    return 1 << max(count - 1, 1).bit_length()


def _words(column: pyarrow.ChunkedArray) -> tuple[Hashes, NDArray[np.int64]]:
    """Hashes of a column's words, and for each text the number of its first word (and at the end that of all words)."""
    empty = pyarrow.array([], pyarrow.large_string())
    texts = pyarrow.concat_arrays([empty, *column.cast(pyarrow.large_string()).chunks])
    _, places, data = texts.buffers()
    offsets = np.frombuffer(places, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    content = np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]] if data else np.zeros(0, np.uint8)
    offsets = offsets - offsets[0]
    if not len(content):
        return np.zeros(0, np.uint64), np.zeros(len(offsets), np.int64)
    inside = _IN_WORD[content]
    # A text's first byte begins a word even where the text before ends in one.
    fresh = np.zeros(len(content) + 1, dtype=bool)
    fresh[offsets] = True
    begins = inside & (fresh[:-1] | ~np.concatenate([[False], inside[:-1]]))
    ends = inside & (fresh[1:] | ~np.concatenate([inside[1:], [False]]))
    starts, stops = np.flatnonzero(begins), np.flatnonzero(ends) + 1
    sums = np.zeros(len(content) + 1, np.uint64)
    room = _power_of_two(len(content))
    np.cumsum(_NUMBER[content] * _powers(_BASE, room)[: len(content)], out=sums[1:])
    down = _powers(pow(_BASE, -1, _WRAP), room)
    return mix((sums[stops] - sums[starts]) * down[starts]), np.searchsorted(starts, offsets).astype(np.int64)


def sequences(column: pyarrow.ChunkedArray, words: int) -> tuple[Hashes, NDArray[np.int64]]:
    """Hashes of the word sequences of every text of a column, and the number of the text that each is from.

    A text without a word has no sequence. Sequences of one text may repeat.
    """
    hashes, firsts = _words(column)
    counts = np.diff(firsts)
    owner = np.repeat(np.arange(len(counts)), counts)
    position = np.arange(len(hashes)) - firsts[owner] if len(hashes) else np.zeros(0, np.int64)
    length = np.minimum(counts, words)[owner]
    power = _powers(_WORD_BASE, max(words, 2))
    total = np.zeros(len(hashes), np.uint64)
    for step in range(min(words, len(hashes))):
        part = hashes[step:] * power[step]
        total[: len(hashes) - step] += np.where(step < length[: len(hashes) - step], part, np.uint64(0))
    whole = position + length <= counts[owner]
    # The length goes in, so that a short text differs from a sequence that begins like it.
    return mix(total + length.astype(np.uint64) * np.uint64(_BASE))[whole], owner[whole]


_PAIR = np.dtype([("owner", np.int64), ("hash", np.uint64)])


class HeldOut:
    """Distinct sequences of the held-out documents, and which of them the training documents turned out to share.

    Attributes:
        distinct: the hashes of all of them, sorted.
    """

    def __init__(self, columns: Iterable[pyarrow.ChunkedArray], words: int) -> None:
        """Take the texts of the held-out documents, in order, in as many columns as they come."""
        self._documents = 0
        parts = [np.zeros(0, _PAIR)]
        for column in columns:
            hashes, owners = sequences(column, words)
            pairs = np.zeros(len(hashes), _PAIR)
            pairs["owner"], pairs["hash"] = owners + self._documents, hashes
            parts.append(np.unique(pairs))
            self._documents += len(column)
        every = np.concatenate(parts)
        self._owners, self._hashes = every["owner"], every["hash"]
        self.distinct = np.unique(self._hashes)
        self._seen = np.zeros(len(self.distinct), dtype=bool)

    def mark(self, indices: NDArray[np.int64]) -> None:
        """Note members of ``distinct`` that training text contains (see ``shared``)."""
        self._seen[indices] = True

    def overlap(self) -> NDArray[np.float64]:
        """For each document, the share of its distinct sequences that training text contains; 0 without any."""
        seen = self._seen[np.searchsorted(self.distinct, self._hashes)]
        every = np.bincount(self._owners, minlength=self._documents)
        return np.bincount(self._owners, seen, minlength=self._documents) / np.maximum(every, 1)


def shared(column: pyarrow.ChunkedArray, words: int, distinct: Hashes) -> NDArray[np.int64]:
    """Places in the sorted ``distinct`` of the sequences that a column of training texts contains."""
    if not len(distinct):
        return np.zeros(0, np.int64)
    hashes, _ = sequences(column, words)
    # Most sequences are in no held-out document: a table over 22 bits of the hash rules them out at once.
    possible = np.zeros(1 << 22, dtype=bool)
    possible[distinct >> np.uint64(42)] = True
    hashes = hashes[possible[hashes >> np.uint64(42)]]
    at = np.minimum(np.searchsorted(distinct, hashes), len(distinct) - 1)
    return np.unique(at[distinct[at] == hashes])
