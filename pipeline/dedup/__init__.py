"""Deduplication of documents and long lines, as map and reduce steps over files.

- Map: for each part of the corpus, a ``KeyWriter`` writes the part's sorted keys, in buckets by their top bits.
- Reduce: ``plan`` groups the buckets into tasks, and ``reduce`` finds a task's duplicates across all parts.
- ``resolve`` decides which documents are removed. The line tasks (``plan_lines``) are reduced after that, because lines
  of removed documents don't count.
- ``verdict`` returns what was decided about a part's documents and lines.

All files are in one folder, and each is moved into place atomically, by a rename. The result depends only on the
documents and their order, not on the parts, the tasks or the number of processes.
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
