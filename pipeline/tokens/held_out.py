"""Choose the documents that are held out for validation.

A document is held out if the hash of the seed and the document's digest is below a threshold. The hash does not depend
on the rest of the corpus. So with the same threshold, a document is on the same side in every corpus.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow
from numpy.typing import NDArray

from artefacts.errors import RequestError
from artefacts.hashing import keyed_hashes
from artefacts.progress import bar
from pipeline import ngrams, parallel
from pipeline.documents import read_shards
from pipeline.tokens.overlap import HeldOut

#: If there are more bytes of held-out text than this, only a sample of the word sequences is compared, because every
#: process holds the sequences in memory.
_COMPARED_BYTES = 64 << 20


class Thresholds(NamedTuple):
    """The hashes below which documents are held out.

    Attributes:
        seed: the run's seed.
        by_source: the threshold for each source. Documents with a lower hash are held out.
        forced: sources in which no hash was low enough, so the document with the lowest hash is held out.
        held_out_bytes: total text size of all held-out documents, in bytes.
        by_text: whether documents with the same text are on the same side even if their targets differ.
    """

    seed: int
    by_source: dict[str, int]
    forced: list[str]
    held_out_bytes: int
    by_text: bool = False

    def held_out(self, dataset: str, digests: pyarrow.ChunkedArray) -> NDArray[np.bool_]:
        """Return a mask of the documents that are held out. ``digests`` has the digests of all documents."""
        return _hashes(self.seed, digests, self.by_text) < np.uint64(self.by_source[dataset])

    def forced_message(self) -> str:
        """Return a message about the sources in which no document's hash is below the common threshold."""
        names = ", ".join(self.forced)
        return f"{names}: no document's hash is low enough for validation, so the one with the lowest hash is held out"


def _hashes(seed: int, digests: pyarrow.ChunkedArray, by_text: bool) -> NDArray[np.uint64]:
    """Return a uniform hash for each document, computed from the seed and both halves of its digest.

    Each half is uniform on its own. With ``by_text``, only the half that depends on the text alone is used (see
    ``pipeline/documents/ingest.py``).
    """
    key = keyed_hashes(seed, "validation", [""])
    hashes = [np.zeros(0, np.uint64)]
    for chunk in digests.chunks:
        # Digests are 16 bytes each, stored contiguously.
        halves = np.frombuffer(chunk.buffers()[1], "<u8").reshape(-1, 2)[chunk.offset : chunk.offset + len(chunk)]
        first = ngrams.mix(halves[:, 0] ^ key)
        hashes.append(first if by_text else ngrams.mix(first ^ halves[:, 1]))
    return np.concatenate(hashes)


def compute_thresholds(files: dict[str, list[Path]], seed: int, fraction: float, by_text: bool = False) -> Thresholds:
    """Compute thresholds that hold out about ``fraction`` of the documents, and at least one from each source.

    Args:
        files: the document files of each source.
        seed: the run's seed.
        fraction: fraction of documents to hold out (``data.tokens.validation_fraction``).
        by_text: see :class:`Thresholds`.

    Raises:
        RequestError: a source would have no training documents left.
    """
    common = min(int(fraction * 2.0**64), 2**64 - 1)
    by_source, forced, size = {}, [], 0
    for dataset, paths in files.items():
        by_source[dataset] = common
        extents = [_extent(path, seed, common, by_text) for path in paths]
        if not any(extent.held_out for extent in extents):
            forced.append(dataset)
            by_source[dataset] = min(extent.lowest for extent in extents) + 1
            extents = [_extent(path, seed, by_source[dataset], by_text) for path in paths]
        documents = sum(extent.documents for extent in extents)
        if sum(extent.held_out for extent in extents) == documents:
            raise RequestError(
                f"all {documents} documents of {dataset} are held out for validation: add text or lower "
                "data.tokens.validation_fraction (for text files, a smaller chunk_chars gives more documents)"
            )
        size += sum(extent.held_out_bytes for extent in extents)
    return Thresholds(seed, by_source, forced, size, by_text)


class _Extent(NamedTuple):
    """Counts for one document file, and the lowest hash of its documents."""

    documents: int
    held_out: int
    held_out_bytes: int
    lowest: int


def _extent(path: Path, seed: int, threshold: int, by_text: bool) -> _Extent:
    hashes = _hashes(seed, read_shards.read_column(path, "digest"), by_text)
    chosen = hashes < np.uint64(threshold)
    size = int(np.sum(read_shards.read_column(path, "bytes").to_numpy()[chosen]))
    return _Extent(len(hashes), int(np.sum(chosen)), size, int(hashes.min(initial=np.uint64(2**64 - 2))))


def held_out_texts(files: dict[str, list[Path]], thresholds: Thresholds, words: int, workers: int) -> HeldOut:
    """Return the word sequences of all held-out documents, in order, or a sample of the sequences if there are many."""
    tasks = [(path, dataset, thresholds) for dataset, paths in files.items() for path in paths]
    thinned = max(0, (thresholds.held_out_bytes // _COMPARED_BYTES).bit_length())
    with bar(len(tasks), "file", "held out") as progress:

        def columns() -> Iterator[pyarrow.ChunkedArray]:
            # Reading a few files is faster than starting processes.
            for texts in parallel.ordered(_texts, tasks, min(workers, 1 + len(tasks) // 4)):
                progress.update()
                yield texts

        return HeldOut.of(columns(), words, thinned)


def _texts(path: Path, dataset: str, thresholds: Thresholds) -> pyarrow.ChunkedArray:
    """Return a file's held-out texts. Row groups without held-out documents are not read."""
    chosen = thresholds.held_out(dataset, read_shards.read_column(path, "digest"))

    columns = [pyarrow.chunked_array([], pyarrow.large_string())]
    seen = 0
    for group, rows in enumerate(read_shards.group_rows(path)):
        mask = chosen[seen : seen + rows]
        seen += rows
        if mask.any():
            columns.append(read_shards.read_group(path, group, ["text"])["text"].filter(pyarrow.array(mask)))
    return pyarrow.chunked_array([chunk for column in columns for chunk in column.chunks], pyarrow.large_string())
