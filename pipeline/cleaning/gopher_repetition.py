"""Gopher's repetition rules (Rae et al. 2021, table A1), for a column of texts.

Fractions and counts are measured as in datatrove. Every occurrence except the first is a duplicate. Lines are separated
by newlines, and paragraphs by empty lines. Empty lines don't count. n-grams are sequences of words. Duplicate n-grams
are counted from left to right, without overlap.

Equal n-grams begin with equal (n-1)-grams, so for each n, only positions whose (n-1)-gram occurs at least twice in its
text are considered. From n = 3 on, few positions are left.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow

from configs.schema.clean import GopherRepetitionSection
from pipeline.cleaning import column
from pipeline.cleaning.column import Column, Fault, Ints, Mask, Spans
from pipeline.cleaning.words import Vocabulary, Words

_KEY = "data.clean.gopher_repetition"


def faults(
    texts: pyarrow.LargeStringArray, words: Words, vocabulary: Vocabulary, section: GopherRepetitionSection
) -> list[Fault]:
    """Return the faults, in order. ``words`` holds the texts' words, as split by ``vocabulary``."""
    seen = column.view(texts)
    size = np.maximum(column.lengths(texts), 1)
    lines = _filled(column.lines(seen))
    paragraphs = _paragraphs(lines, seen, words)
    paragraph_share, paragraph_characters = _duplicates(seen, paragraphs)
    line_share, line_characters = _duplicates(seen, lines)
    line_faults = [
        Fault(
            f"more duplicate paragraphs than {_KEY}.duplicate_paragraphs",
            paragraph_share > section.duplicate_paragraphs,
        ),
        Fault(
            f"more characters in duplicate paragraphs than {_KEY}.duplicate_paragraph_chars",
            paragraph_characters / size > section.duplicate_paragraph_chars,
        ),
        Fault(f"more duplicate lines than {_KEY}.duplicate_lines", line_share > section.duplicate_lines),
        Fault(
            f"more characters in duplicate lines than {_KEY}.duplicate_line_chars",
            line_characters / size > section.duplicate_line_chars,
        ),
    ]
    return line_faults + _ngram_faults(_Grams.of(words, vocabulary), size, section)


def _filled(lines: Spans) -> Spans:
    """Return the lines that are not empty."""
    filled = lines.stops > lines.starts
    return Spans(lines.starts[filled], lines.stops[filled], column.running(filled)[lines.firsts])


def _paragraphs(lines: Spans, seen: Column, words: Words) -> Spans:
    """Return the runs of consecutive nonempty lines, without the whitespace at the beginning and end of each text."""
    chunks, texts = words.chunks, len(seen.offsets) - 1
    some = chunks.firsts[1:] > chunks.firsts[:-1]
    begin, end = np.zeros(texts, np.int64), np.zeros(texts, np.int64)
    begin[some] = chunks.starts[chunks.firsts[:-1][some]]
    end[some] = chunks.stops[chunks.firsts[1:][some] - 1]
    owner = column.owners(lines.firsts)
    apart = np.ones(len(owner) + 1, bool)
    apart[1:-1] = (owner[1:] != owner[:-1]) | (lines.starts[1:] > lines.stops[:-1] + 1)
    starts, stops, owner = lines.starts[apart[:-1]], lines.stops[apart[1:]], owner[apart[:-1]]
    starts, stops = np.maximum(starts, begin[owner]), np.minimum(stops, end[owner])
    kept = stops > starts
    return Spans(starts[kept], stops[kept], np.searchsorted(owner[kept], np.arange(texts + 1)))


def _duplicates(seen: Column, spans: Spans) -> tuple[np.ndarray, Ints]:
    """Return, for each text, the fraction of its spans that are duplicates and the number of characters in them."""
    texts = column.pieces(seen.content, spans.starts, spans.stops)
    codes, _ = column.encode(texts)
    owner = column.owners(spans.firsts)
    again = ~column.fresh(column.encode(pyarrow.array(owner << 32 | codes))[0])
    characters = column.sums(np.where(again, column.lengths(texts), 0), spans.firsts)
    return column.sums(again, spans.firsts) / np.maximum(np.diff(spans.firsts), 1), characters


class _Level(NamedTuple):
    """n-grams that may occur more than once in their text.

    Attributes:
        n: number of words per n-gram.
        places: index of the first word of each n-gram, ascending.
        codes: number of each (text, n-gram) pair. Distinct pairs are numbered in order of first occurrence.
        counts: number of occurrences of each code.
    """

    n: int
    places: Ints
    codes: Ints
    counts: Ints


