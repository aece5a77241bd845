"""Assign numbers to the words of a column of texts, without creating a Python object per word.

Texts are split into chunks at whitespace (``str.isspace``). Distinct chunks are looked up in a vocabulary, which
persists across columns and is cleared when it grows too large. Only new chunks are split into words (see
``word_splitting.py``).
"""

import string
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from itertools import count, islice
from typing import NamedTuple

import numpy as np
import pyarrow

from pipeline.cleaning import column
from pipeline.cleaning.column import Bytes, Column, Ints, Mask, Spans
from pipeline.cleaning.word_splitting import Splitter

#: The stop words in Rae et al. 2021, appendix A.1.1. ``Vocabulary.stops`` has a bit for each word.
STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
#: Marks that end a sentence if they stand as a separate word.
SENTENCE_ENDS = frozenset(".!?։؟۔।॥።‼‽⁇⁈⁉⸮﹒﹖﹗！．？｡。")
#: Words that consist only of these marks are symbols. The list is datatrove's, without the marks of a few scripts. A
#: bullet is a word.
SYMBOLS = frozenset(string.punctuation + "«»´—–“”„’…、〈〉《》「」【】％（），１：；～∶►━") | SENTENCE_ENDS
#: The vocabulary is cleared when it has more chunks than this, which take about 150 MB.
_LIMIT = 1 << 19


def _spaces() -> tuple[Mask, Mask]:
    codes = np.array([chr(code).isspace() for code in range(0x3001)])
    ascii_spaces = np.zeros(256, bool)
    ascii_spaces[:128] = codes[:128]
    return ascii_spaces, codes


_ASCII_SPACE, _SPACE = _spaces()
_ASCII_LETTER = np.array([code < 128 and chr(code).isalpha() for code in range(256)])


def spaces(content: Bytes) -> Mask:
    """Return a mask of the bytes that are part of whitespace characters."""
    is_space = _ASCII_SPACE[content]
    leads = np.flatnonzero((content >= 0xC2) & (content <= 0xE3))
    codes = column.wide(content, leads)
    at = leads[_SPACE[np.minimum(codes, 0x3000)] & (codes <= 0x3000)]
    for step in range(3):
        inside = at[(step < 2) | (content[at] >= 0xE0)]
        is_space[inside + step] = True
    return is_space


def chunks(texts: Column, blank: Mask) -> Spans:
    """Return the runs of non-whitespace characters within each text. ``blank`` is the result of ``spaces``."""
    offsets, content = texts
    fresh = np.zeros(len(content) + 1, bool)
    fresh[offsets] = True
    inside = ~blank
    begins, ends = inside.copy(), inside.copy()
    begins[1:] &= fresh[1:-1] | blank[:-1]
    ends[:-1] &= fresh[1:-1] | blank[1:]
    starts, stops = np.flatnonzero(begins), np.flatnonzero(ends) + 1
    return Spans(starts, stops, np.searchsorted(starts, offsets).astype(np.int64))


class Words(NamedTuple):
    """The chunks and words of a column. Their numbers are valid until the next call to ``Vocabulary.words``.

    Attributes:
        chunks: positions of the chunks.
        chunk_ids: [chunks] the number of each chunk.
        ids: [words] the number of each word.
        firsts: [texts + 1] the first word of each text.
    """

    chunks: Spans
    chunk_ids: Ints
    ids: Ints
    firsts: Ints


