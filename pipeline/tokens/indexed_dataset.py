"""Megatron's indexed dataset: token ids in ``PREFIX.bin``, sequence and document offsets in ``PREFIX.idx``.

The index has the same layout as in ``megatron/core/datasets/indexed_dataset.py``, little-endian: the magic
``MMIDIDX\\0\\0``, version 1 (uint64), dtype code of the ids (uint8: 4 for int32, 8 for uint16), number of sequences
(uint64), number of document boundaries (uint64), then sequence lengths in ids (int32), sequence offsets in bytes
(int64), and document boundaries in sequences (int64, from 0 to the number of sequences). Millrace writes one sequence
per document.
"""

import mmap
import os
import struct
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from artefacts.errors import RequestError

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_VERSION = 1
#: Megatron's dtype codes for token ids.
_TYPES: dict[int, np.dtype] = {4: np.dtype("<i4"), 8: np.dtype("<u2")}
_CODES = {kind: code for code, kind in _TYPES.items()}


def id_type(vocab_size: int) -> np.dtype:
    """Return the dtype of ids on disk: uint16 for vocabularies below Megatron's limit of 65,500, otherwise int32."""
    return np.dtype("<u2") if vocab_size < 65_500 else np.dtype("<i4")


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _with_suffix(prefix: Path, suffix: str) -> Path:
    return prefix.with_name(prefix.name + suffix)


class IndexedDatasetWriter:
    """Writes one shard. ``finish`` renames the files to their final names. The index is renamed last."""

    def __init__(self, prefix: Path, kind: np.dtype) -> None:
        """Start a shard whose ids have dtype ``kind`` (uint16 or int32)."""
        self._prefix, self._kind = Path(prefix), np.dtype(kind)
        self._stream = open(_partial(_with_suffix(self._prefix, ".bin")), "wb")  # noqa: SIM115 - finish() closes it
        self._lengths: list[NDArray[np.int32]] = []
        self.tokens = 0

    def add(self, ids: NDArray[np.integer], lengths: NDArray[np.integer]) -> None:
        """Append documents. ``ids`` concatenates their ids, and ``lengths`` is the number of ids in each document."""
        assert int(lengths.sum()) == len(ids)
        self._stream.write(ids.astype(self._kind, copy=False).tobytes())
        self._lengths.append(lengths.astype(np.int32))
        self.tokens += len(ids)

    def finish(self) -> None:
        """Flush to disk and publish both files."""
        lengths = np.concatenate([np.zeros(0, np.int32), *self._lengths])
        pointers = np.zeros(len(lengths), np.int64)
        np.cumsum(lengths[:-1], out=pointers[1:])
        pointers *= self._kind.itemsize
        boundaries = np.arange(len(lengths) + 1, dtype=np.int64)
        index = _partial(_with_suffix(self._prefix, ".idx"))
        with self._stream:
            self._stream.flush()
            os.fsync(self._stream.fileno())
        with open(index, "wb") as stream:
            stream.write(_HEADER.pack(_MAGIC, _VERSION, _CODES[self._kind], len(lengths), len(boundaries)))
            for array in (lengths.astype("<i4"), pointers.astype("<i8"), boundaries.astype("<i8")):
                stream.write(array.tobytes())
            stream.flush()
            os.fsync(stream.fileno())
        for suffix in (".bin", ".idx"):
            path = _with_suffix(self._prefix, suffix)
            os.replace(_partial(path), path)


