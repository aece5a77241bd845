"""Which documents are held out for validation.

A document is held out if the hash of (seed, text) is below a threshold. This depends only on the text, so the same
document is on the same side in every corpus.
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

#: All word sequences of this much held-out text are compared, and a sample of the sequences of more text. Every process
#: has them in memory.
_COMPARED_BYTES = 64 << 20


class Thresholds(NamedTuple):
    """Below which hash documents are held out.

    Attributes:
        seed: the run's seed.
        by_source: for each source, the lowest hash that is not held out.
        forced: sources without a low enough hash. The document with the lowest hash is held out.
        held_out_bytes: text of all held-out documents.
        by_text: documents have targets, and documents with the same text are on the same side.
    """

    seed: int
    by_source: dict[str, int]
    forced: list[str]
    held_out_bytes: int
    by_text: bool = False

    def held_out(self, dataset: str, digests: pyarrow.ChunkedArray) -> NDArray[np.bool_]:
        """Mask of the held-out documents, from their digests."""
        return _hashes(self.seed, digests, self.by_text) < np.uint64(self.by_source[dataset])

    def forced_message(self) -> str:
        """What to print if a document of a source had to be held out."""
        names = ", ".join(self.forced)
        return f"{names}: no document has a hash low enough for validation: the one with the lowest hash is held out"


def _hashes(seed: int, digests: pyarrow.ChunkedArray, by_text: bool) -> NDArray[np.uint64]:
    """A uniform hash for each document, from the seed and both halves of its digest, which are uniform as well.

    ``by_text``: only from the half that depends on the text alone (``pipeline/documents/ingest.py``).
    """
    key = keyed_hashes(seed, "validation", [""])
    hashes = [np.zeros(0, np.uint64)]
    for chunk in digests.chunks:
        # A digest is 16 bytes, and they are contiguous.
        halves = np.frombuffer(chunk.buffers()[1], "<u8").reshape(-1, 2)[chunk.offset : chunk.offset + len(chunk)]
        first = ngrams.mix(halves[:, 0] ^ key)
        hashes.append(first if by_text else ngrams.mix(first ^ halves[:, 1]))
    return np.concatenate(hashes)


def compute_thresholds(files: dict[str, list[Path]], seed: int, fraction: float, by_text: bool = False) -> Thresholds:
    """The thresholds that hold out about ``fraction`` of the documents, and at least one of each source.

    Args:
        files: the documents of each source.
        seed: the run's seed.
        fraction: of the documents (``data.tokens.validation_fraction``).
        by_text: see :class:`Thresholds`.

    Raises:
        RequestError: no training documents would be left.
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
    """Counts of a file of documents, and the lowest hash in it."""

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
    """The word sequences of the held-out documents of all sources, in order. For a lot of text, a sample of them."""
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
    """Held-out texts of a file. Row groups without held-out documents are not read."""
    chosen = thresholds.held_out(dataset, read_shards.read_column(path, "digest"))

    columns = [pyarrow.chunked_array([], pyarrow.large_string())]
    seen = 0
    for group, rows in enumerate(read_shards.group_rows(path)):
        mask = chosen[seen : seen + rows]
        seen += rows
        if mask.any():
            columns.append(read_shards.read_group(path, group, ["text"])["text"].filter(pyarrow.array(mask)))
    return pyarrow.chunked_array([chunk for column in columns for chunk in column.chunks], pyarrow.large_string())