class Vocabulary:
    """Assigns numbers to chunks and words, and stores the properties that the rules need."""

    def __init__(self) -> None:
        self._splitter = Splitter()
        self._empty()

    def _empty(self) -> None:
        # A new key gets the next number.
        self._chunks: defaultdict[str, int] = defaultdict(count().__next__)
        self._words: defaultdict[str, int] = defaultdict(count().__next__)
        self._by_chunk = _Table(6)
        self._by_word = _Table(5)
        # The words of all chunks, one chunk after another.
        self._flat = _Table(1)
        # Stop words have the first numbers.
        self._word_ids(STOP_WORDS)

    @property
    def characters(self) -> Ints:
        """Number of characters in each word."""
        return self._by_word.columns[0]

    @property
    def kinds(self) -> Ints:
        """Kind of each word: 2 for a mark that ends a sentence, 1 for other punctuation, otherwise 0."""
        return self._by_word.columns[1]

    @property
    def counts(self) -> Ints:
        """Number of words in each chunk."""
        return self._by_chunk.columns[0]

    @property
    def solid(self) -> Ints:
        """For each chunk, the number of *solid* words, which don't consist only of symbols."""
        return self._by_chunk.columns[2]

    @property
    def solid_characters(self) -> Ints:
        """For each chunk, the total number of characters in its solid words (see ``solid``)."""
        return self._by_chunk.columns[3]

    @property
    def alphabetic(self) -> Ints:
        """For each chunk, the number of words that contain a letter."""
        return self._by_chunk.columns[4]

    @property
    def stops(self) -> Ints:
        """For each chunk, the set of stop words that it contains, as bits."""
        return self._by_chunk.columns[5]

    def words(self, texts: pyarrow.LargeStringArray) -> Words:
        """Split a column into words, and add new chunks and words to the vocabulary."""
        if len(self._chunks) > _LIMIT:
            self._empty()
        seen = column.view(texts)
        blank = spaces(seen.content)
        cut = chunks(seen, blank)
        # With the whitespace removed, the chunks form a column, because each chunk's bytes are contiguous.
        joined = column.build(column.running(cut.stops - cut.starts), seen.content[~blank])
        codes, distinct = column.encode(joined)
        chunk_ids = self._numbers(distinct)[codes]
        counts = self.counts[chunk_ids]
        firsts = column.running(counts)
        within = np.arange(firsts[-1]) - np.repeat(firsts[:-1] - self._by_chunk.columns[1][chunk_ids], counts)
        return Words(cut, chunk_ids, self._flat.columns[0][within], firsts[cut.firsts])

    def _numbers(self, distinct: pyarrow.LargeStringArray) -> Ints:
        """Return each chunk's number, after adding new chunks to the vocabulary."""
        known = len(self._chunks)
        # Going through numpy makes the conversion from Arrow to Python strings several times faster.
        chunks = distinct.to_numpy(zero_copy_only=False).tolist()
        numbers = np.fromiter(map(self._chunks.__getitem__, chunks), np.int64, len(chunks))
        if len(self._chunks) > known:
            self._learn([chunks[at] for at in np.flatnonzero(numbers >= known).tolist()])
        return numbers

    def _learn(self, chunks: list[str]) -> None:
        """Add new chunks."""
        # Use flat lists, because a list per chunk would keep triggering the garbage collector.
        flat: list[str] = []
        ends: list[int] = []
        for chunk in chunks:
            flat += self._splitter.split(chunk)
            ends.append(len(flat))
        ids = self._word_ids(flat)
        firsts = np.array([0, *ends])
        summed = [column.sums(values[ids], firsts) for values in self._by_word.columns[2:]]
        stops = np.bitwise_or.reduceat(np.where(ids < len(STOP_WORDS), 1 << ids, 0), firsts[:-1])
        self._by_chunk.append(np.stack([np.diff(firsts), firsts[:-1] + len(self._flat), *summed, stops]))
        self._flat.append(ids[None])

    def _word_ids(self, words: Sequence[str]) -> Ints:
        known = len(self._words)
        ids = np.fromiter(map(self._words.__getitem__, words), np.int64, len(words))
        if len(self._words) > known:
            self._by_word.append(_traits(list(islice(reversed(self._words), len(self._words) - known))[::-1]))
        return ids


def _traits(words: list[str]) -> Ints:
    """Return each word's properties [5, words]: length, kind, is solid, length if solid (else 0), and has a letter."""
    offsets, content = column.view(pyarrow.array(words, pyarrow.large_string()))
    sizes = np.diff(offsets)
    # Most words have only ASCII letters, so their properties are known.
    plain = column.sums(_ASCII_LETTER[content], offsets) == sizes
    one, none = np.ones_like(sizes), np.zeros_like(sizes)
    traits = np.stack([sizes, none, one, sizes, one])
    for at in np.flatnonzero(~plain).tolist():
        traits[:, at] = _traits_of(words[at])
    return traits


def _traits_of(word: str) -> tuple[int, ...]:
    size, solid = len(word), not SYMBOLS.issuperset(word)
    return size, _kind(word), solid, solid * size, any(map(str.isalpha, word))


def _kind(word: str) -> int:
    if word in SENTENCE_ENDS:
        return 2
    return int(not word[0].isalnum() and all(unicodedata.category(character)[0] == "P" for character in word))


class _Table:
    """An append-only table of integers, stored by column."""

    def __init__(self, width: int) -> None:
        self._columns = np.zeros((width, 1024), np.int64)
        self._used = 0

    def __len__(self) -> int:
        return self._used

    def append(self, columns: Ints) -> None:
        """Append rows from an array of shape [width, rows]."""
        end = self._used + columns.shape[1]
        if end > self._columns.shape[1]:
            room = np.zeros((len(self._columns), 2 * end), np.int64)
            room[:, : self._used] = self.columns
            self._columns = room
        self._columns[:, self._used : end] = columns
        self._used = end

    @property
    def columns(self) -> Ints:
        """The columns, [width, rows]."""
        return self._columns[:, : self._used]
