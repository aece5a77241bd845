"""Write chat examples and rejected examples to Parquet files."""

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet

from artefacts import atomic
from pipeline.examples.rendering import Rejected, Row

_GROUP_ROWS = 10_000
_IDS = pyarrow.list_(pyarrow.int32())
_TEXT = pyarrow.string()
_SCHEMA = pyarrow.schema(
    [("ids", _IDS), ("labels", _IDS)] + [(name, _TEXT) for name in ("source", "question", "answer")]
)
_PAIRS_SCHEMA = pyarrow.schema(
    [(f"{column}_{side}", _IDS) for side in ("chosen", "rejected") for column in ("ids", "labels")]
    + [(name, _TEXT) for name in ("source", "question", "chosen", "rejected")]
)
_REJECTED_SCHEMA = pyarrow.schema([("id", _TEXT), ("text", pyarrow.large_string()), ("reason", _TEXT)])


def write_side(work: Path, name: str, rows: Sequence[Row], pairs: bool) -> None:
    """Write ``NAME-00000.parquet``, one side of the split. ``pairs`` says whether the rows are preferences."""
    columns = _pair_columns if pairs else _columns
    _write(work / f"{name}-00000.parquet", (columns(row) for row in rows), _PAIRS_SCHEMA if pairs else _SCHEMA)


def write_rejected(work: Path, rejected: Sequence[Rejected]) -> None:
    """Write ``rejected-00000.parquet``, if there is any rejected example."""
    if rejected:
        _write(work / "rejected-00000.parquet", (example._asdict() for example in rejected), _REJECTED_SCHEMA)


def _columns(row: Row) -> dict[str, Any]:
    example = row.example
    return {
        "ids": row.ids[0],
        "labels": row.labels[0],
        "source": example.source,
        "question": example.question,
        "answer": example.answer,
    }


def _pair_columns(row: Row) -> dict[str, Any]:
    example = row.example
    columns: dict[str, Any] = {}
    for number, side in enumerate(("chosen", "rejected")):
        columns |= {f"ids_{side}": row.ids[number], f"labels_{side}": row.labels[number]}
    assert example.rejected is not None
    texts = {"chosen": example.answer, "rejected": example.rejected[-1]["content"]}
    return {**columns, "source": example.source, "question": example.question, **texts}


def _write(path: Path, rows: Iterable[dict[str, Any]], schema: pyarrow.Schema) -> None:
    partial, rows = atomic.temp_path(path), iter(rows)
    with parquet.ParquetWriter(partial, schema, compression="zstd") as writer:
        while group := list(islice(rows, _GROUP_ROWS)):
            writer.write_table(pyarrow.Table.from_pylist(group, schema))
    atomic.rename_file(partial, path)
