"""Deduplication of documents and of long lines, as map and reduce steps over files.

- Map: a ``KeyWriter`` for each part of the corpus writes the sorted keys of the part, in buckets by their top bits.
- Reduce: ``plan`` groups the buckets into tasks, and ``reduce`` finds the duplicates of a task over all parts.
- ``resolve`` decides which documents are removed. After that, line tasks (``plan_lines``) are reduced, because lines of
  removed documents do not count.
- ``verdict`` returns what happens to the documents and lines of a part.

All files are in one folder and are published by a rename. The result depends only on the documents and their order, not
on the parts, the tasks or the number of processes.
"""

from pipeline.dedup.keys import KeyWriter, kinds
from pipeline.dedup.lines import remove_lines
from pipeline.dedup.reduce import reduce
from pipeline.dedup.tasks import ReduceTask, plan, plan_lines
from pipeline.dedup.verdicts import EXACT, KEPT, NEAR, Verdict, resolve, verdict

__all__ = [
    "EXACT",
    "KEPT",
    "NEAR",
    "KeyWriter",
    "ReduceTask",
    "Verdict",
    "kinds",
    "plan",
    "plan_lines",
    "reduce",
    "remove_lines",
    "resolve",
    "verdict",
]
