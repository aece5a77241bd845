"""Parquet files of documents, written in row groups as they come and published by rename."""

from pathlib import Path
from types import TracebackType

import pyarrow
import pyarrow.parquet as parquet

from artefacts import atomic

#: Text of a row group, in bytes.
GROUP_BYTES = 4 << 20

KEPT_SCHEMA = pyarrow.schema(
    [
        ("id", pyarrow.string()),
        ("text", pyarrow.large_string()),
        ("source", pyarrow.string()),
        ("kind", pyarrow.string()),
        ("target", pyarrow.large_string()),
        ("bytes", pyarrow.int64()),
        ("digest", pyarrow.binary(16)),
    ]
)
#: What a document says of itself.
OWN_COLUMNS = KEPT_SCHEMA.names[:5]
REJECTED_SCHEMA = pyarrow.schema(
    [*(KEPT_SCHEMA.field(name) for name in OWN_COLUMNS), pyarrow.field("reason", pyarrow.string())]
)


class RowFile:
    """One parquet file; ``compression`` lz4 for what is read once soon, zstd for what is kept.

    Without rows it is an empty file, or with ``needed=False`` none.
    """

    def __init__(self, path: Path, schema: pyarrow.Schema, compression: str, needed: bool = True) -> None:
        self._path, self._beside = path, atomic.temp_path(path)
        self._writer = parquet.ParquetWriter(self._beside, schema, compression=compression)
        self._waiting: list[pyarrow.Table] = []
        self._size = 0
        self._needed = needed

    def write(self, table: pyarrow.Table) -> None:
        """Append rows; they become a row group with those before them once they are large enough."""
        if not len(table):
            return
        self._waiting.append(table)
        self._size += table["text"].nbytes
        if table["target"].null_count < len(table):
            self._size += table["target"].nbytes
        if self._size >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            table = pyarrow.concat_tables(self._waiting)
            self._writer.write_table(table, row_group_size=len(table))
            self._needed = True
            self._waiting, self._size = [], 0

    def __enter__(self) -> "RowFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Publish the file; after a fault nothing of it stays."""
        if kind is not None:
            self._writer.close()
            self._beside.unlink()
            return
        self._flush()
        self._writer.close()
        if self._needed:
            atomic.rename_file(self._beside, self._path)
        else:
            self._beside.unlink()
