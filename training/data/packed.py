"""Samples packed from complete documents, as listed in the index that ``pipeline.tokens.packing`` writes.

A sample has T inputs: its pieces back to back, then padding. The label of a position is the next token of the same
document. The last position of a document and the padding have no label. Every token except a document's first is thus
predicted exactly once per epoch, and never from the end of another document. If a piece fills a complete sample and its
document continues in another sample, the last label is the continuation's first token.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from artefacts import command_hints, manifest, repair_hints
from artefacts.errors import RequestError
from pipeline.tokens.best_fit import PIECE
from pipeline.tokens.indexed_dataset import IndexedDataset, shard_prefixes
from training.data.batch import Rows
from training.data.disk_reads import DiskReads
from training.data.windows import by_shard


class PackedSamples:
    """The packed samples of the training split. Shards and index are memory-mapped."""

    def __init__(self, tokens: Path, packing: Path, context_length: int, pad: int) -> None:
        """Map the shards and their index.

        Args:
            tokens: the folder of the token shards.
            packing: the folder of the index, with the same structure as ``tokens``.
            context_length: inputs per sample.
            pad: the padding token's id.

        Raises:
            RequestError: there are no shards, or a shard or its index is missing or damaged.
        """
        prefixes = shard_prefixes(tokens, "train")
        if not prefixes:
            raise RequestError(f"{tokens}: no train shards; run `{command_hints.make('data')}`")
        self.context_length, self._pad = context_length, pad
        self._shards = [IndexedDataset(prefix, scattered=True) for prefix in prefixes]
        self._disk = DiskReads()
        names = [packing / prefix.relative_to(tokens) for prefix in prefixes]
        self._pieces = [_map(name.with_name(f"{name.name}.pieces.npy"), PIECE) for name in names]
        self._samples = [_map(name.with_name(f"{name.name}.samples.npy"), np.dtype("<i8")) for name in names]
        self._starts = np.cumsum([0, *(len(samples) - 1 for samples in self._samples)], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def rows(self, indices: NDArray[np.int64]) -> Rows:
        """Return the samples at the given indices, in that order."""
        length = self.context_length
        tokens = np.full((len(indices), length + 1), self._pad, self._shards[0].tokens.dtype)
        begins, ignored = np.zeros((2, len(indices), length), dtype=bool)
        groups = [(shard, at, *self._pieces_of(shard, local)) for shard, at, local in by_shard(indices, self._starts)]
        for shard, _, pieces, _ in groups if self._disk.expected() else []:
            self._shards[shard].announce(pieces["offset"], pieces["length"])
        for shard, places, pieces, counts in groups:
            self._fill(self._shards[shard].tokens, pieces, counts, places, Rows(tokens, begins, ignored))
        return Rows(tokens, begins, ignored)

    def _pieces_of(self, shard: int, samples: NDArray[np.int64]) -> tuple[NDArray, NDArray[np.int64]]:
        """Return the pieces of the given samples in a shard, and the number of pieces in each of these samples."""
        firsts = self._samples[shard][samples]
        counts = self._samples[shard][samples + 1] - firsts
        return self._pieces[shard][_ranges(firsts, counts)], counts

    def _fill(
        self,
        source: NDArray[np.integer],
        pieces: NDArray,
        counts: NDArray[np.int64],
        places: NDArray[np.int64],
        rows: Rows,
    ) -> None:
        """Copy pieces into the rows at ``places``. ``counts`` holds the number of pieces in each row."""
        assert rows.begins is not None and rows.ignored is not None
        length, sizes = self.context_length, pieces["length"].astype(np.int64)
        inputs = np.minimum(sizes, length)
        # The column at which a piece starts: the number of inputs before it, minus the inputs in earlier rows.
        ends = np.cumsum(inputs)
        row_ends = ends[np.cumsum(counts) - 1]
        columns = ends - inputs - np.repeat(np.concatenate([[0], row_ends[:-1]]), counts)
        owners = np.repeat(places, counts)
        flat, targets = rows.tokens.ravel(), owners * (length + 1) + columns
        # One copy per piece, because gathering all tokens with an index array takes several times as long.
        for at, offset, size in zip(targets.tolist(), pieces["offset"].tolist(), sizes.tolist(), strict=True):
            flat[at : at + size] = source[offset : offset + size]
        rows.begins[owners, columns] = True
        ending = sizes <= length
        rows.ignored[owners[ending], (columns + inputs)[ending] - 1] = True
        used = np.diff(row_ends, prepend=0)
        for row, end in zip(places[used < length], used[used < length], strict=True):
            rows.begins[row, end] = True
            rows.ignored[row, end:] = True


def _ranges(firsts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Concatenate ranges: ``counts[i]`` consecutive numbers starting at ``firsts[i]``, for each i."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1]) + np.repeat(firsts - (ends - counts), counts)


def _map(path: Path, kind: np.dtype) -> NDArray:
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise _damaged(path, " ".join(str(error).split())) from None
    if array.dtype != kind or array.ndim != 1:
        raise _damaged(path, "not an index of packed samples")
    return array.view(np.ndarray)


def _damaged(path: Path, why: str) -> RequestError:
    # With several sources, the file is in a source's subfolder, but the artefact above it must be rebuilt.
    artefact = next((folder for folder in path.parents if (folder / manifest.NAME).exists()), path.parent)
    advice = repair_hints.hint("packing", artefact)
    return RequestError(f"{path}: damaged ({why}); {advice}")
