"""The encoded blocks, put together into the shards that are published.

A new shard begins with the first document beyond ``shard_tokens``: where one ends depends on the documents alone.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.tokens import encode
from pipeline.tokens.indexed_dataset import IndexedDatasetWriter

#: Ids copied at a time.
_COPIED = 8 << 20


class Piece(NamedTuple):
    """Consecutive documents of one block. How long each is stays on the disk: there may be hundreds of millions.

    Attributes:
        block: its number.
        start, stop: the documents, by their places in the block's side.
        first: place of the first id in the block's file of its side.
        documents, tokens: how many go into the shard.
        kept: mask over the documents; None: all.
    """

    block: int
    start: int
    stop: int
    first: int
    documents: int
    tokens: int
    kept: NDArray[np.bool_] | None = None


class TokenShard(NamedTuple):
    """Attributes:
    prefix: path of the shard without its suffix.
    side: train or val.
    pieces: where its documents come from, in order.
    """

    prefix: Path
    side: str
    pieces: list[Piece]

    @property
    def tokens(self) -> int:
        return sum(piece.tokens for piece in self.pieces)

    @property
    def documents(self) -> int:
        return sum(piece.documents for piece in self.pieces)


def plan(
    folder: Path,
    side: str,
    found: Iterable[tuple[int, NDArray[np.int32]]],
    shard_tokens: int,
    kept: dict[int, NDArray[np.bool_]] | None = None,
) -> Iterator[TokenShard]:
    """The shards of one side of one source.

    Args:
        folder: where they go.
        side: train or val.
        found: number of each block, and the ids of each of its documents; one block is held at a time.
        shard_tokens: tokens a shard, about.
        kept: number of a block -> mask of its documents that go in; left out: all do.
    """
    pieces: list[Piece] = []
    total = number = 0
    for block, lengths in found:
        counted = lengths if kept is None else np.where(kept[block], lengths, 0)
        ends = np.cumsum(counted, dtype=np.int64)
        places = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        first = 0
        while first < len(lengths):
            before = int(ends[first - 1]) if first else 0
            stop = min(int(np.searchsorted(ends, before + shard_tokens - total)) + 1, len(lengths))
            mask = None if kept is None else kept[block][first:stop]
            tokens, documents = int(ends[stop - 1]) - before, stop - first if mask is None else int(mask.sum())
            pieces.append(Piece(block, first, stop, int(places[first]), documents, tokens, mask))
            total += tokens
            first = stop
            if total >= shard_tokens:
                yield TokenShard(folder / f"{side}-{number:05d}", side, pieces)
                pieces, total, number = [], 0, number + 1
    if total:
        yield TokenShard(folder / f"{side}-{number:05d}", side, pieces)


def write(shard: TokenShard, encoded: Path, id_kind: str) -> int:
    """Write one shard, unless it is there; returns its tokens."""
    if shard.prefix.with_name(shard.prefix.name + ".idx").exists():
        return shard.tokens
    shard.prefix.parent.mkdir(parents=True, exist_ok=True)
    writer = IndexedDatasetWriter(shard.prefix, np.dtype(id_kind))
    for piece in shard.pieces:
        path = encode.ids_path(encoded, piece.block, shard.side)
        own = encode.lengths(encoded, piece.block, shard.side)[piece.start : piece.stop]
        for lengths, kept, first in _copies(piece, own):
            count = int(lengths.sum(dtype=np.int64))
            ids = np.fromfile(path, id_kind, count, offset=first * np.dtype(id_kind).itemsize)
            writer.add(*((ids, lengths) if kept is None else (ids[np.repeat(kept, lengths)], lengths[kept])))
    writer.finish()
    return shard.tokens


def _copies(
    piece: Piece, lengths: NDArray[np.int32]
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.bool_] | None, int]]:
    """A piece in portions of about ``_COPIED`` ids: lengths, mask, place of the first id."""
    ends = np.cumsum(lengths, dtype=np.int64)
    start = 0
    while start < len(ends):
        before = int(ends[start - 1]) if start else 0
        stop = min(int(np.searchsorted(ends, before + _COPIED)) + 1, len(ends))
        yield lengths[start:stop], None if piece.kept is None else piece.kept[start:stop], piece.first + before
        start = stop
