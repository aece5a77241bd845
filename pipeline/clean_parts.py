"""First half of the documents stage: each part of the source, read and cleaned, to a file of its own.

A part's files are published by rename, its counts last; a restarted stage keeps the parts that have counts.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet

from artefacts import publish
from configs.schema.data import CleanSection
from pipeline import clean
from pipeline.bad_inputs import BadInputs
from pipeline.document import Document
from pipeline.sources import Source

#: Text of a row group, in bytes.
GROUP_BYTES = 4 << 20

KEPT_SCHEMA = pyarrow.schema(
    [(name, pyarrow.string()) for name in Document._fields]
    + [("bytes", pyarrow.int64()), ("digest", pyarrow.binary(16))]
)
REJECTED_SCHEMA = pyarrow.schema([(name, pyarrow.string()) for name in (*Document._fields, "reason")])


def kept_path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.parquet"


def rejected_path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.rejected.parquet"


def clean_part(source: Source, part: Any, number: int, folder: Path, section: CleanSection) -> dict[str, Any]:
    """Read and clean one part into ``folder``; its counts, read back where an earlier start finished it.

    Returns:
        bad: ``BadInputs.dump`` of the reading; read: documents read; read_bytes: UTF-8 bytes of their text.
    """
    done = folder / f"{number:06d}.json"
    if done.exists():
        counts: dict[str, Any] = json.loads(done.read_text())
        return counts
    bad = BadInputs()
    counts = {"read": 0, "read_bytes": 0}
    rejected: list[dict[str, Any]] = []

    def kept() -> Iterator[dict[str, Any]]:
        for document in source.read(part, bad):
            text = clean.normalise(document.text, section.unicode)
            content = text.encode()
            counts["read"] += 1
            counts["read_bytes"] += len(content)
            row = {**document._asdict(), "text": text}
            if reason := clean.fault(text, section):
                rejected.append({**row, "reason": reason})
            else:
                yield {**row, "bytes": len(content), "digest": hashlib.sha256(content).digest()[:16]}

    write_rows(kept_path(folder, number), KEPT_SCHEMA, kept())
    write_rows(rejected_path(folder, number), REJECTED_SCHEMA, rejected)
    counts["bad"] = bad.dump()
    publish.write_json(done, counts)
    return counts


def write_rows(path: Path, schema: pyarrow.Schema, rows: Iterable[dict[str, Any]]) -> None:
    """Write a parquet file in row groups of ``GROUP_BYTES`` and publish it by rename."""
    beside = path.with_name(f".{path.name}.partial")
    group: list[dict[str, Any]] = []
    size = 0
    with parquet.ParquetWriter(beside, schema, compression="zstd") as writer:
        for row in rows:
            group.append(row)
            size += len(row["text"])
            if size >= GROUP_BYTES:
                writer.write_table(pyarrow.Table.from_pylist(group, schema))
                group, size = [], 0
        if group:
            writer.write_table(pyarrow.Table.from_pylist(group, schema))
    os.replace(beside, path)
