"""Find entries with equal keys across all parts, in bounded memory.

Entries arrive in corpus order, in chunks that consist of complete parts. Of each key's entries in earlier chunks, only
the first and the last are kept, so a key that many documents share needs no more memory than any other key.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.dedup import array_file
from pipeline.dedup.keys import KEY_COLUMNS
from pipeline.dedup.tasks import ReduceTask

#: Documents, as part << 32 | row.
Documents = NDArray[np.uint64]


class Entries(NamedTuple):
    """Entries of key files.

    Attributes:
        keys: one or two key columns.
        documents: the document each entry comes from.
        numbers: each entry's line number in its document; empty for kinds other than lines.
    """

    keys: list[NDArray[np.uint64]]
    documents: Documents
    numbers: NDArray[np.uint32]


class Later(NamedTuple):
    """The entries in a chunk that have the same key as an earlier entry.

    Attributes:
        at: indices of these entries within the chunk.
        first: the document of the first entry with the same key.
        previous: the document of the previous entry with the same key.
    """

    at: NDArray[np.int64]
    first: Documents
    previous: Documents


class Groups:
    """The keys of all entries added so far, with the first and last document for each key."""

    def __init__(self, key_columns: int) -> None:
        self._keys = [np.zeros(0, np.uint64)] * key_columns
        self._first = self._last = np.zeros(0, np.uint64)

    def add(self, keys: list[NDArray[np.uint64]], documents: Documents) -> Later:
        """Append entries, and return the ones that have the same key as an earlier entry.

        Entries must be in corpus order and come after all entries added so far.
        """
        known = len(self._first)
        keys = [np.concatenate(pair) for pair in zip(self._keys, keys, strict=True)]
        # The sort is stable: among equal keys, known ones come first, and then the new ones in corpus order.
        order = np.lexsort(keys[::-1])
        keys = [column[order] for column in keys]
        begins = np.ones(len(order), dtype=bool)
        begins[1:] = np.any([column[1:] != column[:-1] for column in keys], axis=0)
        starts = np.flatnonzero(begins)
        later = np.flatnonzero(~begins)
        first = np.concatenate([self._first, documents])[order[starts]]
        last = np.concatenate([self._last, documents])[order]
        group = np.searchsorted(starts, later, side="right") - 1
        repeated = Later(order[later] - known, first[group], last[later - 1])
        self._keys, self._first = [column[starts] for column in keys], first
        self._last = last[np.append(starts[1:], len(order)) - 1] if len(order) else last
        return repeated


def chunks(
    folder: Path, task: ReduceTask, max_bytes: int, wanted: Callable[[int], NDArray[np.bool_]] | None
) -> Iterator[Entries]:
    """Yield a task's entries in corpus order, in chunks of complete parts.

    Args:
        folder: folder with the key files.
        task: the range of buckets.
        max_bytes: maximum size of a chunk, unless a single part is larger.
        wanted: maps a part to the mask of the documents whose entries are included. None includes all entries.

    Raises:
        RequestError: a key file is damaged.
    """
    held: list[Entries] = []
    size = 0
    for part in array_file.parts(folder, task.kind):
        entries, entry_bytes = _part_entries(folder, task, part, wanted(part) if wanted else None)
        if held and size + entry_bytes > max_bytes:
            full = _joined(held)
            held, size = [], 0
            yield full
        held.append(entries)
        size += entry_bytes
    if held:
        yield _joined(held)


def _part_entries(folder: Path, task: ReduceTask, part: int, mask: NDArray[np.bool_] | None) -> tuple[Entries, int]:
    _, offsets, *columns = array_file.read(array_file.part_path(folder, task.kind, part))
    in_task = slice(int(offsets[task.begin]), int(offsets[task.end]))
    values: list[NDArray[Any]] = [np.array(column[in_task]) for column in columns]
    count = KEY_COLUMNS[task.kind]
    if mask is not None:
        stays = mask[values[count]]
        values = [column[stays] for column in values]
    documents = values[count].astype(np.uint64) | np.uint64(part << 32)
    numbers = values[count + 1] if len(values) > count + 1 else np.zeros(0, np.uint32)
    return Entries(values[:count], documents, numbers), sum(column.nbytes for column in values)


def _joined(held: list[Entries]) -> Entries:
    keys = [np.concatenate(column) for column in zip(*(entries.keys for entries in held), strict=True)]
    documents = np.concatenate([entries.documents for entries in held])
    return Entries(keys, documents, np.concatenate([entries.numbers for entries in held]))
