"""Hash the word n-grams (here called sequences) of a column of texts, and look them up in a set of known sequences.

A word is a run of letters, digits and non-ASCII characters other than typographic marks. ASCII case is ignored. A
text's sequences are its runs of ``words`` consecutive words. A text with fewer words has a single, shorter sequence.

The comparison follows the n-gram overlap rule of the GPT-3 paper (Brown et al. 2020, appendix C). The hashes are 64-bit
polynomial rolling hashes. They are computed in numpy for all words of an Arrow column at once, from prefix sums.
"""

import hashlib
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import pyarrow
import pyarrow.compute as compute
from numpy.typing import NDArray

from artefacts.hashing import Hashes, inverse, mix, powers

#: Bases of the polynomial hashes, modulo 2^64.
_BASE = 0x9E3779B97F4A7C15
_WORD_BASE = 0xD1342543DE82EF95
#: Bytes of text to process at a time, so that the arrays fit in the CPU cache.
_RUN_BYTES = 1 << 20
#: Words with more bytes than this are hashed one by one.
_LONG_WORD = 256


def _tables() -> tuple[NDArray[np.bool_], NDArray[np.uint8]]:
    """Return two tables indexed by byte: whether the byte is part of a word, and its lowercase form."""
    code = np.arange(256)
    digit = (code >= ord("0")) & (code <= ord("9"))
    upper = (code >= ord("A")) & (code <= ord("Z"))
    lower = (code >= ord("a")) & (code <= ord("z"))
    return digit | upper | lower | (code >= 128), np.where(upper, code + 32, code).astype(np.uint8)


_IN_WORD, _FOLDED = _tables()

#: Masks of the first 0 to 8 bytes of a 64-bit number.
_FIRST = np.array([(1 << 8 * count) - 1 for count in range(9)], np.uint64)


_powers = lru_cache(maxsize=8)(powers)


def runs(texts: pyarrow.LargeStringArray) -> Iterator[pyarrow.LargeStringArray]:
    """Yield the texts in nonempty slices of about ``_RUN_BYTES``."""
    ends = np.cumsum(np.asarray(compute.binary_length(texts), dtype=np.int64))
    at = 0
    while at < len(texts):
        done = int(ends[at - 1]) if at else 0
        stop = max(int(np.searchsorted(ends, done + _RUN_BYTES, side="right")), at + 1)
        yield texts.slice(at, stop - at)
        at = stop


def _words(texts: pyarrow.LargeStringArray) -> tuple[Hashes, NDArray[np.int64]]:
    """Return the hashes of a column's words, and the index of each text's first word (with the total at the end)."""
    _, places, data = texts.buffers()
    offsets = np.frombuffer(places, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    content = np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]] if data else np.zeros(0, np.uint8)
    offsets = offsets - offsets[0]
    inside = np.zeros(len(content) + 2, dtype=bool)
    inside[1:-1] = _IN_WORD[content]
    _leave_out_marks(content, inside[1:-1])
    # A text's first byte begins a new word, even if the previous text ends in a word.
    fresh = np.zeros(len(content) + 1, dtype=bool)
    fresh[offsets] = True
    starts = np.flatnonzero(inside[1:-1] & (fresh[:-1] | ~inside[:-2]))
    stops = np.flatnonzero(inside[1:-1] & (fresh[1:] | ~inside[2:])) + 1
    return _word_hashes(content, starts, stops - starts), np.searchsorted(starts, offsets).astype(np.int64)


