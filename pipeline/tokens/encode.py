"""Encoding of the documents in blocks: the part of the tokens stage that takes time, each block by itself.

Block NNNNNN is some consecutive row groups of one file of documents. It leaves ``NNNNNN.train.bin`` and
``NNNNNN.val.bin`` (ids of its documents one after the other, each ended by the end-of-text token) and at last
``NNNNNN.npz``: a block that has that is finished.
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
from pipeline.tokens.held_out import Limits
from pipeline.tokens.overlap import HeldOut
from tokenizer.base import Tokenizer
from tokenizer.registry import load_tokenizer

#: A block's text is a 256th of all, between these sizes in bytes: enough blocks to share out, few enough files.
_BLOCKS, _LEAST_BYTES, _MOST_BYTES = 256, 4 << 20, 64 << 20

TRAIN, VALIDATION = "train", "val"


class Block(NamedTuple):
    """Attributes:
    number: its number, over all files.
    dataset: the source that its documents are from.
    path: the file.
    groups: its row groups.
    size: bytes of their text.
    """

    number: int
    dataset: str
    path: Path
    groups: range
    size: int


class _Encoded(NamedTuple):
    """What a finished block holds.

    Attributes:
        lengths: side -> ids of each document, end-of-text included.
        sizes: side -> bytes of text of each document.
        ids: identifiers of the held-out documents.
        shared: places, in the sorted distinct sequences of all held-out documents, of those that its training
            documents contain.
    """

    lengths: dict[str, NDArray[np.int32]]
    sizes: dict[str, NDArray[np.int64]]
    ids: NDArray
    shared: NDArray[np.int64]


def plan(files: dict[str, list[Path]]) -> list[Block]:
    """The blocks, from the sizes of the files' row groups alone."""
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


def prepare(tokenizer: Path, id_kind: str, limits: Limits, held_out: Path | None) -> None:
    """Give this process what ``encode`` needs; without ``held_out`` the overlap is not measured."""
    compared = HeldOut.load(held_out) if held_out else None
    _state[:] = [_State(load_tokenizer(tokenizer), np.dtype(id_kind), limits, compared)]


class _State(NamedTuple):
    tokenizer: Tokenizer
    id_kind: np.dtype
    limits: Limits
    held_out: HeldOut | None


#: What ``encode`` needs, loaded once a process.
_state: list[_State] = []


def ids_path(folder: Path, number: int, side: str) -> Path:
    return folder / f"{number:06d}.{side}.bin"


def encode(block: Block, folder: Path) -> int:
    """Encode a block; returns the bytes of its text."""
    state = _state[0]
    lengths: dict[str, list[NDArray]] = {TRAIN: [], VALIDATION: []}
    sizes: dict[str, list[NDArray]] = {TRAIN: [], VALIDATION: []}
    held_out_ids: list[str] = []
    shared = [np.zeros(0, np.int64)]
    beside = {side: atomic.temp_path(ids_path(folder, block.number, side)) for side in lengths}
    with ExitStack() as stack:
        streams = {side: stack.enter_context(open(path, "wb")) for side, path in beside.items()}
        for group in block.groups:
            for side, chosen in _sides(block, group, state.limits):
                ids, counts = state.tokenizer.encode_column(chosen["text"])
                streams[side].write(ids.astype(state.id_kind).tobytes())
                lengths[side].append(counts.astype(np.int32))
                sizes[side].append(chosen["bytes"].to_numpy())
                if side == VALIDATION:
                    held_out_ids += chosen["id"].to_pylist()
                elif state.held_out:
                    shared.append(state.held_out.shared(chosen["text"]))
    for side, path in beside.items():
        atomic.rename_file(path, ids_path(folder, block.number, side))
    found = _Encoded(
        {side: np.concatenate(parts) for side, parts in lengths.items()},
        {side: np.concatenate(parts) for side, parts in sizes.items()},
        np.array(held_out_ids, dtype=np.str_),
        np.unique(np.concatenate(shared)),
    )
    _write(folder, block.number, found)
    return block.size


def _sides(block: Block, group: int, limits: Limits) -> Iterator[tuple[str, pyarrow.Table]]:
    """The training documents of a row group, and the held-out ones."""
    table = read_shards.read_group(block.path, group, ["id", "text", "bytes", "digest"])
    held_out = limits.held_out(block.dataset, table["digest"])
    yield TRAIN, table.filter(pyarrow.array(~held_out))
    yield VALIDATION, table.filter(pyarrow.array(held_out))


def _write(folder: Path, number: int, found: _Encoded) -> None:
    arrays: dict[str, Any] = {f"{side}_lengths": array for side, array in found.lengths.items()}
    arrays |= {f"{side}_bytes": array for side, array in found.sizes.items()}
    beside = atomic.temp_path(folder / f"{number:06d}.npz")
    with open(beside, "wb") as stream:
        np.savez(stream, ids=found.ids, shared=found.shared, **arrays)
    atomic.rename_file(beside, folder / f"{number:06d}.npz")


def finished(folder: Path, number: int) -> bool:
    return (folder / f"{number:06d}.npz").exists()


def lengths(folder: Path, number: int, side: str) -> NDArray[np.int32]:
    """Ids of each document of one side of a finished block."""
    return _member(folder, number, f"{side}_lengths")


def sizes(folder: Path, number: int, side: str) -> NDArray[np.int64]:
    """Bytes of text of each document of one side of a finished block."""
    return _member(folder, number, f"{side}_bytes")


def held_out_ids(folder: Path, number: int) -> NDArray:
    """Identifiers of the held-out documents of a finished block."""
    return _member(folder, number, "ids")


def shared(folder: Path, number: int) -> NDArray[np.int64]:
    """Places of the held-out sequences that the training documents of a finished block contain."""
    return _member(folder, number, "shared")


def _member(folder: Path, number: int, name: str) -> NDArray[Any]:
    """One array of a block; the others stay on the disk."""
    with np.load(folder / f"{number:06d}.npz") as found:
        array: NDArray[Any] = found[name]
        return array
