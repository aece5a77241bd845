"""Words of a column's texts, numbered, without a Python object a word.

Texts are cut into chunks at white space (``str.isspace``); distinct chunks are looked up in a vocabulary that lives as
long as the process, and only chunks that it does not hold are split into words (``splitting``) one by one.
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

#: Of Rae et al. 2021, appendix A.1.1; a chunk's ``stops`` has a bit for each.
STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
#: Marks that end a sentence when they are a word.
SENTENCE_ENDS = frozenset(".!?։؟۔।॥።‼‽⁇⁈⁉⸮﹒﹖﹗！．？｡。")
#: Marks of which no word is made; those of datatrove's filters but for a few scripts', and there a bullet is a word.
SYMBOLS = frozenset(string.punctuation + "«»´—–“”„’…、〈〉《》「」【】％（），１：；～∶►━") | SENTENCE_ENDS
#: The vocabulary is emptied when it holds more chunks: about 150 MB.
_LIMIT = 1 << 19


def _spaces() -> tuple[Mask, Mask]:
    codes = np.array([chr(code).isspace() for code in range(0x3001)])
    ascii_spaces = np.zeros(256, bool)
    ascii_spaces[:128] = codes[:128]
    return ascii_spaces, codes


_ASCII_SPACE, _SPACE = _spaces()
_ASCII_LETTER = np.array([code < 128 and chr(code).isalpha() for code in range(256)])


def spaces(content: Bytes) -> Mask:
    """Which bytes belong to white space."""
    is_space = _ASCII_SPACE[content]
    leads = np.flatnonzero((content >= 0xC2) & (content <= 0xE3))
    codes = column.wide(content, leads)
    at = leads[_SPACE[np.minimum(codes, 0x3000)] & (codes <= 0x3000)]
    for step in range(3):
        inside = at[(step < 2) | (content[at] >= 0xE0)]
        is_space[inside + step] = True
    return is_space


def chunks(texts: Column, blank: Mask) -> Spans:
    """Runs without white space (``blank``: see ``spaces``), each within one text."""
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
    """A column seen as chunks and words; their numbers are those of the vocabulary that made it, until its next call.

    Attributes:
        chunks: places of the chunks.
        chunk_ids: [chunks].
        ids: [words].
        firsts: [texts + 1] each text's first word.
    """

    chunks: Spans
    chunk_ids: Ints
    ids: Ints
    firsts: Ints


class Vocabulary:
    """Numbers of chunks and words, and what the rules ask about each, kept over many columns."""

    def __init__(self) -> None:
        self._splitter = Splitter()
        self._empty()

    def _empty(self) -> None:
        # What is asked for and not known gets the next number.
        self._chunks: defaultdict[str, int] = defaultdict(count().__next__)
        self._words: defaultdict[str, int] = defaultdict(count().__next__)
        self._by_chunk = _Table(6)
        self._by_word = _Table(5)
        # Words of all chunks, one chunk after the other.
        self._flat = _Table(1)
        # The first words are the stop words.
        self._word_ids(STOP_WORDS)

    @property
    def characters(self) -> Ints:
        """By word: how many characters it has."""
        return self._by_word.columns[0]

    @property
    def kinds(self) -> Ints:
        """By word: 2 if it is a mark that ends a sentence, 1 if it is other punctuation, else 0."""
        return self._by_word.columns[1]

    @property
    def counts(self) -> Ints:
        """By chunk: its words."""
        return self._by_chunk.columns[0]

    @property
    def solid(self) -> Ints:
        """By chunk: its words but those of symbols only."""
        return self._by_chunk.columns[2]

    @property
    def solid_characters(self) -> Ints:
        """By chunk: characters of its solid words."""
        return self._by_chunk.columns[3]

    @property
    def alphabetic(self) -> Ints:
        """By chunk: its words with a letter."""
        return self._by_chunk.columns[4]

    @property
    def stops(self) -> Ints:
        """By chunk: bits of the stop words in it."""
        return self._by_chunk.columns[5]

    def words(self, texts: pyarrow.LargeStringArray) -> Words:
        """Cut a column into words, learning those that are new."""
        if len(self._chunks) > _LIMIT:
            self._empty()
        seen = column.view(texts)
        blank = spaces(seen.content)
        cut = chunks(seen, blank)
        # The chunks themselves, without what is between them, are a column; a chunk's bytes are contiguous.
        joined = column.build(column.running(cut.stops - cut.starts), seen.content[~blank])
        codes, distinct = column.encode(joined)
        chunk_ids = self._numbers(distinct)[codes]
        counts = self.counts[chunk_ids]
        firsts = column.running(counts)
        within = np.arange(firsts[-1]) - np.repeat(firsts[:-1] - self._by_chunk.columns[1][chunk_ids], counts)
        return Words(cut, chunk_ids, self._flat.columns[0][within], firsts[cut.firsts])

    def _numbers(self, distinct: pyarrow.LargeStringArray) -> Ints:
        """Numbers of chunks, which the vocabulary learns where they are new."""
        known = len(self._chunks)
        # By way of numpy, Arrow makes Python strings several times faster.
        chunks = distinct.to_numpy(zero_copy_only=False).tolist()
        numbers = np.fromiter(map(self._chunks.__getitem__, chunks), np.int64, len(chunks))
        if len(self._chunks) > known:
            self._learn([chunks[at] for at in np.flatnonzero(numbers >= known).tolist()])
        return numbers

    def _learn(self, chunks: list[str]) -> None:
        """Add rows for new chunks."""
        # Flat lists: a list a chunk, all kept at once, would set off the garbage collector again and again.
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
    """[5, words] characters, kind, whether solid, characters if solid, whether it has a letter."""
    offsets, content = column.view(pyarrow.array(words, pyarrow.large_string()))
    sizes = np.diff(offsets)
    # Most words are of ASCII letters only, of which nothing else need be asked.
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
    """Rows of integers, in columns, to which rows are appended."""

    def __init__(self, width: int) -> None:
        self._columns = np.zeros((width, 1024), np.int64)
        self._used = 0

    def __len__(self) -> int:
        return self._used

    def append(self, columns: Ints) -> None:
        """Add rows, given as [width, rows]."""
        end = self._used + columns.shape[1]
        if end > self._columns.shape[1]:
            room = np.zeros((len(self._columns), 2 * end), np.int64)
            room[:, : self._used] = self.columns
            self._columns = room
        self._columns[:, self._used : end] = columns
        self._used = end

    @property
    def columns(self) -> Ints:
        """[width, rows]"""
        return self._columns[:, : self._used]
