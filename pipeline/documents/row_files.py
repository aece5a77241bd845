"""Writes Parquet files of documents one row group at a time, and moves complete files into place by a rename."""

from pathlib import Path
from types import TracebackType

import pyarrow
import pyarrow.parquet as parquet

from artefacts import atomic

#: Approximate bytes of text per row group.
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
#: The columns that come from the source.
SOURCE_COLUMNS = KEPT_SCHEMA.names[:5]
REJECTED_SCHEMA = pyarrow.schema(
    [*(KEPT_SCHEMA.field(name) for name in SOURCE_COLUMNS), pyarrow.field("reason", pyarrow.string())]
)


class RowFile:
    """A context manager that writes one Parquet file."""

    def __init__(self, path: Path, schema: pyarrow.Schema, compression: str, needed: bool = True) -> None:
        """Open the file.

        Args:
            path: the file's final path. The file is moved there when it is complete.
            schema: the file's columns.
            compression: lz4 for intermediate files, zstd for published ones.
            needed: write the file even if it has no rows.
        """
        self._path, self._partial = path, atomic.temp_path(path)
        self._writer = parquet.ParquetWriter(self._partial, schema, compression=compression)
        self._buffer: list[pyarrow.Table] = []
        self._size = 0
        self._needed = needed

    def write(self, table: pyarrow.Table) -> None:
        """Append rows, which are buffered until there is enough text for a row group."""
        if not len(table):
            return
        self._buffer.append(table)
        self._size += table["text"].nbytes
        if table["target"].null_count < len(table):
            self._size += table["target"].nbytes
        if self._size >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._buffer:
            table = pyarrow.concat_tables(self._buffer)
            self._writer.write_table(table, row_group_size=len(table))
            self._needed = True
            self._buffer, self._size = [], 0

    def __enter__(self) -> "RowFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Move the file into place or, after an exception, remove it."""
        if kind is not None:
            self._writer.close()
            self._partial.unlink()
            return
        self._flush()
        self._writer.close()
        if self._needed:
            atomic.rename_file(self._partial, self._path)
        else:
            self._partial.unlink()
