"""Last step of the tokens stage: join the encoded blocks into shards.

A shard ends with the document that makes it reach ``shard_tokens``, so the shards depend only on the documents.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.tokens import encode
from pipeline.tokens.indexed_dataset import IndexedDatasetWriter

#: Approximate number of ids to copy at a time.
_COPIED = 8 << 20


class Piece(NamedTuple):
    """Consecutive documents of one block. Their lengths stay on disk, since there can be hundreds of millions of them.

    Attributes:
        block: number of the block.
        start, stop: range of the documents within the block's side.
        first: index of the first document's first id in the block's file.
        documents, tokens: number of documents and tokens that go into the shard.
        kept: mask of the documents that go into the shard, or None for all of them.
    """

    block: int
    start: int
    stop: int
    first: int
    documents: int
    tokens: int
    kept: NDArray[np.bool_] | None = None


class TokenShard(NamedTuple):
    """A shard to be written.

    Attributes:
        prefix: path of the shard, without the suffix.
        side: train or val.
        pieces: its documents, in order.
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
    blocks: Iterable[tuple[int, NDArray[np.int32]]],
    shard_tokens: int,
    kept: dict[int, NDArray[np.bool_]] | None = None,
) -> Iterator[TokenShard]:
    """Plan the shards for one side of one source.

    Args:
        folder: where the shards will be written.
        side: train or val.
        blocks: the number of each block, with the number of ids in each of its documents. One block at a time is held
            in memory.
        shard_tokens: approximate tokens per shard.
        kept: block number -> mask of its documents that are kept, or None to keep all documents.
    """
    pieces: list[Piece] = []
    total = number = 0
    for block, lengths in blocks:
        counted = lengths if kept is None else np.where(kept[block], lengths, 0)
        ends = np.cumsum(counted, dtype=np.int64)
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        first = 0
        while first < len(lengths):
            before = int(ends[first - 1]) if first else 0
            stop = min(int(np.searchsorted(ends, before + shard_tokens - total)) + 1, len(lengths))
            mask = None if kept is None else kept[block][first:stop]
            tokens, documents = int(ends[stop - 1]) - before, stop - first if mask is None else int(mask.sum())
            pieces.append(Piece(block, first, stop, int(offsets[first]), documents, tokens, mask))
            total += tokens
            first = stop
            if total >= shard_tokens:
                yield TokenShard(folder / f"{side}-{number:05d}", side, pieces)
                pieces, total, number = [], 0, number + 1
    if total:
        yield TokenShard(folder / f"{side}-{number:05d}", side, pieces)


def write(shard: TokenShard, encoded: Path, id_type: str) -> int:
    """Write one shard, unless it already exists. Returns its token count. ``encoded`` is the blocks' folder."""
    if shard.prefix.with_name(shard.prefix.name + ".idx").exists():
        return shard.tokens
    shard.prefix.parent.mkdir(parents=True, exist_ok=True)
    writer = IndexedDatasetWriter(shard.prefix, np.dtype(id_type))
    for piece in shard.pieces:
        path = encode.ids_path(encoded, piece.block, shard.side)
        piece_lengths = encode.lengths(encoded, piece.block, shard.side)[piece.start : piece.stop]
        for lengths, kept, first in _copies(piece, piece_lengths):
            count = int(lengths.sum(dtype=np.int64))
            ids = np.fromfile(path, id_type, count, offset=first * np.dtype(id_type).itemsize)
            writer.add(*((ids, lengths) if kept is None else (ids[np.repeat(kept, lengths)], lengths[kept])))
    writer.finish()
    return shard.tokens


def _copies(
    piece: Piece, lengths: NDArray[np.int32]
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.bool_] | None, int]]:
    """Split a piece into portions of about ``_COPIED`` ids.

    Yields each portion's document lengths, its mask, and the index of its first id.
    """
    ends = np.cumsum(lengths, dtype=np.int64)
    start = 0
    while start < len(ends):
        before = int(ends[start - 1]) if start else 0
        stop = min(int(np.searchsorted(ends, before + _COPIED)) + 1, len(ends))
        yield lengths[start:stop], None if piece.kept is None else piece.kept[start:stop], piece.first + before
        start = stop
