"""Decide which documents and long lines stay, based on the results of the reduce tasks.

Near duplicates form clusters: if A is similar to B, and B to C, then all three are in one cluster, even if A is not
similar to C. A cluster's first document stays, as in datatrove's MinHash deduplication.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from artefacts import atomic
from artefacts.errors import RequestError
from configs.schema.clean import CleanSection
from pipeline.dedup import array_file
from pipeline.dedup.keys import BANDS, DOCUMENTS, LINES, kinds
from pipeline.dedup.tasks import planned, result_path
from pipeline.dedup.union_find import flatten, join

#: Values of ``Verdict.documents``.
KEPT, EXACT, NEAR = 0, 1, 2

#: Number of documents or edges to process at a time.
_BLOCK = 1 << 20
#: Per-document arrays of more than this many bytes are kept in a file instead of in memory.
_IN_MEMORY = 128 << 20


class Verdict(NamedTuple):
    """The decisions about a part's documents and lines.

    Attributes:
        documents: uint8 per document: ``KEPT``, or ``EXACT`` or ``NEAR`` for a duplicate of an earlier document.
            ``EXACT`` takes precedence.
        rows, lines: uint32, ascending: the document's row and the line number, for each line to remove from a document
            that stays.
    """

    documents: NDArray[np.uint8]
    rows: NDArray[np.uint32]
    lines: NDArray[np.uint32]


class _Corpus(NamedTuple):
    """The parts, and the position of each part's first document in the corpus, followed by the number of documents."""

    parts: NDArray[np.int64]
    starts: NDArray[np.int64]

    def numbers(self, documents: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return each document's position in the corpus. A document is given as ``part << 32 | row``."""
        part = np.searchsorted(self.parts, (documents >> np.uint64(32)).astype(np.int64))
        return self.starts[part] + (documents & np.uint64(0xFFFFFFFF)).astype(np.int64)


def resolve(folder: Path, section: CleanSection) -> None:
    """Decide which documents stay, after all tasks from ``plan`` have been reduced. Does nothing if already decided.

    The time is linear in the number of documents and pairs. For a large corpus, the arrays are in memory-mapped files,
    so the operating system can evict their pages.

    Raises:
        RequestError: a part or a result is missing or damaged.
    """
    path = _path(folder)
    if path.exists():
        return
    corpus = _corpus(folder, section)
    total = int(corpus.starts[-1])
    verdicts = _mapped(folder, total, np.uint8)
    on = kinds(section)
    if DOCUMENTS in on:
        for task in planned(folder, DOCUMENTS):
            (copies,) = array_file.read(result_path(folder, task))
            for at in range(0, len(copies), _BLOCK):
                verdicts[corpus.numbers(copies[at : at + _BLOCK])] = EXACT
    if BANDS in on:
        roots = _clusters(folder, corpus)
        for at in range(0, total, _BLOCK):
            block = verdicts[at : at + _BLOCK]
            root = roots[at : at + _BLOCK]
            block[(root != np.arange(at, at + len(root))) & (block == KEPT)] = NEAR
    array_file.write(path, corpus.parts, corpus.starts, verdicts)


def _path(folder: Path) -> Path:
    return folder / f"verdicts{array_file.SUFFIX}"


def _corpus(folder: Path, section: CleanSection) -> _Corpus:
    first, *others = kinds(section)
    parts = array_file.parts(folder, first)
    for kind in others:
        if lacking := set(parts) ^ set(array_file.parts(folder, kind)):
            raise RequestError(f"{folder}: part {min(lacking)} does not have all of its keys; start the stage again")
    counts = [int(array_file.read(array_file.part_path(folder, first, part))[0][0]) for part in parts]
    return _Corpus(np.array(parts, np.int64), np.cumsum([0, *counts], dtype=np.int64))


def _mapped(folder: Path, length: int, dtype: Any) -> NDArray[Any]:
    """Return an array of zeros. A large array is memory-mapped to an unlinked file, which disappears with the array."""
    if length * np.dtype(dtype).itemsize <= _IN_MEMORY:
        return np.zeros(length, dtype)
    partial = atomic.temp_path(_path(folder))
    array = np.memmap(partial, dtype, "w+", shape=(length,))
    partial.unlink()
    return array


def _clusters(folder: Path, corpus: _Corpus) -> NDArray[Any]:
    """Return, for each document, the first document of its cluster."""
    total = int(corpus.starts[-1])
    parent = _mapped(folder, total, np.uint32 if total < 1 << 32 else np.uint64)
    for at in range(0, total, _BLOCK):
        parent[at : at + _BLOCK] = np.arange(at, min(at + _BLOCK, total))
    for task in planned(folder, BANDS):
        later, earlier = array_file.read(result_path(folder, task))
        for at in range(0, len(later), _BLOCK):
            join(parent, corpus.numbers(later[at : at + _BLOCK]), corpus.numbers(earlier[at : at + _BLOCK]))
    flatten(parent)
    return parent


def _resolved(folder: Path) -> tuple[_Corpus, NDArray[np.uint8]]:
    parts, starts, verdicts = array_file.read(_path(folder))
    return _Corpus(parts, starts), verdicts


def _of_part(corpus: _Corpus, verdicts: NDArray[np.uint8], part: int) -> NDArray[np.uint8]:
    at = int(np.searchsorted(corpus.parts, part))
    if at == len(corpus.parts) or corpus.parts[at] != part:
        raise ValueError(f"part {part} has no keys")
    return np.array(verdicts[corpus.starts[at] : corpus.starts[at + 1]])


def kept_documents(folder: Path) -> Callable[[int], NDArray[np.bool_]]:
    """Return a function that maps a part number to a mask of the documents to keep.

    Raises:
        RequestError: ``resolve`` has not run.
    """
    corpus, verdicts = _resolved(folder)
    return lambda part: _of_part(corpus, verdicts, part) == KEPT


def verdict(folder: Path, section: CleanSection, part: int) -> Verdict:
    """Return the verdict on a part's documents and lines, after all tasks from ``plan_lines`` have been reduced.

    Raises:
        RequestError: a result is missing or damaged.
        ValueError: there is no such part.
    """
    documents = _of_part(*_resolved(folder), part)
    rows, lines = [np.zeros(0, np.uint32)], [np.zeros(0, np.uint32)]
    for task in planned(folder, LINES) if LINES in kinds(section) else []:
        document, number = array_file.read(result_path(folder, task))
        in_part = slice(*np.searchsorted(document, np.array([part << 32, (part + 1) << 32], np.uint64)))
        rows.append((document[in_part] & np.uint64(0xFFFFFFFF)).astype(np.uint32))
        lines.append(number[in_part])
    row, line = np.concatenate(rows), np.concatenate(lines)
    order = np.lexsort((line, row))
    return Verdict(documents, row[order], line[order])
