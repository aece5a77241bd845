"""Views of an Arrow column of texts as numpy arrays: bytes, positions, lines, code points.

Positions are byte indices into the content. A ``firsts`` array has texts + 1 entries: for each text, the index of its
first item (line, chunk or word) in a flat array, and at the end the total number of items.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import pyarrow.compute as compute
from numpy.typing import NDArray

from artefacts.hashing import Ints, Mask

Bytes = NDArray[np.uint8]

_NEWLINE = ord("\n")


class Column(NamedTuple):
    """Texts as one array of UTF-8 bytes.

    Attributes:
        offsets: [texts + 1] where each text begins. The last entry is the size of the content.
        content: the bytes of all texts.
    """

    offsets: Ints
    content: Bytes


class Spans(NamedTuple):
    """Pieces of a column's texts, in order.

    Attributes:
        starts, stops: [pieces] position of the first byte, and position after the last byte.
        firsts: [texts + 1] the first piece of each text.
    """

    starts: Ints
    stops: Ints
    firsts: Ints


def large(texts: pyarrow.Array) -> pyarrow.LargeStringArray:
    """Convert texts to a large_string array. Nulls become empty texts."""
    texts = texts.cast(pyarrow.large_string())
    return texts.fill_null("") if texts.null_count else texts


def view(texts: pyarrow.LargeStringArray) -> Column:
    """Return the column's memory as numpy arrays, without copying."""
    _, places, data = texts.buffers()
    if not len(texts):
        return Column(np.zeros(1, np.int64), np.zeros(0, np.uint8))
    offsets = np.frombuffer(places, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    content = np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]] if data else np.zeros(0, np.uint8)
    return Column(offsets - offsets[0], content)


def build(offsets: Ints, content: Bytes | bytes) -> pyarrow.LargeStringArray:
    """Build a column from offsets and content, without copying: the inverse of ``view``. The content must be UTF-8."""
    places = pyarrow.py_buffer(np.ascontiguousarray(offsets, np.int64))
    return pyarrow.LargeStringArray.from_buffers(len(offsets) - 1, places, pyarrow.py_buffer(content))


def replaced(texts: pyarrow.LargeStringArray, indices: Ints, new: Sequence[str]) -> pyarrow.LargeStringArray:
    """Replace the texts at the given indices, in ascending order. Each run of unchanged texts is copied as a block."""
    if not len(indices):
        return texts
    offsets, content = view(texts)
    encoded = [text.encode() for text in new]
    parts: list[Any] = []
    last = 0
    for index, text in zip(indices.tolist(), encoded, strict=True):
        parts += [content[offsets[last] : offsets[index]], text]
        last = index + 1
    parts.append(content[offsets[last] :])
    sizes = np.diff(offsets)
    sizes[indices] = [len(text) for text in encoded]
    return build(running(sizes), b"".join(parts))


def pieces(content: Bytes, starts: Ints, stops: Ints) -> pyarrow.LargeStringArray:
    """Return spans of the content as a column. The spans must be in order and must not overlap."""
    places = np.empty(2 * len(starts) + 1, np.int64)
    places[:-1:2], places[1::2] = starts, stops
    # Even entries are the spans, and odd entries the gaps after them. The last gap extends to the end of the content.
    places[-1] = len(content)
    return build(places, content).take(pyarrow.array(np.arange(0, 2 * len(starts), 2)))


def running(counts: NDArray[Any]) -> Ints:
    """Return the exclusive prefix sums with the total at the end: [n] -> [n + 1]."""
    sums = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=sums[1:])
    return sums


def sums(values: NDArray[Any], firsts: Ints) -> Ints:
    """Sum the values of each text's items."""
    prefix_sums = running(np.asarray(values, np.int64))
    return prefix_sums[firsts[1:]] - prefix_sums[firsts[:-1]]


def owners(firsts: Ints) -> Ints:
    """Return, for each item, the index of the text that contains it."""
    return np.repeat(np.arange(len(firsts) - 1), np.diff(firsts))


def lines(column: Column) -> Spans:
    """Split the texts into lines, as ``str.split("\\n")`` does.

    An empty text has one line, and a final LF is followed by an empty line.
    """
    breaks = np.flatnonzero(column.content == _NEWLINE)
    before = np.searchsorted(breaks, column.offsets)
    texts = np.arange(len(column.offsets) - 1)
    firsts = before + np.arange(len(column.offsets))
    starts = np.empty(len(breaks) + len(texts), np.int64)
    stops = np.empty_like(starts)
    of_break = owners(before)
    starts[firsts[:-1]], stops[firsts[1:] - 1] = column.offsets[:-1], column.offsets[1:]
    starts[np.arange(len(breaks)) + of_break + 1] = breaks + 1
    stops[np.arange(len(breaks)) + of_break] = breaks
    return Spans(starts, stops, firsts)


def wide(content: Bytes, leads: Ints) -> NDArray[np.int32]:
    """Return the code points of the multi-byte characters (two to four bytes) that begin at these positions."""
    first = content[leads].astype(np.int32)
    codes = ((first & 0x1F) << 6) | (content[leads + 1] & 0x3F)
    three = np.flatnonzero(first >= 0xE0)
    codes[three] = ((codes[three] & 0x3FF) << 6) | (content[leads[three] + 2] & 0x3F)
    four = np.flatnonzero(first >= 0xF0)
    codes[four] = ((codes[four] & 0x7FFF) << 6) | (content[leads[four] + 3] & 0x3F)
    return codes


def lengths(texts: pyarrow.LargeStringArray) -> Ints:
    """Return the number of characters (code points) in each text."""
    return compute.utf8_length(texts).to_numpy(zero_copy_only=False).astype(np.int64, copy=False)


def mask(booleans: pyarrow.Array) -> Mask:
    """Convert an Arrow array of booleans to numpy."""
    return booleans.to_numpy(zero_copy_only=False).astype(bool, copy=False)


def encode(values: pyarrow.Array) -> tuple[NDArray[np.int64], pyarrow.Array]:
    """Number the distinct values in order of first appearance. Returns each value's number, and the distinct values."""
    encoded = values.dictionary_encode()
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64, copy=False), encoded.dictionary


def fresh(codes: Ints) -> Mask:
    """Return a mask that is true at the first occurrence of each number from ``encode``."""
    if not len(codes):
        return np.zeros(0, bool)
    most = np.maximum.accumulate(codes)
    return np.concatenate([[True], codes[1:] > most[:-1]])


class Fault(NamedTuple):
    """A reason to drop texts.

    Attributes:
        reason: the reason in words, with the recipe key.
        mask: [texts] whether the reason applies to each text.
    """

    reason: str
    mask: Mask
