"""Which documents train and which are held out for validation, and what the held-out ones share with training text.

A document is held out when the hash of (seed, text) is small enough: a pure function of its text, so it falls on the
same side in every corpus. What is settled here, once for a corpus, fits in memory: the limits and the held-out texts.
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
from pipeline import ngrams
from pipeline import parallel as processes
from pipeline.documents import read_shards
from pipeline.tokens.overlap import HeldOut

#: Held-out text up to this size is compared whole: its sequences are held in every process.
_WHOLE_BYTES = 64 << 20


class Limits(NamedTuple):
    """Up to which hash documents are held out.

    Attributes:
        seed: the run's.
        below: for each source, the least hash that is not held out.
        forced: sources of which the hash held out none, so that the document with the smallest one was taken.
        held_out_bytes: text of all held-out documents.
        by_text: documents have targets, and all of one text are on one side.
    """

    seed: int
    below: dict[str, int]
    forced: list[str]
    held_out_bytes: int
    by_text: bool = False

    def held_out(self, dataset: str, digests: pyarrow.ChunkedArray) -> NDArray[np.bool_]:
        """Mask of the held-out documents, from their digests."""
        return _hashes(self.seed, digests, self.by_text) < np.uint64(self.below[dataset])


def _hashes(seed: int, digests: pyarrow.ChunkedArray, by_text: bool) -> NDArray[np.uint64]:
    """A uniform number for each document, from the seed and both halves of its digest, which are uniform themselves.

    ``by_text``: from the half alone that is the text's (``pipeline/documents/ingest.py``).
    """
    key = keyed_hashes(seed, "validation", [""])
    found = [np.zeros(0, np.uint64)]
    for chunk in digests.chunks:
        # Sixteen bytes a digest, one after the other.
        halves = np.frombuffer(chunk.buffers()[1], "<u8").reshape(-1, 2)[chunk.offset : chunk.offset + len(chunk)]
        first = ngrams.mix(halves[:, 0] ^ key)
        found.append(first if by_text else ngrams.mix(first ^ halves[:, 1]))
    return np.concatenate(found)


def settle(files: dict[str, list[Path]], seed: int, fraction: float, by_text: bool = False) -> Limits:
    """The limits for the documents of each source; ``by_text`` as in :class:`Limits`.

    Raises:
        RequestError: nothing would be left to train on.
    """
    usual = min(int(fraction * 2.0**64), 2**64 - 1)
    below, forced, size = {}, [], 0
    for dataset, paths in files.items():
        below[dataset] = usual
        found = [_extent(path, seed, usual, by_text) for path in paths]
        if not any(extent.held_out for extent in found):
            forced.append(dataset)
            below[dataset] = min(extent.smallest for extent in found) + 1
            found = [_extent(path, seed, below[dataset], by_text) for path in paths]
        documents = sum(extent.documents for extent in found)
        if sum(extent.held_out for extent in found) == documents:
            raise RequestError(
                f"all {documents} documents of {dataset} fall to validation: give more text or lower "
                "data.tokens.validation_fraction (for text files, a smaller chunk_chars gives more documents)"
            )
        size += sum(extent.held_out_bytes for extent in found)
    return Limits(seed, below, forced, size, by_text)


class _Extent(NamedTuple):
    documents: int
    held_out: int
    held_out_bytes: int
    smallest: int


def _extent(path: Path, seed: int, below: int, by_text: bool) -> _Extent:
    hashes = _hashes(seed, read_shards.read_column(path, "digest"), by_text)
    chosen = hashes < np.uint64(below)
    size = int(np.sum(read_shards.read_column(path, "bytes").to_numpy()[chosen]))
    return _Extent(len(hashes), int(np.sum(chosen)), size, int(hashes.min(initial=np.uint64(2**64 - 2))))


def held_out_texts(files: dict[str, list[Path]], limits: Limits, words: int, workers: int) -> HeldOut:
    """The held-out documents' word sequences, of all sources in order; of very much text a sample of them."""
    tasks = [(path, dataset, limits) for dataset, paths in files.items() for path in paths]
    thinned = max(0, (limits.held_out_bytes // _WHOLE_BYTES).bit_length())
    with bar(len(tasks), "file", "held out") as progress:

        def columns() -> Iterator[pyarrow.ChunkedArray]:
            # A few files are read sooner than processes start.
            for texts in processes.ordered(_texts, tasks, min(workers, 1 + len(tasks) // 4)):
                progress.update()
                yield texts

        return HeldOut.of(columns(), words, thinned)


def _texts(path: Path, dataset: str, limits: Limits) -> pyarrow.ChunkedArray:
    """Held-out texts of a file; row groups without any are not read."""
    chosen = limits.held_out(dataset, read_shards.read_column(path, "digest"))
    found = [pyarrow.chunked_array([], pyarrow.large_string())]
    seen = 0
    for group, rows in enumerate(read_shards.group_rows(path)):
        mask = chosen[seen : seen + rows]
        seen += rows
        if mask.any():
            found.append(read_shards.read_group(path, group, ["text"])["text"].filter(pyarrow.array(mask)))
    return pyarrow.chunked_array([chunk for column in found for chunk in column.chunks], pyarrow.large_string())