class _Grams(NamedTuple):
    """The words of a column.

    Attributes:
        ids, firsts: as in ``Words``.
        owner: [words] the text that each word belongs to.
        before: [words + 1] total characters in all words before each word.
    """

    ids: Ints
    firsts: Ints
    owner: Ints
    before: Ints

    @classmethod
    def of(cls, words: Words, vocabulary: Vocabulary) -> "_Grams":
        before = column.running(vocabulary.characters[words.ids])
        return cls(words.ids, words.firsts, column.owners(words.firsts), before)

    def levels(self, most: int) -> Iterator[_Level]:
        """Yield the levels for n from 1 to ``most``."""
        places = np.arange(len(self.ids))
        left = self.firsts[1:][self.owner] - places
        keys = self.owner << 32 | self.ids
        for n in range(1, most + 1):
            codes, distinct = column.encode(pyarrow.array(keys))
            counts = np.bincount(codes, minlength=len(distinct))
            yield _Level(n, places, codes, counts)
            again = (counts[codes] > 1) & (left[places] > n)
            places, codes = places[again], codes[again]
            keys = codes << 32 | self.ids[places + n]

    def characters(self, places: Ints, n: int) -> Ints:
        """Return the number of characters in the n-grams at these indices, not counting spaces between words."""
        return self.before[places + n] - self.before[places]

    def top(self, level: _Level) -> Ints:
        """Count, for each text, the characters in all occurrences of its most frequent n-gram (the first, if tied)."""
        n, texts = level.n, len(self.firsts) - 1
        out = np.zeros(texts, np.int64)
        some = np.flatnonzero(np.diff(self.firsts) >= n)
        # If no n-gram occurs twice, the first one is the most frequent.
        out[some] = self.characters(self.firsts[some], n) + n - 1
        first = level.places[column.fresh(level.codes)]
        twice = np.flatnonzero(level.counts > 1)
        # Codes are in text order. For each text, choose the n-gram with the highest count, or the first one if tied.
        order = twice[np.lexsort((twice, -level.counts[twice], self.owner[first[twice]]))]
        owner = self.owner[first[order]]
        best = order[np.concatenate([[True], owner[1:] != owner[:-1]])] if len(order) else order
        out[self.owner[first[best]]] = (self.characters(first[best], n) + n - 1) * level.counts[best]
        return out

    def above(self, level: _Level, limits: np.ndarray) -> Mask:
        """Return a mask of the texts whose duplicate n-grams contain more characters than the text's limit.

        The number of characters that are covered by at least one duplicate is an upper bound on the count. The
        exact count is computed only for texts whose upper bound exceeds the limit.
        """
        n, texts = level.n, len(self.firsts) - 1
        again = level.places[~column.fresh(level.codes)]
        begin = again.copy()
        begin[1:] = np.maximum(begin[1:], again[:-1] + n)
        covered = np.bincount(self.owner[again], self.before[again + n] - self.before[begin], minlength=texts)
        is_above = covered > limits
        for text in np.flatnonzero(is_above):
            low, high = np.searchsorted(level.places, self.firsts[text : text + 2])
            is_above[text] = self._counted(level, low, high) > limits[text]
        return is_above

    def _counted(self, level: _Level, low: int, high: int) -> int:
        """Count the characters in the duplicate n-grams of one text, whose n-grams are ``level.places[low:high]``."""
        places, codes = level.places[low:high], level.codes[low:high]
        sizes = self.characters(places, level.n)
        known: set[int] = set()
        total = free = 0
        for place, code, size in zip(places.tolist(), codes.tolist(), sizes.tolist(), strict=True):
            if place < free:
                continue
            if code in known:
                total += size
                free = place + level.n
            else:
                known.add(code)
        return total


def _ngram_faults(grams: _Grams, size: Ints, section: GopherRepetitionSection) -> list[Fault]:
    top, duplicate = [], []
    for level in grams.levels(max([0, *section.top_ngram_chars, *section.duplicate_ngram_chars])):
        n = level.n
        if (share := section.top_ngram_chars.get(n)) is not None:
            reason = f"more characters in the top {n}-gram than {_KEY}.top_ngram_chars"
            top.append(Fault(reason, grams.top(level) / size > share))
        if (share := section.duplicate_ngram_chars.get(n)) is not None:
            reason = f"more characters in duplicate {n}-grams than {_KEY}.duplicate_ngram_chars"
            duplicate.append(Fault(reason, grams.above(level, share * size)))
    return top + duplicate
