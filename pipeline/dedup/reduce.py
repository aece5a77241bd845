"""Reduce: one task's buckets, decided over all parts, to a result file.

A result of documents holds the later copies, ascending; of lines the same as document and line number; of bands the
pairs of near duplicates as the later and the earlier document.
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

#: Later and earlier documents of some pairs.
Pairs = tuple[Documents, Documents]


def reduce(folder: Path, section: CleanSection, task: ReduceTask, max_bytes: int = TASK_BYTES) -> None:
    """Decide a task and publish its result; nothing where it is already there. Tasks may run in any order.

    Of equal documents and equal lines the first in the corpus stays. Documents that share a band's key are compared
    with the first that has it, and where they are not alike with the one just before: a key that very many documents
    share takes time in proportion to them.

    Args:
        folder: of the key files.
        section: the one that the keys were written with.
        task: one of ``plan`` or ``plan_lines``.
        max_bytes: keys held at once.

    Raises:
        RequestError: a key file is missing or damaged; or, for lines, ``resolve`` has not run.
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
        met = groups.add(entries.keys, entries.documents)
        for near in _alike(signatures, entries.documents[met.at], met):
            later.append(near[0])
            earlier.append(near[1])
    (first, second), _ = _distinct(np.concatenate(later), np.concatenate(earlier))
    return [first, second]


def _alike(signatures: Signatures, documents: Documents, met: Later) -> list[Pairs]:
    """The near duplicates among documents and the first, or failing that the previous, of their groups."""
    # A pair that meets in several bands is compared once.
    (later, earlier), which = _distinct(documents, met.first)
    alike = signatures.alike(later, earlier)
    missed = ~alike[which] & (met.previous != met.first)
    (follower, previous), _ = _distinct(documents[missed], met.previous[missed])
    also = signatures.alike(follower, previous)
    return [(later[alike], earlier[alike]), (follower[also], previous[also])]


def _distinct(later: Documents, earlier: Documents) -> tuple[Pairs, NDArray[np.int64]]:
    """Pairs without repetition, ascending, and the place of each given pair among them."""
    order = np.lexsort((earlier, later))
    later, earlier = later[order], earlier[order]
    begins = np.ones(len(order), dtype=bool)
    begins[1:] = (later[1:] != later[:-1]) | (earlier[1:] != earlier[:-1])
    which = np.empty(len(order), np.int64)
    which[order] = np.cumsum(begins) - 1
    return (later[begins], earlier[begins]), which
