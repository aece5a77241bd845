"""Duplicates among the documents of a corpus and among their long lines, as map, shuffle and reduce over files.

Map: a ``KeyWriter`` for each part of the corpus writes the part's keys, sorted, in buckets of the key's top bits.
Reduce: ``plan`` cuts the buckets into tasks, and ``reduce`` decides each task over all parts. ``resolve`` then says
which documents go; line tasks (``plan_lines``) come after it, because a line of a document that goes hides no other.
``verdict`` gives a part what happens to its documents and lines. Everything lies in one folder, every file is
published by a rename, and what is decided depends on the documents and their order alone: not on how they were cut
into parts, on the tasks, or on how many processes worked on them.
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
