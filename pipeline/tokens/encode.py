"""Second step of the tokens stage: encode the documents in independent blocks.

Block NNNNNN consists of consecutive row groups from one document file. Encoding it writes ``NNNNNN.train.bin`` and
``NNNNNN.val.bin``: the token ids of its documents, each followed by the end-of-text token. ``NNNNNN.npz`` is written
last, so a block with that file is finished.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow
from numpy.typing import NDArray

from artefacts import atomic
from pipeline.documents import read_shards
from pipeline.tokens.held_out import Thresholds
from pipeline.tokens.overlap import HeldOut
from tokenizer.base import Tokenizer
from tokenizer.registry import load_tokenizer

#: A block has 1/256 of the text, within these byte limits. This gives many tasks enough blocks, but few files.
_BLOCKS, _LEAST_BYTES, _MOST_BYTES = 256, 4 << 20, 64 << 20

TRAIN, VALIDATION = "train", "val"


class Block(NamedTuple):
    """Consecutive row groups of one document file, encoded together.

    Attributes:
        number: number of the block, counted across all files.
        dataset: name of the documents' source.
        path: the document file.
        groups: the block's row groups in the file.
        size: size of the block's text in bytes.
    """

    number: int
    dataset: str
    path: Path
    groups: range
    size: int


class _Encoded(NamedTuple):
    """The contents of a block's ``.npz`` file.

    Attributes:
        lengths: side -> number of token ids in each document, including end-of-text.
        sizes: side -> size of each document's text in bytes.
        ids: identifiers of the held-out documents.
        shared: the held-out documents' word sequences that also occur in the block's training documents, as indices
            into ``HeldOut.distinct``.
    """

    lengths: dict[str, NDArray[np.int32]]
    sizes: dict[str, NDArray[np.int64]]
    ids: NDArray
    shared: NDArray[np.int64]


def plan(files: dict[str, list[Path]]) -> list[Block]:
    """Divide the documents into blocks. The result depends only on the sizes of the files' row groups."""
    sizes = {path: read_shards.group_bytes(path) for paths in files.values() for path in paths}
    most = min(max(sum(map(sum, sizes.values())) // _BLOCKS, _LEAST_BYTES), _MOST_BYTES)
    blocks: list[Block] = []
    for dataset, paths in files.items():
        for path in paths:
            first = size = 0
            for group, more in enumerate(sizes[path]):
                size += more
                if size >= most or group + 1 == len(sizes[path]):
                    blocks.append(Block(len(blocks), dataset, path, range(first, group + 1), size))
                    first, size = group + 1, 0
    return blocks


def prepare(tokenizer: Path, id_type: str, thresholds: Thresholds, held_out: Path | None) -> None:
    """Load the objects that ``encode`` needs into this process. If ``held_out`` is None, overlap is not measured."""
    sequences = HeldOut.load(held_out) if held_out else None
    _state[:] = [_State(load_tokenizer(tokenizer), np.dtype(id_type), thresholds, sequences)]


class _State(NamedTuple):
    tokenizer: Tokenizer
    id_type: np.dtype
    thresholds: Thresholds
    held_out: HeldOut | None


#: The objects that ``encode`` needs, loaded once per process.
_state: list[_State] = []


def ids_path(folder: Path, number: int, side: str) -> Path:
    return folder / f"{number:06d}.{side}.bin"


def encode(block: Block, folder: Path) -> int:
    """Encode a block. Returns the size of its text in bytes."""
    state = _state[0]
    lengths: dict[str, list[NDArray]] = {TRAIN: [], VALIDATION: []}
    sizes: dict[str, list[NDArray]] = {TRAIN: [], VALIDATION: []}
    held_out_ids: list[str] = []
    shared = [np.zeros(0, np.int64)]
    partial = {side: atomic.temp_path(ids_path(folder, block.number, side)) for side in lengths}
    with ExitStack() as stack:
        streams = {side: stack.enter_context(open(path, "wb")) for side, path in partial.items()}
        for group in block.groups:
            for side, chosen in _sides(block, group, state.thresholds):
                ids, counts = state.tokenizer.encode_column(chosen["text"])
                streams[side].write(ids.astype(state.id_type).tobytes())
                lengths[side].append(counts.astype(np.int32))
                sizes[side].append(chosen["bytes"].to_numpy())
                if side == VALIDATION:
                    held_out_ids += chosen["id"].to_pylist()
                elif state.held_out:
                    shared.append(state.held_out.shared(chosen["text"]))
    for side, path in partial.items():
        atomic.rename_file(path, ids_path(folder, block.number, side))
    encoded = _Encoded(
        {side: np.concatenate(parts) for side, parts in lengths.items()},
        {side: np.concatenate(parts) for side, parts in sizes.items()},
        np.array(held_out_ids, dtype=np.str_),
        np.unique(np.concatenate(shared)),
    )
    _write(folder, block.number, encoded)
    return block.size


def _sides(block: Block, group: int, thresholds: Thresholds) -> Iterator[tuple[str, pyarrow.Table]]:
    """Yield the name and the documents of each side of a row group: first training, then held out."""
    table = read_shards.read_group(block.path, group, ["id", "text", "bytes", "digest"])
    held_out = thresholds.held_out(block.dataset, table["digest"])
    yield TRAIN, table.filter(pyarrow.array(~held_out))
    yield VALIDATION, table.filter(pyarrow.array(held_out))


def _write(folder: Path, number: int, encoded: _Encoded) -> None:
    arrays: dict[str, Any] = {f"{side}_lengths": array for side, array in encoded.lengths.items()}
    arrays |= {f"{side}_bytes": array for side, array in encoded.sizes.items()}
    partial = atomic.temp_path(folder / f"{number:06d}.npz")
    with open(partial, "wb") as stream:
        np.savez(stream, ids=encoded.ids, shared=encoded.shared, **arrays)
    atomic.rename_file(partial, folder / f"{number:06d}.npz")


def finished(folder: Path, number: int) -> bool:
    return (folder / f"{number:06d}.npz").exists()


def lengths(folder: Path, number: int, side: str) -> NDArray[np.int32]:
    """Return the number of token ids in each document, for one side of a finished block."""
    return _member(folder, number, f"{side}_lengths")


def sizes(folder: Path, number: int, side: str) -> NDArray[np.int64]:
    """Return the size of each document's text in bytes, for one side of a finished block."""
    return _member(folder, number, f"{side}_bytes")


def held_out_ids(folder: Path, number: int) -> NDArray:
    """Return the identifiers of a finished block's held-out documents."""
    return _member(folder, number, "ids")


def shared(folder: Path, number: int) -> NDArray[np.int64]:
    """Return the held-out word sequences that also occur in a finished block's training documents.

    The result contains indices into ``HeldOut.distinct``.
    """
    return _member(folder, number, "shared")


def _member(folder: Path, number: int, name: str) -> NDArray[Any]:
    """Read a single array of a block, without loading the other arrays."""
    with np.load(folder / f"{number:06d}.npz") as arrays:
        array: NDArray[Any] = arrays[name]
        return array
