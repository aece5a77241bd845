"""The map step: write the keys of one part of the corpus.

Duplicate documents have equal keys, and so do duplicate lines. Near duplicates are likely to have a band key in common.
A part has one file for each kind of key and, for near duplicates, a file of signatures. A key file contains the number
of documents, the bucket offsets, and the columns of the entries, sorted by key: the key (one or two uint64 columns),
the document's row in the part and, for lines, the line number.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from numpy.typing import NDArray

from configs.schema.clean import CleanSection
from pipeline.dedup import array_file
from pipeline.dedup.lines import as_large, long_lines
from pipeline.dedup.minhash import band_keys, sketch
from pipeline.dedup.similarity import SIGNATURES, bins, signatures
from pipeline.ngrams import runs, sequences

DOCUMENTS, LINES, BANDS = "documents", "lines", "bands"

#: Keys are divided into buckets by their top bits. A reduce task covers one or more buckets.
BUCKET_BITS = 12
BUCKETS = 1 << BUCKET_BITS
#: Number of key columns for each kind.
KEY_COLUMNS = {DOCUMENTS: 2, LINES: 1, BANDS: 1}
_DIGEST_BYTES = 16


def kinds(section: CleanSection) -> tuple[str, ...]:
    """Return the kinds of keys that the recipe needs, or an empty tuple if deduplication is off."""
    wanted = {
        DOCUMENTS: section.exact_dedup,
        LINES: section.line_dedup_chars > 0,
        BANDS: section.near_dedup.enabled,
    }
    return tuple(kind for kind, on in wanted.items() if on)


class KeyWriter:
    """Writes the keys of a part. Documents are added in order, and each needs about 1 KB of memory."""

    def __init__(self, folder: Path, part: int, section: CleanSection) -> None:
        """Start part number ``part``. Parts are numbered in corpus order."""
        self._folder, self._part, self._section = folder, part, section
        self._kinds = kinds(section)
        self._rows = 0
        self._entries: dict[str, list[tuple[NDArray[Any], ...]]] = {kind: [] for kind in self._kinds}
        self._signatures = [np.zeros((0, bins(section.near_dedup)), np.uint8)]

    def add(self, texts: Any, digests: Any = None) -> None:
        """Add documents.

        Args:
            texts: pyarrow Array or ChunkedArray of strings, without nulls.
            digests: 16 bytes of a cryptographic hash of each text, for finding exact duplicates, as a list of bytes, a
                numpy array, or a pyarrow fixed-size binary array. Not needed if ``clean.exact_dedup`` is off.

        Raises:
            ValueError: digests are needed, but there aren't 16 bytes for each text.
        """
        if DOCUMENTS in self._kinds:
            self._add_digests(len(texts), digests)
        if LINES in self._kinds or BANDS in self._kinds:
            for batch in runs(as_large(texts)):
                self._add_texts(batch)
        else:
            self._rows += len(texts)

    def _add_digests(self, count: int, digests: Any) -> None:
        halves = np.frombuffer(_bytes(digests), ">u8")
        if len(halves) * 8 != count * _DIGEST_BYTES:
            raise ValueError(
                f"{count} documents have {len(halves) * 8} bytes of digests instead of {_DIGEST_BYTES} per document"
            )
        values = halves.astype(np.uint64).reshape(-1, 2)
        rows = np.arange(self._rows, self._rows + count, dtype=np.uint32)
        self._entries[DOCUMENTS].append((values[:, 0], values[:, 1], rows))

    def _add_texts(self, texts: pyarrow.LargeStringArray) -> None:
        if LINES in self._kinds:
            lines = long_lines(texts, self._section.line_dedup_chars)
            rows = (lines.rows + self._rows).astype(np.uint32)
            self._entries[LINES].append((lines.keys, rows, lines.numbers.astype(np.uint32)))
        if BANDS in self._kinds:
            near = self._section.near_dedup
            shingles, owner = sequences(pyarrow.chunked_array([texts]), near.words)
            sketches = sketch(shingles, owner, len(texts), bins(near))
            named = np.flatnonzero(np.bincount(owner, minlength=len(texts)))
            rows = np.repeat((named + self._rows).astype(np.uint32), near.bands)
            self._entries[BANDS].append((band_keys(sketches[named], near.bands, near.rows).reshape(-1), rows))
            self._signatures.append(signatures(sketches))
        self._rows += len(texts)

    def finish(self) -> None:
        """Write all of the part's files, even if the part has no documents. Each is moved into place by a rename."""
        if BANDS in self._kinds:
            path = array_file.part_path(self._folder, SIGNATURES, self._part)
            array_file.write(path, np.concatenate(self._signatures))
        for kind in self._kinds:
            entries = [_nothing(kind), *self._entries[kind]]
            columns = _sorted([np.concatenate(column) for column in zip(*entries, strict=True)], kind)
            tops = np.arange(1, BUCKETS, dtype=np.uint64) << np.uint64(64 - BUCKET_BITS)
            inner = np.searchsorted(columns[0], tops)
            offsets = np.concatenate([[0], inner, [len(columns[0])]]).astype(np.uint32)
            path = array_file.part_path(self._folder, kind, self._part)
            array_file.write(path, np.array([self._rows], np.int64), offsets, *columns)


def _sorted(columns: list[NDArray[Any]], kind: str) -> list[NDArray[Any]]:
    order = np.lexsort(columns[: KEY_COLUMNS[kind]][::-1])
    return [column[order] for column in columns]


def _nothing(kind: str) -> tuple[NDArray[Any], ...]:
    """Return empty columns for a kind of key."""
    keys = (np.zeros(0, np.uint64),) * KEY_COLUMNS[kind]
    return (*keys, *(np.zeros(0, np.uint32),) * (2 if kind == LINES else 1))


def _bytes(digests: Any) -> bytes:
    if digests is None:
        return b""
    if isinstance(digests, np.ndarray):
        return digests.tobytes()
    if isinstance(digests, pyarrow.Array | pyarrow.ChunkedArray):
        digests = digests.to_pylist()
    return b"".join(digests)
