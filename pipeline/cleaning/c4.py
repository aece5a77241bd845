"""C4's rules (Raffel et al. 2020, section 2.2, and its reference implementation), for a column of texts.

Each line passes through these steps, in the order of the reference implementation and datatrove's filter:

1. Remove the line if it contains an overlong word. Otherwise, remove its citations.
2. Remove the line if it does not end in an end mark or has too few words.
3. Drop the document if the line contains "lorem ipsum".
4. Remove the line if it mentions JavaScript.
5. Drop the document if the line contains a curly bracket.
6. Remove the line if it mentions policies.

A removed line skips the later steps. For example, a curly bracket in a line without an end mark has no effect. Finally,
a document is dropped if its remaining lines have too few sentences.

An apostrophe counts as an end mark, as in datatrove. A sentence ends at an end mark that is a separate word (unlike the
period in "Mr.") and is followed by a word other than punctuation, as in spaCy's sentencizer.
"""

from typing import NamedTuple

import numpy as np
import pyarrow
import pyarrow.compute as compute

from configs.schema.clean import C4Section
from pipeline.cleaning import column
from pipeline.cleaning.column import Column, Fault, Ints, Mask
from pipeline.cleaning.words import Vocabulary, chunks, spaces

_KEY = "data.clean.c4"
_CITATION = r"\[[0-9]*\]|\[edit\]|\[citation needed\]"
_POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")


class Judged(NamedTuple):
    """The texts after line removal, and the reasons for dropping texts. Dropped texts keep all of their lines."""

    texts: pyarrow.LargeStringArray
    faults: list[Fault]


class _Lines(NamedTuple):
    """The lines of all texts, without leading and trailing whitespace.

    Attributes:
        texts: [lines] the lines.
        owner: [lines] index of each line's text.
        words: [lines] number of whitespace-separated words.
        too_long: [lines] whether the line contains an overlong word.
    """

    texts: pyarrow.LargeStringArray
    owner: Ints
    words: Ints
    too_long: Mask


def judge(texts: pyarrow.LargeStringArray, section: C4Section, vocabulary: Vocabulary) -> Judged:
    """Remove lines from the texts, and find the reasons to drop texts."""
    lines = _lines(column.view(texts), section.max_word_length)
    content = lines.texts
    if section.remove_citations:
        content = compute.replace_substring_regex(content, _CITATION, "")
    kept = ~lines.too_long & (lines.words >= section.min_words_per_line)
    if section.require_end_mark:
        kept &= _has(content, r"[.?!\"']\z") & ~column.mask(compute.ends_with(content, "..."))
    # Lowercase once for all of the checks below.
    lower = compute.utf8_lower(content)
    faults = []
    if section.drop_lorem_ipsum:
        matches = kept & _holds(lower, "lorem ipsum")
        faults.append(Fault(f"lorem ipsum ({_KEY}.drop_lorem_ipsum)", _any(matches, lines.owner, len(texts))))
    if section.remove_javascript:
        kept &= ~_holds(lower, "javascript")
    if section.drop_curly_bracket:
        matches = kept & _holds(lower, "{")
        faults.append(Fault(f"a curly bracket ({_KEY}.drop_curly_bracket)", _any(matches, lines.owner, len(texts))))
    if section.remove_policy:
        kept &= ~_has(lower, "|".join(_POLICY))
    content, owner = content.filter(pyarrow.array(kept)), lines.owner[kept]
    if section.min_sentences:
        count = np.bincount(owner, _sentences(content, vocabulary), minlength=len(texts))
        faults.append(Fault(f"fewer sentences than {_KEY}.min_sentences", count < section.min_sentences))
    dropped = np.any([fault.mask for fault in faults], axis=0) if faults else np.zeros(len(texts), bool)
    edited = _joined(content, np.searchsorted(owner, np.arange(len(texts) + 1)))
    return Judged(compute.if_else(pyarrow.array(dropped), texts, edited), faults)


def _lines(seen: Column, max_word_length: int) -> _Lines:
    cut, spans = chunks(seen, spaces(seen.content)), column.lines(seen)
    begin, end = np.searchsorted(cut.starts, spans.starts), np.searchsorted(cut.starts, spans.stops)
    filled = end > begin
    starts, stops = spans.starts.copy(), spans.starts.copy()
    starts[filled], stops[filled] = cut.starts[begin[filled]], cut.stops[end[filled] - 1]
    long = np.flatnonzero(cut.stops - cut.starts > max_word_length) if max_word_length else np.zeros(0, np.int64)
    # A word has at least as many bytes as characters, so no other word can be too long.
    characters = column.lengths(column.pieces(seen.content, cut.starts[long], cut.stops[long]))
    long = long[characters > max_word_length]
    too_long = np.zeros(len(filled), bool)
    too_long[np.searchsorted(spans.starts, cut.starts[long], side="right") - 1] = True
    return _Lines(column.pieces(seen.content, starts, stops), column.owners(spans.firsts), end - begin, too_long)


def _has(texts: pyarrow.LargeStringArray, pattern: str) -> Mask:
    return column.mask(compute.match_substring_regex(texts, pattern))


def _holds(texts: pyarrow.LargeStringArray, what: str) -> Mask:
    return column.mask(compute.match_substring(texts, what))


def _any(matches: Mask, owner: Ints, texts: int) -> Mask:
    return np.bincount(owner[matches], minlength=texts) > 0


def _sentences(lines: pyarrow.LargeStringArray, vocabulary: Vocabulary) -> Ints:
    """Return the number of sentences in each line (at least one)."""
    words = vocabulary.words(lines)
    kinds = vocabulary.kinds[words.ids]
    # A sentence begins at each plain word with an end mark between it and the previous plain word (or line start).
    ended = column.running(kinds == 2)
    plain = np.flatnonzero(kinds == 0)
    owner = column.owners(words.firsts)[plain]
    before = words.firsts[owner]
    same = np.flatnonzero(owner[1:] == owner[:-1]) + 1
    before[same] = plain[same - 1]
    return 1 + np.bincount(owner[ended[plain] > ended[before]], minlength=len(lines))


def _joined(lines: pyarrow.LargeStringArray, firsts: Ints) -> pyarrow.LargeStringArray:
    """Join the lines of each text with newlines, and strip whitespace from the result."""
    lists = pyarrow.ListArray.from_arrays(pyarrow.array(firsts, pyarrow.int32()), lines)
    return compute.utf8_trim_whitespace(compute.binary_join(lists, pyarrow.scalar("\n", lines.type)))
