"""Hash the long lines of documents, and remove lines from texts.

Lines end at LF. Two lines count as equal if they are equal after stripping whitespace.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import pyarrow.compute as compute
from numpy.typing import NDArray

from artefacts.hashing import Hashes, inverse, mix, powers, splitmix64

_BASE = 0xD6E8FEB86659FD93
#: A fixed random number for each byte.
_NUMBER = splitmix64(np.uint64(0), np.arange(1, 257, dtype=np.uint64))

_powers = lru_cache(maxsize=4)(powers)


class Lines(NamedTuple):
    """The long lines of a column of texts.

    Attributes:
        keys: hashes of the stripped lines.
        rows: index of the text that contains each line, ascending.
        numbers: line number within the text, from 0.
    """

    keys: Hashes
    rows: NDArray[np.int64]
    numbers: NDArray[np.int64]


def long_lines(texts: pyarrow.LargeStringArray, chars: int) -> Lines:
    """Return the lines that have at least ``chars`` characters after stripping."""
    split = compute.split_pattern(texts, "\n")
    counts = np.asarray(split.value_lengths(), dtype=np.int64)
    lines = split.flatten()
    # A line has at least as many bytes as characters, so most short lines don't need to be stripped.
    kept = np.flatnonzero(np.asarray(compute.binary_length(lines)) >= chars)
    lines = compute.utf8_trim_whitespace(lines.take(pyarrow.array(kept)))
    long = np.asarray(compute.utf8_length(lines)) >= chars
    kept = kept[long]
    rows = np.repeat(np.arange(len(counts)), counts)[kept]
    return Lines(_hashes(lines.filter(pyarrow.array(long))), rows, kept - (np.cumsum(counts) - counts)[rows])


def _hashes(strings: pyarrow.LargeStringArray) -> Hashes:
    """Return 64-bit polynomial hashes of the strings' bytes and lengths, computed from prefix sums."""
    strings = pyarrow.concat_arrays([strings.cast(pyarrow.large_string())])
    _, places, data = strings.buffers()
    if not len(strings) or not data:
        return np.full(len(strings), _BASE, np.uint64)
    offsets = np.frombuffer(places, np.int64)[strings.offset : strings.offset + len(strings) + 1]
    content = np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]]
    offsets = offsets - offsets[0]
    room = 1 << len(content).bit_length()
    sums = np.zeros(len(content) + 1, np.uint64)
    np.cumsum(_NUMBER[content] * _powers(_BASE, room)[: len(content)], out=sums[1:])
    down = _powers(inverse(_BASE), room)[offsets[:-1]]
    return mix((sums[offsets[1:]] - sums[offsets[:-1]]) * down + mix(np.diff(offsets).astype(np.uint64)))


def remove_lines(texts: Any, rows: NDArray[Any], lines: NDArray[Any]) -> pyarrow.LargeStringArray:
    """Remove lines and their line feeds from texts.

    Args:
        texts: pyarrow Array or ChunkedArray of strings, less than 2 GB in total.
        rows: index of the text that contains each line to remove (``Verdict.rows``).
        lines: line number within the text, from 0 (``Verdict.lines``).
    """
    texts = as_large(texts)
    touched, place = np.unique(np.asarray(rows, dtype=np.int64), return_inverse=True)
    if not len(touched):
        return texts
    split = compute.split_pattern(texts.take(pyarrow.array(touched)), "\n")
    counts = np.asarray(split.value_lengths(), dtype=np.int64)
    firsts = np.cumsum(counts) - counts
    stays = np.ones(int(counts.sum()), dtype=bool)
    stays[firsts[place] + np.asarray(lines, dtype=np.int64)] = False
    ends = np.concatenate([[0], np.cumsum(np.add.reduceat(stays.astype(np.int64), firsts))]).astype(np.int32)
    # Arrow can only join strings with 32-bit offsets.
    left = split.flatten().filter(pyarrow.array(stays)).cast(pyarrow.string())
    joined = compute.binary_join(pyarrow.ListArray.from_arrays(pyarrow.array(ends), left), "\n")
    mask = np.zeros(len(texts), dtype=bool)
    mask[touched] = True
    return compute.replace_with_mask(texts, pyarrow.array(mask), joined.cast(pyarrow.large_string()))


def as_large(texts: Any) -> pyarrow.LargeStringArray:
    """Convert an Array or ChunkedArray of strings into one array with 64-bit offsets."""
    chunks = texts.chunks if isinstance(texts, pyarrow.ChunkedArray) else [texts]
    large = [chunk.cast(pyarrow.large_string()) for chunk in chunks]
    return large[0] if len(large) == 1 else pyarrow.concat_arrays([pyarrow.array([], pyarrow.large_string()), *large])