def _word_hashes(content: NDArray[np.uint8], starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> Hashes:
    """Hash the words at these positions, eight bytes per step. Each step processes all words that have bytes left."""
    folded = np.zeros(len(content) + 8, np.uint8)
    folded[: len(content)] = _FOLDED[content]
    eights = np.ndarray((len(content) + 1,), "<u8", folded, strides=(1,))
    hashes = mix((eights[starts] & _FIRST[np.minimum(lengths, 8)]) + lengths.astype(np.uint64) * np.uint64(_BASE))
    left, at = np.flatnonzero((lengths > 8) & (lengths <= _LONG_WORD)), 8
    while len(left):
        rest = lengths[left] - at
        hashes[left] = mix(
            hashes[left] * np.uint64(_WORD_BASE) + (eights[starts[left] + at] & _FIRST[np.minimum(rest, 8)])
        )
        left, at = left[rest > 8], at + 8
    for word in np.flatnonzero(lengths > _LONG_WORD):
        content_of_word = folded[starts[word] : starts[word] + lengths[word]]
        hashes[word] = int.from_bytes(hashlib.blake2b(content_of_word.tobytes(), digest_size=8).digest(), "little")
    return hashes


#: Marks that separate words: the second UTF-8 bytes of marks in U+0080 to U+00BF, and the third UTF-8 bytes of marks in
#: U+3000 to U+303F.
_LATIN_MARKS = np.frombuffer("\u00a0¡§«¶·»¿".encode(), np.uint8)[1::2]
_CJK_MARKS = np.frombuffer("\u3000、。「」『』".encode(), np.uint8)[2::3]


def _leave_out_marks(content: NDArray[np.uint8], inside: NDArray[np.bool_]) -> None:
    """Clear ``inside`` at typographic spaces and marks (U+2000 to U+206F and a few others), in place."""
    leads = np.flatnonzero(content == 0xC2)
    marks = leads[np.isin(content[leads + 1], _LATIN_MARKS)]
    inside[marks] = inside[marks + 1] = False
    leads = np.flatnonzero((content == 0xE2) | (content == 0xE3))
    first, second, third = content[leads], content[leads + 1], content[leads + 2]
    general = (first == 0xE2) & ((second == 0x80) | ((second == 0x81) & (third < 0xB0)))
    marks = leads[general | ((first == 0xE3) & (second == 0x80) & np.isin(third, _CJK_MARKS))]
    inside[marks] = inside[marks + 1] = inside[marks + 2] = False


def sequences(column: pyarrow.ChunkedArray, words: int) -> tuple[Hashes, NDArray[np.int64]]:
    """Return the hashes of all word sequences in a column of texts, and the index of each sequence's text.

    A text without words has no sequences. A text's sequences may repeat.
    """
    hashes_of_runs, owners, texts = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)], 0
    for chunk in column.cast(pyarrow.large_string()).chunks:
        for run in runs(chunk):
            hashes, owner = _sequences(*_words(run), words)
            hashes_of_runs.append(hashes)
            owners.append(owner + texts)
            texts += len(run)
    return np.concatenate(hashes_of_runs), np.concatenate(owners)


def word_counts(texts: pyarrow.LargeStringArray) -> NDArray[np.int64]:
    """Return the number of words in each text."""
    counts = [np.zeros(0, np.int64), *(np.diff(_words(run)[1]) for run in runs(texts))]
    return np.concatenate(counts)


def _sequences(hashes: Hashes, firsts: NDArray[np.int64], words: int) -> tuple[Hashes, NDArray[np.int64]]:
    """Return the hashes of the sequences and the index of each sequence's text, given the output of ``_words``."""
    counts = np.diff(firsts)
    length = np.minimum(counts, words)
    # A sequence begins at each word that is followed by enough words of the same text.
    many = np.where(counts > 0, counts - length + 1, 0)
    owner = np.repeat(np.arange(len(counts)), many)
    begin = np.arange(int(many.sum())) + np.repeat(firsts[:-1] - np.cumsum(many) + many, many)
    room = 1 << max(len(hashes), 1).bit_length()
    sums = np.zeros(len(hashes) + 1, np.uint64)
    np.cumsum(hashes * _powers(_WORD_BASE, room)[: len(hashes)], out=sums[1:])
    total = (sums[begin + length[owner]] - sums[begin]) * _powers(inverse(_WORD_BASE), room)[begin]
    # The hash includes the length, so a short text doesn't match a sequence that begins with it.
    return mix(total + length[owner].astype(np.uint64) * np.uint64(_BASE)), owner


class Known:
    """A set of sequences with fast lookups.

    Attributes:
        distinct: sorted distinct hashes.
    """

    def __init__(self, hashes: Hashes) -> None:
        self.distinct = np.unique(hashes)
        # Most of a text's sequences are not in the set. A table indexed by 22 bits of the hash rules them out quickly.
        self._possible = np.zeros(1 << 22, dtype=bool)
        self._possible[self.distinct >> np.uint64(42)] = True

    def find(self, hashes: Hashes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the indices of those ``hashes`` that are in the set, and the index in ``distinct`` of each."""
        indices = np.flatnonzero(self._possible[hashes >> np.uint64(42)])
        if not len(self.distinct):
            return indices, indices
        at = np.minimum(np.searchsorted(self.distinct, hashes[indices]), len(self.distinct) - 1)
        same = self.distinct[at] == hashes[indices]
        return indices[same], at[same]
