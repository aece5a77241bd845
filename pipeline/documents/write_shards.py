"""Last step of the documents stage: the parts without their duplicates, as the shards that are published.

Shard NNNNN is made of consecutive parts of one source: ``clean-NNNNN.parquet``, and ``rejected-NNNNN.parquet`` where
anything was dropped. Its counts lie in ``shards/NNNNN.json`` under the stage's scratch folder, written last.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import pyarrow.compute as compute
import pyarrow.parquet as parquet
from numpy.typing import NDArray

from artefacts import atomic
from artefacts.errors import RequestError
from artefacts.hashing import keyed_hashes
from configs.schema.clean import CleanSection
from pipeline import dedup
from pipeline.cleaning.cleaner import TOO_SHORT
from pipeline.documents.ingest import kept_path, rejected_path, with_digests
from pipeline.documents.row_files import KEPT_SCHEMA, OWN_COLUMNS, REJECTED_SCHEMA, RowFile

#: Text of a clean shard, in bytes, about.
_SHARD_BYTES = 256 << 20

DUPLICATE = "the same text as an earlier document"
NEAR_DUPLICATE = "nearly the same text as an earlier document"
_REASONS = {dedup.EXACT: DUPLICATE, dedup.NEAR: NEAR_DUPLICATE}


class Shard(NamedTuple):
    """One file of the published documents.

    Attributes:
        number: its number, over all sources.
        dataset: the source that its documents are from.
        parts: numbers of the parts that it is made of.
    """

    number: int
    dataset: str
    parts: tuple[int, ...]


class Sampled(NamedTuple):
    """Which documents the sample takes: those whose hash of (seed, id) is not above the source's threshold."""

    seed: int
    thresholds: dict[str, int | None]

    def mask(self, dataset: str, ids: pyarrow.ChunkedArray) -> NDArray[np.bool_]:
        most = self.thresholds.get(dataset)
        if most is None:
            return np.ones(len(ids), dtype=bool)
        return document_hashes(self.seed, ids) <= np.uint64(most)


def document_hashes(seed: int, ids: pyarrow.ChunkedArray) -> NDArray[np.uint64]:
    return keyed_hashes(seed, "documents", ids.to_pylist())


def plan(counts: list[dict[str, Any]]) -> list[Shard]:
    """The shards, from the parts' counts alone."""
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


def write_shard(shard: Shard, parts: Path, counts: Path, work: Path, section: CleanSection, sampled: Sampled) -> int:
    """Write one shard, unless its counts say that it is there; returns its number of parts."""
    done = counts / f"{shard.number:05d}.json"
    if done.exists():
        return len(shard.parts)
    found = dict.fromkeys(("documents", "bytes", "outside_sample", "removed_lines"), 0)
    dropped: Counter[str] = Counter()
    with (
        RowFile(work / clean_name(shard.number), KEPT_SCHEMA, "zstd") as kept,
        RowFile(work / f"rejected-{shard.number:05d}.parquet", REJECTED_SCHEMA, "zstd", needed=False) as rejected,
    ):
        for number in shard.parts:
            for table in _groups(rejected_path(parts, number)):
                dropped.update(table["reason"].to_pylist())
                rejected.write(table)
            for table, refused, outside, lines in _judged(number, parts, shard.dataset, section, sampled):
                kept.write(table)
                rejected.write(refused)
                dropped.update(refused["reason"].to_pylist())
                found["documents"] += len(table)
                found["bytes"] += int(np.sum(table["bytes"].to_numpy()))
                found["outside_sample"] += outside
                found["removed_lines"] += lines
    atomic.write_json(done, {"dataset": shard.dataset, **found, "dropped": dict(dropped)})
    return len(shard.parts)


def _groups(path: Path) -> Iterator[pyarrow.Table]:
    try:
        file = parquet.ParquetFile(path)
        for group in range(file.num_row_groups):
            yield file.read_row_group(group)
    except pyarrow.ArrowException as error:
        said = " ".join(str(error).split())
        raise RequestError(f"{path}: damaged ({said}): rm -r {path.parent} and run the same again") from None


def _judged(
    number: int, parts: Path, dataset: str, section: CleanSection, sampled: Sampled
) -> Iterator[tuple[pyarrow.Table, pyarrow.Table, int, int]]:
    """Each row group of a part: what stays, what is dropped, how many the sample leaves out, lines removed."""
    found = verdict(parts, section, number)
    seen = 0
    for table in _groups(kept_path(parts, number)):
        here = slice(seen, seen + len(table))
        marks = found.documents[here]
        lines = slice(*np.searchsorted(found.rows, [here.start, here.stop]))
        seen += len(table)
        inside = sampled.mask(dataset, table["id"])
        refused = [_refused(table.filter(marks == mark), reason) for mark, reason in _REASONS.items()]
        outside = int(np.sum((marks == dedup.KEPT) & ~inside))
        stays = (marks == dedup.KEPT) & inside
        removed = int(lines.stop - lines.start)
        if removed:
            rows = found.rows[lines].astype(np.int64) - here.start
            texts = dedup.remove_lines(table["text"], rows, found.lines[lines])
            table = with_digests(table.set_column(1, "text", texts))
            short = (compute.utf8_length(texts).to_numpy() < max(section.min_chars, 1)) & stays
            refused.append(_refused(table.filter(short), TOO_SHORT))
            stays &= ~short
        yield table.filter(stays), pyarrow.concat_tables(refused), outside, removed


def verdict(parts: Path, section: CleanSection, number: int) -> dedup.Verdict:
    """What happens to the documents of a part; all stay where nothing is compared."""
    if dedup.kinds(section):
        return dedup.verdict(parts, section, number)
    nothing = np.zeros(0, np.uint32)
    return dedup.Verdict(np.zeros(parquet.read_metadata(kept_path(parts, number)).num_rows, np.uint8), nothing, nothing)


def _refused(table: pyarrow.Table, reason: str) -> pyarrow.Table:
    reasons = pyarrow.array([reason] * len(table), pyarrow.string())
    return table.select(OWN_COLUMNS).append_column("reason", reasons).cast(REJECTED_SCHEMA)
