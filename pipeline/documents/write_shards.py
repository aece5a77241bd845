"""Third step of the documents stage: write the documents to shards, which the stage then publishes.

Shard NNNNN covers consecutive parts of one source. It consists of ``clean-NNNNN.parquet`` and, if documents were
dropped, ``rejected-NNNNN.parquet``. Its counts are written last, to ``shards/NNNNN.json`` in the parts folder.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import pyarrow.compute as compute
import pyarrow.parquet as parquet

from artefacts import atomic
from artefacts.errors import RequestError
from artefacts.progress import bar
from configs.schema import Recipe
from configs.schema.clean import CleanSection
from pipeline import dedup, parallel
from pipeline.cleaning.cleaner import TOO_SHORT
from pipeline.documents.duplicates import SampleThresholds, read_thresholds, verdict
from pipeline.documents.ingest import finished_parts, kept_path, rejected_path, with_digests
from pipeline.documents.row_files import KEPT_SCHEMA, REJECTED_SCHEMA, SOURCE_COLUMNS, RowFile
from pipeline.parallel import ALL_TASKS, TaskShard

#: Approximate bytes of text per clean shard.
_SHARD_BYTES = 256 << 20

DUPLICATE = "the same text as an earlier document"
NEAR_DUPLICATE = "nearly the same text as an earlier document"
_REASONS = {dedup.EXACT: DUPLICATE, dedup.NEAR: NEAR_DUPLICATE}


class Shard(NamedTuple):
    """One file of the published documents.

    Attributes:
        number: number of the shard, counted across all sources.
        dataset: name of the documents' source.
        parts: numbers of the parts in the shard.
    """

    number: int
    dataset: str
    parts: tuple[int, ...]


def write_shards(recipe: Recipe, parts: Path, work: Path, task_shard: TaskShard) -> list[dict[str, Any]]:
    """Write a task's shards to ``work``, except shards that are already written.

    Returns:
        The counts of every shard if one task does all the work, otherwise an empty list.

    Raises:
        RequestError: a part is not finished, duplicates have not been resolved, or a part is damaged.
    """
    shards = plan(finished_parts(parts))
    thresholds = read_thresholds(recipe, parts)
    counts = parts / "shards"
    counts.mkdir(exist_ok=True)
    if task_shard == ALL_TASKS:
        # An earlier attempt that divided the same sources differently may have left behind more shards.
        for path in work.glob("*.parquet"):
            if int(path.stem.rpartition("-")[2]) >= len(shards):
                path.unlink()
    tasks = [
        (shard, parts, counts, work, recipe.data.clean, thresholds) for shard in shards if task_shard.owns(shard.number)
    ]
    with bar(sum(len(task[0].parts) for task in tasks), "part", "shards", disable=not tasks) as progress:
        for count in parallel.ordered(write_shard, tasks, parallel.count(recipe.data.workers)):
            progress.update(count)
    if task_shard != ALL_TASKS:
        return []
    return [atomic.read_json(counts / f"{shard.number:05d}.json") for shard in shards]


def plan(counts: list[dict[str, Any]]) -> list[Shard]:
    """Divide the parts into shards. The result depends only on the parts' counts."""
    shards: list[Shard] = []
    parts: list[int] = []
    size = 0
    for number, part in enumerate(counts):
        parts.append(number)
        size += part["kept_bytes"]
        last = number + 1 == len(counts) or counts[number + 1]["dataset"] != part["dataset"]
        if size >= _SHARD_BYTES or last:
            shards.append(Shard(len(shards), part["dataset"], tuple(parts)))
            parts, size = [], 0
    return shards


def clean_name(number: int) -> str:
    return f"clean-{number:05d}.parquet"


def write_shard(
    shard: Shard, parts: Path, counts: Path, work: Path, section: CleanSection, thresholds: SampleThresholds
) -> int:
    """Write one shard, unless its counts already exist. Returns its number of parts."""
    counts_path = counts / f"{shard.number:05d}.json"
    if counts_path.exists():
        return len(shard.parts)
    sums = dict.fromkeys(("documents", "bytes", "not_sampled", "removed_lines"), 0)
    dropped: Counter[str] = Counter()
    with (
        RowFile(work / clean_name(shard.number), KEPT_SCHEMA, "zstd") as kept,
        RowFile(work / f"rejected-{shard.number:05d}.parquet", REJECTED_SCHEMA, "zstd", needed=False) as rejected,
    ):
        for number in shard.parts:
            for table in _groups(rejected_path(parts, number)):
                dropped.update(table["reason"].to_pylist())
                rejected.write(table)
            for group in _filtered(number, parts, shard.dataset, section, thresholds):
                kept.write(group.kept)
                rejected.write(group.dropped)
                dropped.update(group.dropped["reason"].to_pylist())
                sums["documents"] += len(group.kept)
                sums["bytes"] += int(np.sum(group.kept["bytes"].to_numpy()))
                sums["not_sampled"] += group.not_sampled
                sums["removed_lines"] += group.removed_lines
    atomic.write_json(counts_path, {"dataset": shard.dataset, **sums, "dropped": dict(dropped)})
    return len(shard.parts)


def _groups(path: Path) -> Iterator[pyarrow.Table]:
    try:
        file = parquet.ParquetFile(path)
        for group in range(file.num_row_groups):
            yield file.read_row_group(group)
    except pyarrow.ArrowException as error:
        message = " ".join(str(error).split())
        raise RequestError(f"{path}: damaged ({message}): rm -r {path.parent} and run the same command again") from None


class _Filtered(NamedTuple):
    """A row group, split into the documents that stay and the documents that are dropped.

    Attributes:
        kept: the documents that stay.
        dropped: the dropped documents, with the reason.
        not_sampled: number of documents that are not sampled.
        removed_lines: number of lines that were removed.
    """

    kept: pyarrow.Table
    dropped: pyarrow.Table
    not_sampled: int
    removed_lines: int


def _filtered(
    number: int, parts: Path, dataset: str, section: CleanSection, thresholds: SampleThresholds
) -> Iterator[_Filtered]:
    """Yield the filtered row groups of a part."""
    duplicates = verdict(parts, section, number)
    start = 0
    for table in _groups(kept_path(parts, number)):
        stop = start + len(table)
        marks = duplicates.documents[start:stop]
        lines = slice(*np.searchsorted(duplicates.rows, [start, stop]))
        is_sampled = thresholds.mask(dataset, table["id"])
        dropped = [_with_reason(table.filter(marks == mark), reason) for mark, reason in _REASONS.items()]
        not_sampled = int(np.sum((marks == dedup.KEPT) & ~is_sampled))
        stays = (marks == dedup.KEPT) & is_sampled
        removed_lines = int(lines.stop - lines.start)
        if removed_lines:
            rows = duplicates.rows[lines].astype(np.int64) - start
            texts = dedup.remove_lines(table["text"], rows, duplicates.lines[lines])
            table = with_digests(table.set_column(1, "text", texts))
            is_short = (compute.utf8_length(texts).to_numpy() < max(section.min_chars, 1)) & stays
            dropped.append(_with_reason(table.filter(is_short), TOO_SHORT))
            stays &= ~is_short
        yield _Filtered(table.filter(stays), pyarrow.concat_tables(dropped), not_sampled, removed_lines)
        start = stop


def _with_reason(table: pyarrow.Table, reason: str) -> pyarrow.Table:
    reasons = pyarrow.array([reason] * len(table), pyarrow.string())
    return table.select(SOURCE_COLUMNS).append_column("reason", reasons).cast(REJECTED_SCHEMA)
