"""Gopher's quality rules (Rae et al. 2021, appendix A.1.1), for a column of texts.

Where the paper leaves details open, the rules follow datatrove's filter: words that consist only of symbols don't count
toward the number of words or their mean length; bullets are "-" and U+2022; lines end at LF, and blank lines count.
"""

import numpy as np
import pyarrow
import pyarrow.compute as compute

from configs.schema.clean import GopherQualitySection
from pipeline.cleaning import column
from pipeline.cleaning.column import Column, Fault, Ints, Mask
from pipeline.cleaning.words import STOP_WORDS, Vocabulary, Words

_KEY = "data.clean.gopher_quality"
_ELLIPSIS, _BULLET = "…".encode(), "•".encode()


def faults(
    texts: pyarrow.LargeStringArray, words: Words, vocabulary: Vocabulary, section: GopherQualitySection
) -> list[Fault]:
    """Return the faults, in order. ``words`` holds the texts' words, as split by ``vocabulary``."""
    ids, firsts = words.chunk_ids, words.chunks.firsts
    num_words = np.maximum(np.diff(words.firsts), 1)
    solid = column.sums(vocabulary.solid[ids], firsts)
    mean = column.sums(vocabulary.solid_characters[ids], firsts) / np.maximum(solid, 1)
    hashes = _counts(texts, "#")
    ellipses = _counts(texts, "...") + _counts(texts, "…")
    lines, bullets, trailing = _lines(column.view(texts), words)
    letters = column.sums(vocabulary.alphabetic[ids], firsts)
    return [
        Fault(f"fewer words than {_KEY}.min_words", solid < section.min_words),
        Fault(f"more words than {_KEY}.max_words", solid > section.max_words),
        Fault(f"mean word length below {_KEY}.min_mean_word_length", mean < section.min_mean_word_length),
        Fault(f"mean word length above {_KEY}.max_mean_word_length", mean > section.max_mean_word_length),
        Fault(
            f"more hashes per word than {_KEY}.max_symbol_word_ratio",
            hashes / num_words > section.max_symbol_word_ratio,
        ),
        Fault(
            f"more ellipses per word than {_KEY}.max_symbol_word_ratio",
            ellipses / num_words > section.max_symbol_word_ratio,
        ),
        Fault(f"more lines with bullets than {_KEY}.max_bullet_lines", bullets / lines > section.max_bullet_lines),
        Fault(
            f"more lines that end in an ellipsis than {_KEY}.max_ellipsis_lines",
            trailing / lines > section.max_ellipsis_lines,
        ),
        Fault(
            f"fewer words with a letter than {_KEY}.min_alphabetic_words",
            letters / num_words < section.min_alphabetic_words,
        ),
        Fault(
            f"fewer stop words than {_KEY}.min_stop_words",
            _stop_words(vocabulary.stops[ids], firsts) < section.min_stop_words,
        ),
    ]


def _counts(texts: pyarrow.LargeStringArray, what: str) -> Ints:
    return compute.count_substring(texts, what).to_numpy(zero_copy_only=False).astype(np.int64)


def _lines(seen: Column, words: Words) -> tuple[Ints, Ints, Ints]:
    """Count, for each text, all lines, lines that begin with a bullet, and lines that end in an ellipsis."""
    content = seen.content
    spans = column.lines(seen)
    count = np.diff(spans.firsts)
    # An empty string after the final newline is not a line.
    last = spans.firsts[1:] - 1
    count -= spans.starts[last] == spans.stops[last]
    chunks = words.chunks
    begin = np.searchsorted(chunks.starts, spans.starts)
    end = np.searchsorted(chunks.starts, spans.stops)
    filled = end > begin
    first, final = begin[filled], end[filled] - 1
    size = chunks.stops - chunks.starts
    bullet = (content[chunks.starts[first]] == ord("-")) | (
        (size[first] >= 3) & _is(content, chunks.starts[first], _BULLET)
    )
    tail = chunks.stops[final] - 3
    ellipsis = (size[final] >= 3) & (_is(content, tail, b"...") | _is(content, tail, _ELLIPSIS))
    at_bullet, at_ellipsis = np.zeros(len(filled), bool), np.zeros(len(filled), bool)
    at_bullet[filled], at_ellipsis[filled] = bullet, ellipsis
    return np.maximum(count, 1), column.sums(at_bullet, spans.firsts), column.sums(at_ellipsis, spans.firsts)


def _is(content: column.Bytes, places: Ints, what: bytes) -> Mask:
    """Return a mask of the positions at which the bytes ``what`` begin. Positions may be out of bounds."""
    matches = np.ones(len(places), bool)
    for step, byte in enumerate(what):
        matches &= content[np.clip(places + step, 0, len(content) - 1)] == byte
    return matches


def _stop_words(stops: Ints, firsts: Ints) -> Ints:
    """Return the number of distinct stop words in each text. ``stops`` holds a bit set of stop words for each chunk."""
    with_some = np.flatnonzero(stops)
    at = np.searchsorted(with_some, firsts)
    bits = [column.sums(stops[with_some] >> bit & 1, at) > 0 for bit in range(len(STOP_WORDS))]
    return np.sum(bits, axis=0, dtype=np.int64)
