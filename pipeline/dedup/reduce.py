"""The reduce step: find the duplicates in a task's buckets, across all parts, and write them to a file.

For documents, the result lists every copy except the first, in corpus order. For lines, it lists the document and line
number of every copy except the first. For bands, it lists pairs of near duplicates, each with the later document first.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.schema.clean import CleanSection
from pipeline.dedup import array_file
from pipeline.dedup.groups import Documents, Groups, Later, chunks
from pipeline.dedup.keys import BANDS, KEY_COLUMNS, LINES
from pipeline.dedup.similarity import Signatures
from pipeline.dedup.tasks import TASK_BYTES, ReduceTask, result_path
from pipeline.dedup.verdicts import kept_documents

#: Pairs of documents, as two arrays: the later and the earlier document of each pair.
Pairs = tuple[Documents, Documents]


def reduce(folder: Path, section: CleanSection, task: ReduceTask, max_bytes: int = TASK_BYTES) -> None:
    """Write a task's result unless it already exists. Tasks can run in any order.

    The first of several equal documents or lines is kept. A document whose band key occurred earlier is compared with
    the first document that has this key and, if the two are not similar, with the previous document that has it. The
    time is therefore linear in the number of documents, even if many of them share a key.

    Args:
        folder: folder with the key files.
        section: the settings that the keys were written with.
        task: a task from ``plan`` or ``plan_lines``.
        max_bytes: maximum size of the keys in memory.

    Raises:
        RequestError: a key file is missing or damaged, or (for lines) ``resolve`` has not run.
    """
    path = result_path(folder, task)
    if path.exists():
        return
    decide = _near if task.kind == BANDS else _copies
    array_file.write(path, *decide(folder, section, task, max_bytes))


def _copies(folder: Path, section: CleanSection, task: ReduceTask, max_bytes: int) -> list[NDArray[Any]]:
    lines = task.kind == LINES
    wanted = kept_documents(folder) if lines else None
    groups = Groups(KEY_COLUMNS[task.kind])
    documents, numbers = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint32)]
    for entries in chunks(folder, task, max_bytes, wanted):
        at = groups.add(entries.keys, entries.documents).at
        documents.append(entries.documents[at])
        numbers.append(entries.numbers[at] if lines else entries.numbers)
    document, number = np.concatenate(documents), np.concatenate(numbers)
    if not lines:
        return [np.sort(document)]
    order = np.lexsort((number, document))
    return [document[order], number[order]]


def _near(folder: Path, section: CleanSection, task: ReduceTask, max_bytes: int) -> list[NDArray[Any]]:
    groups = Groups(KEY_COLUMNS[task.kind])
    signatures = Signatures(folder, section.near_dedup)
    later, earlier = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint64)]
    for entries in chunks(folder, task, max_bytes, None):
        repeated = groups.add(entries.keys, entries.documents)
        for pairs in _similar(signatures, entries.documents[repeated.at], repeated):
            later.append(pairs[0])
            earlier.append(pairs[1])
    (first, second), _ = _distinct(np.concatenate(later), np.concatenate(earlier))
    return [first, second]


def _similar(signatures: Signatures, documents: Documents, repeated: Later) -> list[Pairs]:
    """Return pairs of near duplicates, each with the later document first.

    Each document is compared with the first document that has the same key and, if those two are not similar, with the
    previous document that has it.
    """
    # A pair that shares several bands is compared only once.
    (later, earlier), which = _distinct(documents, repeated.first)
    is_similar = signatures.are_similar(later, earlier)
    missed = ~is_similar[which] & (repeated.previous != repeated.first)
    (follower, previous), _ = _distinct(documents[missed], repeated.previous[missed])
    also = signatures.are_similar(follower, previous)
    return [(later[is_similar], earlier[is_similar]), (follower[also], previous[also])]


def _distinct(later: Documents, earlier: Documents) -> tuple[Pairs, NDArray[np.int64]]:
    """Return the distinct pairs, ascending, and the index of each input pair among them."""
    order = np.lexsort((earlier, later))
    later, earlier = later[order], earlier[order]
    begins = np.ones(len(order), dtype=bool)
    begins[1:] = (later[1:] != later[:-1]) | (earlier[1:] != earlier[:-1])
    which = np.empty(len(order), np.int64)
    which[order] = np.cumsum(begins) - 1
    return (later[begins], earlier[begins]), which