class IndexedDataset:
    """A memory-mapped reader for one shard.

    Opening the shard reads only a few bytes of its index. The index is mapped when it is first used.

    Attributes:
        tokens: all ids in the shard, in order (uint16 or int32, read-only).
    """

    def __init__(self, prefix: Path, scattered: bool = False) -> None:
        """Open ``PREFIX.bin`` and ``PREFIX.idx``.

        Set ``scattered`` if reads are short and random. This disables the kernel's readahead, which reads megabytes at
        a time by default. Call ``announce`` before reading instead.

        Raises:
            RequestError: a file is missing or is not an indexed dataset of token ids, or the two files don't match.
        """
        self._index, content = _with_suffix(Path(prefix), ".idx"), _with_suffix(Path(prefix), ".bin")
        for path in (self._index, content):
            if not path.is_file():
                raise RequestError(f"{path}: no such token shard")
        with open(self._index, "rb") as stream:
            kind, self._sequences, self._documents = _read_header(self._index, stream)
            tokens = _end_of_last(stream, self._sequences, kind)
        count, rest = divmod(content.stat().st_size, kind.itemsize)
        if rest or count != tokens:
            raise RequestError(f"{content}: its size does not match its index")
        self.tokens: NDArray[np.integer] = np.empty(0, kind)
        self._content: mmap.mmap | None = None
        if count:
            with open(content, "rb") as stream:
                self._content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            self.tokens = np.frombuffer(self._content, kind)
            if scattered:
                self._content.madvise(mmap.MADV_RANDOM)

    def announce(self, firsts: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
        """Announce the ranges of ``tokens`` that will be read next, so that the kernel can fetch them together."""
        if self._content is None:
            return
        size, page = self.tokens.itemsize, mmap.PAGESIZE
        begins = firsts * size // page * page
        lengths = (firsts + counts) * size - begins
        for begin, length in zip(begins.tolist(), lengths.tolist(), strict=True):
            self._content.madvise(mmap.MADV_WILLNEED, begin, length)

    @cached_property
    def lengths(self) -> NDArray[np.int32]:
        """Number of ids in each sequence."""
        return _map(self._index, np.dtype("<i4"), _HEADER.size, self._sequences)

    @cached_property
    def boundaries(self) -> NDArray[np.int64]:
        """Index of each document's first sequence, followed by the number of sequences."""
        return _map(self._index, np.dtype("<i8"), _HEADER.size + 12 * self._sequences, self._documents + 1)

    @cached_property
    def _pointers(self) -> NDArray[np.int64]:
        return _map(self._index, np.dtype("<i8"), _HEADER.size + 4 * self._sequences, self._sequences)

    def document_lengths(self) -> NDArray[np.int64]:
        """Return the number of ids in each document, summed over its sequences."""
        if not len(self):
            return np.zeros(0, np.int64)
        ends = np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])
        return np.diff(ends[self.boundaries])

    def __len__(self) -> int:
        """Return the number of documents."""
        return self._documents

    def document(self, number: int) -> NDArray[np.integer]:
        """Return the ids of one document, concatenated over its sequences.

        Raises:
            IndexError: there is no such document.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"document {number} of {len(self)}")
        first, last = self.boundaries[number], self.boundaries[number + 1]
        start = self._pointers[first] // self.tokens.itemsize if first < last else 0
        return self.tokens[start : start + self.lengths[first:last].sum(dtype=np.int64)]


def shard_prefixes(folder: Path, split: str) -> list[Path]:
    """Return the path prefixes of a split's shards in a tokens folder, in order. Sources are sorted by name."""
    indices = sorted(folder.glob(f"{split}-*.idx")) or sorted(folder.glob(f"*/{split}-*.idx"))
    return [path.with_suffix("") for path in indices]


def _read_header(index: Path, stream: BinaryIO) -> tuple[np.dtype, int, int]:
    """Return the dtype of the ids, the number of sequences and the number of documents."""
    header = stream.read(_HEADER.size)
    if len(header) < _HEADER.size or not header.startswith(_MAGIC):
        raise RequestError(f"{index}: not an indexed dataset (it does not begin with MMIDIDX)")
    _, version, code, sequences, boundaries = _HEADER.unpack(header)
    if version != _VERSION or code not in _TYPES:
        raise RequestError(f"{index}: version {version}, id type {code}; only version 1, types 4 and 8 are supported")
    if index.stat().st_size < _HEADER.size + 12 * sequences + 8 * boundaries or not boundaries:
        raise RequestError(f"{index}: truncated")
    return _TYPES[code], sequences, boundaries - 1


def _end_of_last(stream: BinaryIO, sequences: int, kind: np.dtype) -> int:
    """Return the number of ids in the shard, which is where the last sequence ends according to the index."""
    if not sequences:
        return 0
    stream.seek(_HEADER.size + 4 * (sequences - 1))
    (length,) = struct.unpack("<i", stream.read(4))
    stream.seek(_HEADER.size + 4 * sequences + 8 * (sequences - 1))
    (pointer,) = struct.unpack("<q", stream.read(8))
    return pointer // kind.itemsize + length


def _map(path: Path, kind: np.dtype, offset: int, count: int) -> NDArray:
    # An empty range cannot be mapped.
    return np.memmap(path, kind, "r", offset, (count,)) if count else np.empty(0, kind)
