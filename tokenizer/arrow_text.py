"""Arrow text columns, and their token ids as flat arrays."""

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: The concatenated ids of several documents, and each document's number of ids.
Encoded = tuple[NDArray[np.int32], NDArray[np.int32]]

#: Number of documents to convert to Python objects at a time.
_BATCH = 1024


def chunks(texts: Any) -> Iterator[Any]:
    """Yield the non-empty chunks of a text column as ``StringArray`` or ``LargeStringArray``."""
    import pyarrow

    plain = (pyarrow.string(), pyarrow.large_string())
    for chunk in texts.chunks if isinstance(texts, pyarrow.ChunkedArray) else [texts]:
        if len(chunk):
            yield chunk if chunk.type in plain else chunk.cast(pyarrow.large_string())


def offsets(chunk: Any) -> NDArray[np.int64]:
    """Return the byte offsets of a chunk's texts in its data buffer, and the offset where the last text ends."""
    kind = np.int32 if str(chunk.type) == "string" else np.int64
    offsets_in_buffer = np.frombuffer(chunk.buffers()[1], kind)[chunk.offset : chunk.offset + len(chunk) + 1]
    return offsets_in_buffer.astype(np.int64)


def joined(parts: list[Encoded]) -> Encoded:
    """Concatenate encoded parts into one."""
    if len(parts) == 1:
        return parts[0]
    empty = np.empty(0, np.int32)
    ids, lengths = [part[0] for part in parts], [part[1] for part in parts]
    return np.concatenate([empty, *ids]), np.concatenate([empty, *lengths])


def encode_lists(texts: Any, encode: Callable[[list[str]], list[list[int]]], end: int | None) -> Encoded:
    """Encode a column by converting batches to Python lists. If ``end`` is not None, append it to each text's ids."""
    parts: list[Encoded] = []
    tail = [] if end is None else [end]
    for chunk in chunks(texts):
        for start in range(0, len(chunk), _BATCH):
            encoded = encode(chunk[start : start + _BATCH].to_pylist())
            lengths = np.fromiter(map(len, encoded), np.int64, len(encoded)) + len(tail)
            flat = chain.from_iterable(chain(ids, tail) for ids in encoded)
            parts.append((np.fromiter(flat, np.int32, int(lengths.sum())), lengths.astype(np.int32)))
    return joined(parts)
