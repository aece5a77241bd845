"""Reduce tasks: ranges of buckets whose total key size across all parts is bounded.

A plan depends only on the sizes in the key files, so all processes get the same plan.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from configs.schema.clean import CleanSection
from pipeline.dedup import array_file
from pipeline.dedup.keys import BUCKETS, LINES, kinds

#: Size of a task's keys, in bytes. Sorting and comparing them needs up to ten times as much memory.
TASK_BYTES = 40 << 20


class ReduceTask(NamedTuple):
    """Buckets ``begin`` to ``end`` (exclusive) of one kind of key, across all parts."""

    kind: str
    begin: int
    end: int


def plan(folder: Path, section: CleanSection, max_bytes: int = TASK_BYTES) -> list[ReduceTask]:
    """Return the document tasks, which must be reduced before ``resolve`` runs. All parts' keys must exist.

    Raises:
        RequestError: a key file is damaged.
    """
    return [task for kind in kinds(section) if kind != LINES for task in _tasks(folder, kind, max_bytes)]


def plan_lines(folder: Path, section: CleanSection, max_bytes: int = TASK_BYTES) -> list[ReduceTask]:
    """Return the line tasks, which must be reduced after ``resolve`` has run.

    There are no line tasks if ``clean.line_dedup_chars`` is 0.

    Raises:
        RequestError: a key file is damaged.
    """
    return _tasks(folder, LINES, max_bytes) if LINES in kinds(section) else []


def _tasks(folder: Path, kind: str, max_bytes: int) -> list[ReduceTask]:
    sizes = np.zeros(BUCKETS, np.int64)
    for part in array_file.parts(folder, kind):
        _, offsets, *columns = array_file.read(array_file.part_path(folder, kind, part))
        places = offsets.astype(np.int64)
        sizes += (places[1:] - places[:-1]) * sum(column.itemsize for column in columns)
    ends, held = [], 0
    for bucket, size in enumerate(sizes.tolist()):
        if held and held + size > max_bytes:
            ends.append(bucket)
            held = 0
        held += size
    ends.append(BUCKETS)
    array_file.write(_plan_path(folder, kind), np.array(ends, np.int64))
    return _from_ends(kind, ends)


def _from_ends(kind: str, ends: list[int]) -> list[ReduceTask]:
    return [ReduceTask(kind, begin, end) for begin, end in zip([0, *ends[:-1]], ends, strict=True)]


def _plan_path(folder: Path, kind: str) -> Path:
    return folder / f"plan-{kind}{array_file.SUFFIX}"


def planned(folder: Path, kind: str) -> list[ReduceTask]:
    """Return the latest plan for a kind of key.

    Raises:
        RequestError: there is no plan.
    """
    (ends,) = array_file.read(_plan_path(folder, kind))
    return _from_ends(kind, ends.tolist())


def result_path(folder: Path, task: ReduceTask) -> Path:
    """Return the path of a task's result file."""
    return folder / "results" / f"{task.kind}-{task.begin:04d}-{task.end:04d}{array_file.SUFFIX}"
