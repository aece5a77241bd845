"""How much of a held-out document also stands in the training documents, by sequences of words.

A word is a run of letters, digits and characters beyond ASCII other than typographic marks, ASCII case ignored; a
document's sequences are its distinct runs of ``words`` words (one shorter run for a document with fewer words).
Everything is hashed to 64 bits by numpy, over the UTF-8 bytes of an Arrow column, with sums of prefixes; no Python loop
sees a word. Sources: the n-gram overlap rule of the GPT-3 paper (Brown et al. 2020, appendix C) for what is compared;
polynomial rolling hashes for how.
"""

import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow
from numpy.typing import NDArray

from artefacts import publish

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
    _leave_out_marks(content, inside)
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


#: Of the marks that stand between words: in U+0080 to U+00BF the second byte, in U+3000 to U+303F the third.
_LATIN_MARKS = np.frombuffer("\u00a0¡§«¶·»¿".encode(), np.uint8)[1::2]
_CJK_MARKS = np.frombuffer("\u3000、。「」『』".encode(), np.uint8)[2::3]


def _leave_out_marks(content: NDArray[np.uint8], inside: NDArray[np.bool_]) -> None:
    """Take typographic spaces and marks (U+2000 to U+206F and a few others) out of words, in place."""
    leads = np.flatnonzero(content == 0xC2)
    marks = leads[np.isin(content[leads + 1], _LATIN_MARKS)]
    inside[marks] = inside[marks + 1] = False
    leads = np.flatnonzero((content == 0xE2) | (content == 0xE3))
    first, second, third = content[leads], content[leads + 1], content[leads + 2]
    general = (first == 0xE2) & ((second == 0x80) | ((second == 0x81) & (third < 0xB0)))
    marks = leads[general | ((first == 0xE3) & (second == 0x80) & np.isin(third, _CJK_MARKS))]
    inside[marks] = inside[marks + 1] = inside[marks + 2] = False


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


class Known:
    """Some sequences, and a quick answer to which of many others are among them.

    Attributes:
        distinct: their hashes, sorted.
    """

    def __init__(self, hashes: Hashes) -> None:
        self.distinct = np.unique(hashes)
        # Most sequences of a text are not among them: a table over 22 bits of the hash rules those out at once.
        self._possible = np.zeros(1 << 22, dtype=bool)
        self._possible[self.distinct >> np.uint64(42)] = True

    def find(self, hashes: Hashes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Places in ``hashes`` of those that are known, and the place of each in ``distinct``."""
        places = np.flatnonzero(self._possible[hashes >> np.uint64(42)])
        if not len(self.distinct):
            return places, places
        at = np.minimum(np.searchsorted(self.distinct, hashes[places]), len(self.distinct) - 1)
        same = self.distinct[at] == hashes[places]
        return places[same], at[same]


_PAIR = np.dtype([("owner", np.int64), ("hash", np.uint64)])


class HeldOut:
    """Distinct sequences of the held-out documents, and which of them the training documents turned out to share.

    Attributes:
        words: length of a sequence in words.
        thinned: only one of 2**thinned sequences, chosen by its hash, is compared: a sample of the same of every text.
        distinct: the hashes of all of them, sorted.
    """

    def __init__(self, owners: NDArray[np.int64], hashes: Hashes, documents: int, words: int, thinned: int) -> None:
        """Take the distinct pairs of document and sequence, and the number of documents."""
        self._owners, self._hashes, self._documents = owners, hashes, documents
        self.words, self.thinned = words, thinned
        self._known = Known(hashes)
        self.distinct = self._known.distinct
        self._seen = np.zeros(len(self.distinct), dtype=bool)

    @classmethod
    def of(cls, columns: Iterable[pyarrow.ChunkedArray], words: int, thinned: int = 0) -> "HeldOut":
        """Those of the texts of the held-out documents, in order, in as many columns as they come."""
        documents = 0
        parts = [np.zeros(0, _PAIR)]
        for column in columns:
            hashes, owners = _thinned(*sequences(column, words), thinned)
            pairs = np.zeros(len(hashes), _PAIR)
            pairs["owner"], pairs["hash"] = owners + documents, hashes
            parts.append(np.unique(pairs))
            documents += len(column)
        every = np.concatenate(parts)
        return cls(every["owner"], every["hash"], documents, words, thinned)

    def save(self, path: Path) -> None:
        """Write what ``load`` reads; marks are not kept."""
        beside = publish.beside(path)
        facts = np.array([self._documents, self.words, self.thinned])
        with open(beside, "wb") as stream:
            np.savez(stream, owners=self._owners, hashes=self._hashes, facts=facts)
        os.replace(beside, path)

    @classmethod
    def load(cls, path: Path) -> "HeldOut":
        with np.load(path) as found:
            return cls(found["owners"], found["hashes"], *found["facts"].tolist())

    def shared(self, column: pyarrow.ChunkedArray) -> NDArray[np.int64]:
        """Places in ``distinct`` of the sequences that a column of training texts contains."""
        hashes, _ = _thinned(*sequences(column, self.words), self.thinned)
        return np.unique(self._known.find(hashes)[1])

    def mark(self, places: NDArray[np.int64]) -> None:
        """Note members of ``distinct`` that training text contains (see ``shared``)."""
        self._seen[places] = True

    def overlap(self) -> NDArray[np.float64]:
        """For each document, the share of its distinct sequences that training text contains; 0 without any."""
        seen = self._seen[np.searchsorted(self.distinct, self._hashes)]
        every = np.bincount(self._owners, minlength=self._documents)
        return np.bincount(self._owners, seen, minlength=self._documents) / np.maximum(every, 1)


def _thinned(hashes: Hashes, owners: NDArray[np.int64], bits: int) -> tuple[Hashes, NDArray[np.int64]]:
    if not bits:
        return hashes, owners
    chosen = (hashes & np.uint64((1 << bits) - 1)) == 0
    return hashes[chosen], owners[chosen]
